"""Judges a finished set: the one look at the test split, with controls beside the set."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from condense.condensation.config import RunConfig
from condense.condensation.share import WorkerShare
from condense.data.slices import HeldOut
from condense.learners.evaluation import TESTING, Evaluation, Evaluator
from condense.synthetic import controls
from condense.synthetic.controls import AtBits
from condense.synthetic.decoder import decode_set
from condense.workers.context import WorkerContext
from condense.workers.memory import explain_out_of_memory

STRENGTH = {"jpeg_real": "quality", "blurred_real": "sigma"}  # what of a control was chosen for its bits


def judge(
    config: RunConfig,
    context: WorkerContext,
    share: WorkerShare,
    evaluator: Evaluator,
    test: HeldOut,
    images: Tensor,
    labels: Tensor,
    soft_labels: Tensor | None,
) -> dict[str, Any]:
    """Tests fresh networks trained on the set, and on each control, whose labels are hard. All workers call it.

    Args:
        config: of the run; says which controls are made.
        context: of the worker.
        share: of the worker; controls are made of its real images.
        evaluator: trains and tests.
        test: the test split.
        images: the whole set, uint8 (N, C, H, W), classes in order.
        labels: int64 (N,).
        soft_labels: float32 (N, classes), or None where labels are hard.

    Returns:
        `evaluation` and `controls`, as the provenance of a dataset has them.
    """
    sets, at_bits = _controls(config, share, images) if config.evaluation.controls else ({}, {})

    def test_on(images: Tensor, labels: Tensor, name: str, index: int) -> Evaluation:
        context.report(f"testing {name}", index, 1 + len(sets), {}, counts="sets")
        learners, everyone = config.evaluation.learners, share.mesh.everyone
        with explain_out_of_memory(lambda: TESTING):
            evaluation = evaluator.evaluate(images, labels, test, learners=learners, collective=everyone)
        context.report(f"tested {name}", index + 1, 1 + len(sets), {"accuracy": evaluation.mean}, counts="sets")
        return evaluation

    decoded = decode_set(images, labels if soft_labels is None else soft_labels, config.images.factor)
    evaluation = test_on(*decoded, "set", 0)
    tested: dict[str, dict[str, Any]] = {}
    for index, (name, part) in enumerate(sets.items()):
        control = test_on(share.whole(part), labels, name, index + 1)
        tested[name] = {
            "accuracy_mean": control.mean,
            "accuracy_std": control.std,
            "bits_per_dim": share.mean_bits(part),
        }
        if name in at_bits:
            tested[name] |= {STRENGTH[name]: at_bits[name].strength, "at_equal_bits": at_bits[name].reached}
    return {"evaluation": evaluation.description(), "controls": tested}


def test_metrics(judged: dict[str, Any]) -> dict[str, float]:
    """Returns what `judge` found as metrics, by name."""
    evaluation = judged["evaluation"]
    metrics = {"test/accuracy": evaluation["accuracy_mean"]}
    if evaluation["accuracy_std"] is not None:
        metrics["test/accuracy_std"] = evaluation["accuracy_std"]
    return metrics | {f"test/{name}": control["accuracy_mean"] for name, control in judged["controls"].items()}


def _controls(config: RunConfig, share: WorkerShare, images: Tensor) -> tuple[dict[str, Tensor], dict[str, AtBits]]:
    """Returns the own classes' images (C, ipc, channels, H, W) of each control by name, and how some reach the set's
    bits.
    """
    seed, ipc = config.seed, config.images_per_class
    wanted = share.mean_bits(share.slice_of(images))
    random = controls.random_real(share.real, share.classes, ipc, seed=seed)
    sets = {"random_real": random, "kmeans_real": controls.kmeans_real(share.real, share.classes, ipc, seed=seed)}
    if wanted is None:
        return sets, {}

    def mean_bits(part: Tensor) -> float:
        return share.mean_bits(part) or 0.0

    at_bits = {
        "jpeg_real": controls.jpeg_at_bits(random, wanted, mean_bits),
        "blurred_real": controls.blur_at_bits(random, wanted, mean_bits),
    }
    return sets | {name: found.images for name, found in at_bits.items()}, at_bits
