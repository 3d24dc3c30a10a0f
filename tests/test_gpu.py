"""What a GPU must not change: image gradients, a trained learner, an outer step. Run by `make gpu-check`."""

import time
from contextlib import closing

import pytest
import torch
from torch import Tensor

from benchmarks.engine import engine
from condense.data.normalisation import Normalisation
from condense.learners.evaluation import Evaluator
from condense.learners.evaluation_process import EvaluationProcess
from condense.learners.networks import NetworkConfig, build_network, initialise_
from condense.learners.recipes import Recipe
from condense.matching.objectives import OBJECTIVES, build_objective
from condense.workers.collective import Alone
from condense.workers.devices import forbid_tf32

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]

SHAPE, CLASSES, SMALL = (3, 16, 16), 4, NetworkConfig(width=16, depth=2)


@pytest.fixture(autouse=True)
def _as_in_a_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """Float32 is float32, not TF32."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", torch.backends.cudnn.allow_tf32)  # to put it back
    forbid_tf32()


def image_gradient(name: str, device: str, precision: torch.dtype = torch.float32) -> Tensor:
    draws = torch.Generator().manual_seed(1)
    network = initialise_(build_network(SMALL, SHAPE, CLASSES), draws).to(device).requires_grad_(False)
    real = torch.randn((CLASSES, 32, *SHAPE), generator=draws).to(device)
    synthetic = torch.randn((CLASSES, 2, *SHAPE), generator=draws).to(device).requires_grad_()
    objective = build_objective(name, distance=None, precision=precision)
    distances = objective(network, real, synthetic, torch.arange(CLASSES, device=device))
    return torch.autograd.grad(distances.sum(), synthetic)[0].cpu()


@pytest.mark.parametrize("name", OBJECTIVES)
def test_image_gradients_on_the_gpu_equal_those_on_the_cpu(name: str) -> None:
    expected, found = image_gradient(name, "cpu"), image_gradient(name, "cuda")
    assert (found - expected).norm() / expected.norm() < 1e-4


@pytest.mark.parametrize("name", OBJECTIVES)
def test_bfloat16_image_gradients_on_the_gpu_point_where_float32_ones_do(name: str) -> None:
    expected, found = image_gradient(name, "cuda"), image_gradient(name, "cuda", torch.bfloat16)
    assert torch.nn.functional.cosine_similarity(found.flatten(), expected.flatten(), dim=0) > 0.95


def test_an_outer_step_on_the_gpu_moves_the_images_as_on_the_cpu() -> None:
    moved = []
    for device in ("cpu", "cuda"):
        made = engine(SHAPE, 2, classes=CLASSES, real=16, network=SMALL, device=device)
        before = made.synthetic.alpha.detach().clone()
        made.outer_step(0)
        moved.append((made.synthetic.alpha.detach() - before).cpu())
    assert (moved[0] - moved[1]).norm() / moved[0].norm() < 1e-3


def test_the_parts_of_a_step_on_the_gpu_have_its_seconds() -> None:
    made = engine(SHAPE, 2, classes=CLASSES, real=16, network=SMALL, device="cuda")
    made.outer_step(0)  # loads and chooses kernels
    made.stopwatch.seconds.clear()
    started = time.perf_counter()
    made.outer_step(1)
    taken = time.perf_counter() - started
    assert min(made.stopwatch.seconds.values()) > 0
    assert 0.5 * taken < sum(made.stopwatch.seconds.values()) < 1.1 * taken


def test_evaluation_learners_train_on_the_gpu() -> None:
    draws = torch.Generator().manual_seed(0)
    labels = torch.arange(40) % 2
    images = (torch.randint(100, (40, *SHAPE), generator=draws) + 100 * labels[:, None, None, None]).to(torch.uint8)
    evaluator = Evaluator(
        Recipe("quick", epochs=20, augmentation="dsa"), SMALL, 2, Normalisation((0.5,) * 3, (0.25,) * 3), seed=1
    )
    images, labels = images.cuda(), labels.cuda()
    assert evaluator.evaluate(images, labels, [(images, labels)], learners=3, collective=Alone()).mean > 90


def test_a_process_beside_training_finds_on_the_gpu_what_this_one_does() -> None:
    draws = torch.Generator().manual_seed(0)
    labels = torch.arange(40, device="cuda") % 2
    noise = torch.randint(100, (40, *SHAPE), generator=draws).cuda()
    images = (noise + 100 * labels[:, None, None, None]).to(torch.uint8)
    evaluator = Evaluator(
        Recipe("quick", epochs=20, augmentation="none"), SMALL, 2, Normalisation((0.5,) * 3, (0.25,) * 3), seed=1
    )
    here = evaluator.evaluate(images, labels, [(images, labels)], learners=3, collective=Alone())
    with closing(EvaluationProcess(evaluator, 3, (images, labels), images.device)) as beside:
        beside.ask(1, images, labels)
        ((_, found),) = beside.waited()
        assert not beside.ended
    assert found.accuracies == pytest.approx(here.accuracies, abs=2.5)  # one image of the forty
