"""Suggests trials: Optuna's samplers behind Ray Tune's Searcher.

The study lives in memory and is made again from the journal, which is the only record. Optuna's own storage would be a
second truth. Ray's bridge to Optuna tells it of a trial that was stopped early as if the trial had ended there.
"""

from __future__ import annotations

import itertools
import random
from pathlib import Path
from typing import Any

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import FrozenTrial, TrialState
from ray.tune.search import Searcher

from condense.condensation.config import RunConfig
from condense.errors import ConfigError
from tuning.journal import Journal, Trial
from tuning.score import Point
from tuning.space import SearchConfig
from tuning.warm_start import apply_warm_start, nearest_start

STATES = {"finished": TrialState.COMPLETE, "stopped": TrialState.PRUNED, "failed": TrialState.FAIL}

# Suggestions in a row that were tried before: a space that has nothing new left is searched through.
REPEATS = 50


def distributions(search: SearchConfig) -> dict[str, BaseDistribution]:
    """Returns the space in Optuna's words."""
    found: dict[str, BaseDistribution] = {}
    for key, domain in search.space.items():
        log = domain.log_uniform is not None
        if domain.choice is not None:
            found[key] = CategoricalDistribution(domain.choice)
        elif search.is_integer(key):
            low, high = domain.bounds
            found[key] = IntDistribution(int(low), int(high), log=log)
        else:
            found[key] = FloatDistribution(*domain.bounds, log=log)
    return found


class Grid(optuna.samplers.BaseSampler):
    """Every combination once, in a shuffled order: the trial of number n gets the n-th, also when a search goes on."""

    def __init__(self, search: SearchConfig) -> None:
        values = [search.space[key].choice or () for key in search.space]
        rows = list(itertools.product(*values))
        random.Random(search.seed).shuffle(rows)  # noqa: S311
        self.rows = [dict(zip(search.space, row, strict=True)) for row in rows]

    def infer_relative_search_space(self, study: optuna.Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        """Nothing: each field is looked up."""
        return {}

    def sample_relative(
        self, study: optuna.Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """Nothing."""
        return {}

    def sample_independent(
        self, study: optuna.Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        """Returns the field's value in the trial's combination."""
        return self.rows[trial.number % len(self.rows)][param_name]


def study_of(search: SearchConfig, journal: Journal) -> optuna.Study:
    """Returns the Optuna study of all trials that are over."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    seed = search.seed + 1000 * len(journal.trials)  # a resumed search does not repeat its first draws
    sampler: optuna.samplers.BaseSampler
    if search.sampler == "nsga2":
        sampler = optuna.samplers.NSGAIISampler(seed=seed)
    elif search.sampler == "random":
        sampler = optuna.samplers.RandomSampler(seed=seed)
    elif search.sampler == "grid":
        sampler = Grid(search)
    else:
        # Trials run side by side: those at work count as bad ones, so that the next is not drawn beside them.
        sampler = optuna.samplers.TPESampler(seed=seed, constant_liar=True, n_startup_trials=max(5, search.trials // 5))
    study = optuna.create_study(directions=search.aim.directions, sampler=sampler)
    space = distributions(search)
    for trial in journal.over:
        values = search.aim.values(trial.point) if trial.status == "finished" else None
        study.add_trial(
            optuna.trial.create_trial(
                state=STATES[trial.status], params=trial.params, distributions=space, values=values
            )
        )
    return study


class JournalSearcher(Searcher):  # type: ignore[misc]
    """Hands out interrupted trials first, then new ones; tells the sampler how they ended.

    Args:
        search: the search.
        journal: what is known of it; the only thing that outlives this object.
        places: settings of every run that say where it works.
    """

    def __init__(self, search: SearchConfig, journal: Journal, places: dict[str, Any]) -> None:
        super().__init__()
        self.search, self.journal, self.places = search, journal, places
        self.study = study_of(search, journal)
        self.space = distributions(search)
        self.interrupted = journal.by_status("running")
        self.at_work: dict[str, tuple[optuna.Trial, Trial]] = {}  # by Ray's id
        # By what was chosen, whatever each started from.
        self.known = {
            self._chosen(trial.params).identity(): trial for trial in journal.trials.values() if trial.identity
        }

    def suggest(self, trial_id: str) -> dict[str, Any] | str:
        """Returns what Ray is to run next: the number of a trial and its resolved run config."""
        if self.interrupted:
            trial = self.interrupted.pop(0)
            self.study.enqueue_trial(trial.params)
            asked = self.study.ask(self.space)
            config = apply_warm_start(self.search, self._chosen(trial.params), trial.start)
        else:
            fresh = self._fresh()
            if fresh is None:
                return str(Searcher.FINISHED)
            asked, trial, config = fresh
        self.at_work[trial_id] = asked, trial
        return {"number": trial.number, "config": config.model_dump(mode="json")}  # with the passwords of its URIs

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """Tells the sampler what the journal says of a trial that is over."""
        if trial_id not in self.at_work:
            return
        asked, trial = self.at_work.pop(trial_id)
        if error or trial.status == "failed":
            self.study.tell(asked, state=TrialState.FAIL)
        elif trial.status == "stopped":
            self.study.tell(asked, state=TrialState.PRUNED)
        elif trial.status == "finished":
            self.study.tell(asked, self.search.aim.values(trial.point))

    def set_search_properties(self, metric: str | None, mode: str | None, config: dict[str, Any], **spec: Any) -> bool:
        """Ray's own metric and space are not used."""
        return True

    def save(self, checkpoint_path: str) -> None:
        """Nothing: the journal is the record."""
        Path(checkpoint_path).touch()

    def restore(self, checkpoint_path: str) -> None:
        """Nothing."""

    def _chosen(self, params: dict[str, Any]) -> RunConfig:
        return self.search.run_config(params, **self.places)

    def _fresh(self) -> tuple[optuna.Trial, Trial, RunConfig] | None:
        """Returns a trial that differs from all before; None where the space has no other left."""
        for _ in range(REPEATS):
            asked = self.study.ask(self.space)
            params = dict(asked.params)
            try:
                config = self._chosen(params)
            except ConfigError as error:  # values that each fit, but not together
                trial = self.journal.suggested(params, "")
                self.journal.failed(trial.number, error.problem)
                self.study.tell(asked, state=TrialState.FAIL)
                continue
            same = self.known.get(config.identity())
            if same is None:
                start = nearest_start(self.search, config, self.journal.by_status("finished"))
                run = apply_warm_start(self.search, config, start)
                trial = self.known[config.identity()] = self.journal.suggested(params, run.identity(), start)
                return asked, trial, run
            point: Point | None = same.point if same.status == "finished" else None
            values = None if point is None else self.search.aim.values(point)
            self.study.tell(asked, values, state=TrialState.COMPLETE if values else TrialState.FAIL)
        return None
