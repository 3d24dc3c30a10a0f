"""Flows fitted on a real Ray cluster, followed in a real MLflow store, registered there, and used from there."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from cluster import flow_fit, flows, registry
from cluster.flow_fit import Finished
from cluster.run import run
from cluster.tracking_store import SQLITE, connect
from cluster.versions import FLOW
from condense.condensation.config import RunConfig
from condense.errors import FlowError, SourceError, TrackingError
from condense.flow.recipe import FlowFitConfig
from condense.flow.store import load_card, load_flow
from condense.settings import resolve
from condense.workers.context import Progress
from tests.builders.processes import descendants

RECIPE = {
    "source": "digits",
    "validation_fraction": 0.1,
    "architecture": {"channels": 1, "image_size": 16, "levels": 2, "steps": 1, "hidden": 4, "components": 2},
    "steps": 6,
    "batch_size": 8,
    "warmup_steps": 2,
    "initial_images": 32,
    "evaluate_every": 3,
    "evaluation_images": 8,
    "checkpoint_every": 1,
    "blended": 0.1,
    "cpus_per_worker": 1,
    "tracking_uri": "none",
}
# The same number of threads as a worker has, so that sums are in the same order.
RUN = (
    "images_per_class=1",
    "bits_weight=1",
    "data.image_size=16",
    "network.width=8",
    "matching.real_batch=8",
    "outer_steps=1",
    "evaluation.learners=1",
    "evaluation.validation_images=20",
    "evaluation.controls=false",
    "workers=0",
)


def recipe(folder: Path, **changes: object) -> FlowFitConfig:
    places = {"output": folder / "flow.safetensors", "storage": str(folder / "runs")}
    return FlowFitConfig.model_validate({**RECIPE, **places, "name": f"t-{uuid.uuid4().hex[:8]}", **changes})


def ignore(at: Progress) -> None:
    assert at.done <= at.total


def fit(config: FlowFitConfig) -> Finished:
    return flow_fit.fit(config, ignore)


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.ray
class TestWorkers:
    @pytest.fixture(scope="class", autouse=True)
    def _ray(self) -> Iterator[None]:
        from cluster.ray_connection import connected

        with connected():
            yield

    @pytest.fixture(scope="class")
    def in_process(self, tmp_path_factory: pytest.TempPathFactory) -> Finished:
        return fit(recipe(tmp_path_factory.mktemp("alone"), name="same"))

    def test_one_worker_makes_the_bytes_of_this_process(self, in_process: Finished, tmp_path: Path) -> None:
        made = fit(recipe(tmp_path, name="same", workers=1))
        assert made.result.digest == in_process.result.digest
        assert not list((tmp_path / "runs").glob("*"))

    def test_two_workers_agree_with_one_and_survive_a_kill(self, in_process: Finished, tmp_path: Path) -> None:
        killed: list[int] = []
        steps: list[int] = []

        def kill_one(at: Progress) -> None:
            steps.append(at.done)
            if at.done >= 2 and not killed:
                workers = [pid for pid in descendants() if "RayTrainWorker" in Path(f"/proc/{pid}/cmdline").read_text()]
                assert len(workers) == 2
                killed.append(workers[1])
                os.kill(workers[1], signal.SIGKILL)

        made = flow_fit.fit(recipe(tmp_path, name="same", workers=2, steps=200, evaluate_every=100), kill_one)
        assert killed
        assert made.result.card["workers"] == 2
        assert steps[-1] == 200
        alone = fit(recipe(tmp_path / "alone", name="same", steps=200, evaluate_every=100))
        flows_ = [load_flow(result.path) for result in (alone.result, made.result)]
        # Gradients are sums of two halves: float32 rounding, which 200 steps of Adam make grow.
        for one, other in zip(flows_[0].parameters(), flows_[1].parameters(), strict=True):
            torch.testing.assert_close(one, other, rtol=0, atol=2e-3)
        bits = [result.card["curve"][-1]["bits_per_dim"] for result in (alone.result, made.result)]
        assert bits[0] == pytest.approx(bits[1], abs=1e-3)

    def test_what_every_worker_finds_wrong_is_one_error(self, tmp_path: Path) -> None:
        with pytest.raises(SourceError, match=r"architecture\.channels=1"):
            fit(recipe(tmp_path, workers=2, architecture={**RECIPE["architecture"], "channels": 3}))  # type: ignore[dict-item]
        assert not (tmp_path / "flow.safetensors").exists()


@pytest.mark.mlflow
class TestRegistry:
    def test_a_fit_is_followed_and_registered(self, tracking_uri: str, tmp_path: Path) -> None:
        config = recipe(tmp_path, tracking_uri=tracking_uri)
        finished = fit(config)
        assert finished.run_id is not None
        assert finished.version is not None
        client = connect(tracking_uri)
        run_ = client.get_run(finished.run_id)
        assert run_.info.status == "FINISHED"
        assert run_.data.params["architecture.hidden"] == "4"
        assert [point.step for point in client.get_metric_history(finished.run_id, "held_out_bits_per_dim")] == [3, 6]
        assert {"train_bits_per_dim", "learning_rate"} <= run_.data.metrics.keys()
        pictures = [file.path for file in client.list_artifacts(finished.run_id, "images") if ".webp" not in file.path]
        assert len(pictures) == 2
        assert run_.inputs.dataset_inputs[0].dataset.name == "digits"
        version = finished.version
        assert (version.name, version.version, version.aliases) == (f"flow-{config.name}", 1, ("best",))
        assert version.content_digest == finished.result.digest
        assert version.tags["shape"] == "1x16x16"
        assert float(version.tags["held_out_bits_per_dim"]) == finished.result.card["curve"][-1]["bits_per_dim"]
        assert int(version.tags["parameters"]) == finished.result.card["parameters"]

    def test_best_has_the_fewest_held_out_bits_on_the_same_data(self, tracking_uri: str, tmp_path: Path) -> None:
        name = f"t-{uuid.uuid4().hex[:8]}"

        def version(**changes: object) -> registry.Version:
            finished = fit(recipe(tmp_path, name=name, tracking_uri=tracking_uri, **changes))
            assert finished.version is not None
            return finished.version

        assert version().aliases == ("best",)
        assert version(steps=40).aliases == ("best",)
        assert version(steps=2).aliases == ()
        # With a tenth of the images it is validated on others, whatever its bits are.
        assert version(steps=80, validation_fraction=0.9).aliases == ()
        rows = [row for row in flows.listed(tracking_uri) if f"/flow-{name}/" in row[0]]
        assert [row[1] for row in rows] == ["", "", "best", ""]

    def test_the_same_fit_again_is_the_same_version(self, tracking_uri: str, tmp_path: Path) -> None:
        config = recipe(tmp_path, tracking_uri=tracking_uri)
        versions = [fit(config).version for _ in range(2)]
        assert versions[0] == versions[1]

    def test_a_run_measures_with_the_version_that_its_alias_meant(self, tracking_uri: str, tmp_path: Path) -> None:
        fitted = fit(recipe(tmp_path, tracking_uri=tracking_uri))
        assert fitted.version is not None
        places = (f"tracking_uri={tracking_uri}", f"storage={tmp_path / 'store'}", f"output={tmp_path / 'out'}")
        config = resolve(RunConfig, None, (*RUN, *places, f"flow=models:/{fitted.version.name}@best"))
        facts = run(config, ignore).dataset.provenance
        named = {"name": f"models:/{fitted.version.reference}", "digest": fitted.result.digest}
        assert facts["flow"] == named
        assert (facts["config"]["flow"], facts["config"]["flow_digest"]) == (named["name"], named["digest"])
        # A file of the same flow is the same run; an alias that has moved is another.
        by_file = config.model_copy(update={"flow": str(fitted.result.path), "flow_digest": fitted.result.digest})
        assert by_file.identity() == facts["identity"] == flows.resolved(config).identity()
        better = fit(recipe(tmp_path, name=fitted.result.card["name"], tracking_uri=tracking_uri, steps=40)).version
        assert better is not None
        assert better.aliases == ("best",)
        assert flows.resolved(config).identity() != facts["identity"]
        with pytest.raises(FlowError, match=rf"{better.name}/2 .*flow_digest asks for {fitted.result.digest[:16]}"):
            flows.resolved(config.model_copy(update={"flow_digest": fitted.result.digest}))

    def test_what_is_brought_is_the_flow_with_its_card(self, tracking_uri: str, tmp_path: Path) -> None:
        fitted = fit(recipe(tmp_path, tracking_uri=tracking_uri))
        assert fitted.version is not None
        path, version = flows.bring(tracking_uri, f"models:/{fitted.version.reference}", tmp_path)
        assert (path.name, version) == (f"{fitted.version.name}-1.safetensors", fitted.version)
        assert load_card(path)["digest"] == fitted.result.digest

    def test_a_reference_to_nothing_says_what_there_is(self, tracking_uri: str, tmp_path: Path) -> None:
        fitted = fit(recipe(tmp_path, tracking_uri=tracking_uri))
        assert fitted.version is not None
        for reference, message in (
            ("models:/flow-nothing@best", fitted.version.name),
            (f"models:/{fitted.version.name}/7", "1@best"),
            ("models:/../etc", "names no flow"),
        ):
            with pytest.raises(FlowError, match=message):
                flows.bring(tracking_uri, reference, tmp_path)

    def test_an_artifact_that_was_exchanged_is_refused(self, tracking_uri: str, tmp_path: Path) -> None:
        fitted = fit(recipe(tmp_path, tracking_uri=tracking_uri))
        assert fitted.version is not None
        folder = Path(tracking_uri.removeprefix(SQLITE)).parent / "mlartifacts" / str(fitted.run_id) / "artifacts"
        stored = folder / "flow" / "flow.safetensors"
        other = fit(recipe(tmp_path, steps=2)).result.path
        stored.write_bytes(other.read_bytes())
        with pytest.raises(FlowError, match="damaged"):
            flows.bring(tracking_uri, f"models:/{fitted.version.reference}", tmp_path)
        checksum = json.dumps({"flow.safetensors": hashlib.sha256(other.read_bytes()).hexdigest()})
        connect(tracking_uri).set_model_version_tag(fitted.version.name, "1", "sha256", checksum)
        with pytest.raises(FlowError, match="another flow than the one that was registered"):
            flows.bring(tracking_uri, f"models:/{fitted.version.reference}", tmp_path)

    def test_an_interrupted_fit_goes_on_in_its_run_when_asked_to(self, tracking_uri: str, tmp_path: Path) -> None:
        config = recipe(tmp_path, tracking_uri=tracking_uri)

        def interrupt(at: Progress) -> None:
            if at.done == 4:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            flow_fit.fit(config, interrupt)
        finished = flow_fit.fit(config, ignore, resume=True)
        client = connect(tracking_uri)
        (experiment,) = {client.get_run(str(finished.run_id)).info.experiment_id}
        tag = f"tags.`condense.identity` = 'flow-{config.identity()}'"
        assert [found.info.run_id for found in client.search_runs([experiment], tag)] == [finished.run_id]
        assert [p.step for p in client.get_metric_history(str(finished.run_id), "held_out_bits_per_dim")] == [3, 6]
        assert finished.result.digest == fit(recipe(tmp_path, name=config.name)).result.digest

    def test_an_unreachable_server_is_found_before_training(self, tmp_path: Path) -> None:
        with pytest.raises(TrackingError, match=r"127\.0\.0\.1:1"):
            fit(recipe(tmp_path, tracking_uri="http://127.0.0.1:1"))
        assert not (tmp_path / "flow.safetensors").exists()

    def test_a_flow_and_a_dataset_do_not_take_each_others_names(self, tracking_uri: str, tmp_path: Path) -> None:
        config = recipe(tmp_path, tracking_uri=tracking_uri)
        connect(tracking_uri).create_registered_model(f"flow-{config.name}", tags={"kind": "dataset"})
        with pytest.raises(FlowError, match="not a flow"):
            fit(config)
        with pytest.raises(FlowError, match="there is no flow"):
            registry.show(tracking_uri, f"flow-{config.name}", kind=FLOW)
