"""Trains again from a condensed file alone, and compares with the accuracy that its card states."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from condense.condensation.config import RunConfig
from condense.data.normalisation import Normalisation
from condense.data.slices import HeldOut
from condense.data.sources import open_source
from condense.errors import DatasetError
from condense.learners.evaluation import Evaluation, Evaluator
from condense.learners.recipes import RECIPES
from condense.settings import validate
from condense.synthetic.dataset import CondensedDataset
from condense.workers.collective import Alone
from condense.workers.devices import local_device
from condense.workers.mesh import build_mesh


@dataclass(frozen=True)
class Reproduction:
    """An evaluation of a file, and the one that it states.

    stated: mean and standard deviation in percent (None of one learner); None where the run left the test split unread.
    as_stated: whether it was made as the run makes its own.
    """

    evaluation: Evaluation
    stated: tuple[float, float | None] | None
    as_stated: bool


def evaluate_dataset(
    dataset: CondensedDataset,
    *,
    source: str | None = None,
    recipe: str | None = None,
    learners: int | None = None,
) -> Reproduction:
    """Trains fresh learners on the file's images and tests them on the test split of its source.

    Args:
        dataset: as `read_dataset` gives it.
        source: where the real data is now; None looks where the run found it.
        recipe: another evaluation recipe; None takes the run's.
        learners: another number of learners; the first ones are the run's own.

    Raises:
        DatasetError: the file does not say how it was made.
        SourceError: its test data is not where it was.
    """
    facts = dataset.provenance
    try:
        values: dict[str, Any] = facts["config"] | ({"source": source} if source else {})
        normalisation = Normalisation(tuple(facts["normalisation"]["mean"]), tuple(facts["normalisation"]["std"]))
        config = validate(RunConfig, values, where="the file's config")
    except (KeyError, TypeError) as error:
        raise DatasetError(
            f"the file does not say how it was made: {error} is missing", "write it with `condense run`"
        ) from None
    own = config.evaluation
    chosen, count = RECIPES[recipe or own.recipe], learners or own.learners
    evaluator = Evaluator(chosen, config.network, len(dataset.class_names), normalisation, config.seed, flip=own.flip)
    evaluation = _test(dataset, config, evaluator, count)
    stated = facts.get("evaluation")
    return Reproduction(
        evaluation,
        (stated["accuracy_mean"], stated["accuracy_std"]) if stated else None,
        (chosen.name, count) == (own.recipe, own.learners),
    )


def judge_dataset(dataset: CondensedDataset) -> CondensedDataset:
    """Tests a set whose run left the test split unread: the one look at that split.

    Returns the set with its evaluation.

    The numbers are those that the run would have ended with; controls are not made.

    Args:
        dataset: of a run with `evaluation.test` off.

    Raises:
        DatasetError: its test split was read already, or it does not say how it was made.
        SourceError: its test data is not where it was.
    """
    if "evaluation" in dataset.provenance:
        raise DatasetError("the set's test accuracy is stated already", "`condense evaluate` compares with it")
    found = evaluate_dataset(dataset).evaluation
    return replace(dataset, provenance={**dataset.provenance, "evaluation": found.description()})


def _test(dataset: CondensedDataset, config: RunConfig, evaluator: Evaluator, learners: int) -> Evaluation:
    source = open_source(config.source, config.data, seed=config.seed)
    if source.class_names != dataset.class_names:
        raise DatasetError(
            f"the file's classes are {dataset.class_names[:5]}..., the source's {source.class_names[:5]}...",
            "pass the source that the set was condensed from with --source",
        )
    device = local_device()
    images, labels = (part.to(device) for part in dataset.decoded())
    held_out = HeldOut(source, range(len(source.class_names)), build_mesh(Alone()), device)
    return evaluator.evaluate(images, labels, held_out, learners=learners, collective=Alone())
