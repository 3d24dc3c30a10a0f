"""One outer step: what it minimises, that slices do not change it, that it stops on what is not finite."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from condense.errors import ConfigError, NonFiniteError
from condense.matching.config import PUBLISHED, MatchingConfig
from condense.synthetic.config import ImagesConfig
from condense.workers.mesh import class_slice
from tests.builders.engines import CLASSES, PLAIN, SHAPE, engine


@pytest.mark.parametrize("parameterisation", ["pixels", "pyramid"])
def test_slices_of_one_image_per_class_move_as_the_whole_set(parameterisation: str) -> None:
    images = ImagesConfig(parameterisation=parameterisation)  # type: ignore[arg-type]
    whole = engine(images=images)
    parts = [engine(owned=class_slice(CLASSES, rank, 3), images=images) for rank in range(3)]
    rounded = torch.zeros(CLASSES, dtype=torch.int64)  # pixels, of each class, that fell to another level
    for step in range(3):
        for one in (whole, *parts):
            one.outer_step(step)
        levels = [torch.cat([one.synthetic.images_uint8().int() for one in ones]) for ones in ([whole], parts)]
        rounded += (levels[0] != levels[1]).sum((1, 2, 3, 4))
    joined, wanted = torch.cat([part.synthetic.alpha.detach() for part in parts]), whole.synthetic.alpha.detach()
    # A pixel between two of its levels may be rounded to either, which moves its class by 1e-3; each step moves by 0.1.
    assert rounded.sum() <= 1
    alike = rounded == 0
    torch.testing.assert_close(joined[alike], wanted[alike], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(joined, wanted, rtol=0, atol=2e-3)


def test_classes_taken_a_few_at_a_time_move_as_all_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    matching = MatchingConfig(real_batch=6, updates=2, steps=2, inner_epochs=2, augment="dsa")
    made = [engine(ipc=2, matching=matching, images=PLAIN) for _ in range(2)]
    made[0].outer_step(0)
    monkeypatch.setattr("condense.matching.replica.CLASSES_AT_ONCE", 3)
    made[1].outer_step(0)
    torch.testing.assert_close(made[1].synthetic.alpha, made[0].synthetic.alpha, rtol=1e-4, atol=1e-5)


def test_the_image_gradient_is_that_of_the_stated_loss() -> None:
    made = engine(ipc=3, bits_weight=0.7, images=PLAIN)
    before = made.synthetic.alpha.detach().clone()
    distances: list[Tensor] = []
    original = made.replicas[0].objective.distances

    def watched(*arguments: object) -> Tensor:
        distances.append(original(*arguments))  # type: ignore[arg-type]
        return distances[-1]

    made.replicas[0].objective.distances = watched  # type: ignore[method-assign]
    made.match_steps = 1
    result = made.outer_step(0)
    assert result.distance == pytest.approx(float(distances[0].detach().mean()), rel=1e-5)
    moved = (before - made.synthetic.alpha.detach()) / 0.1
    bits_only = engine(ipc=3, bits_weight=1.4, images=PLAIN)
    bits_only.match_steps = 1
    bits_only.outer_step(0)
    twice = (before - bits_only.synthetic.alpha.detach()) / 0.1
    # Twice the weight minus once is the bits gradient alone: ln p = -x^2 gives 2 x / (D ln 2) per image, over N images,
    # through (k + u) / 256 (a factor 255/256) and the sigmoid.
    value = torch.sigmoid(before)
    expected_sign = torch.sign(value - 0.5)
    far = (value - 0.5).abs() > 0.01  # the noise u moves x by up to half a level
    assert bool((torch.sign(twice - moved)[far] == expected_sign[far]).all())
    scale = 0.7 * 2 * (255 / 256) / (math.prod(SHAPE) * math.log(2)) / (CLASSES * 3)
    torch.testing.assert_close(twice - moved, scale * (value - 0.5) * value * (1 - value), rtol=0.2, atol=scale * 2e-3)


def test_a_weight_on_bits_lowers_them() -> None:
    def bits_after(weight: float) -> float:
        made = engine(bits_weight=weight)
        return [made.outer_step(step).bits_per_dim for step in range(4)][-1]

    assert bits_after(100.0) < bits_after(1e-6)


def test_the_same_seed_gives_the_same_images_and_another_seed_others() -> None:
    made = [engine(ipc=2) for _ in range(2)]
    for one in made:
        one.outer_step(0)
    assert torch.equal(made[0].synthetic.images_uint8(), made[1].synthetic.images_uint8())


def test_a_pyramid_starts_at_the_same_images_as_pixels_and_moves_regions() -> None:
    pixels, pyramid = engine(), engine(images=ImagesConfig(parameterisation="pyramid"))
    assert torch.equal(pixels.synthetic.images_uint8(), pyramid.synthetic.images_uint8())
    assert [parameter.shape[-1] for parameter in pyramid.synthetic.parameters] == [8, 4, 2]
    pyramid.outer_step(0)
    assert all(bool((parameter != 0).all()) for parameter in pyramid.synthetic.parameters)


def test_the_cosine_schedule_ends_near_zero_and_constant_stays() -> None:
    cosine = engine()
    assert cosine._rate(0) == 0.1
    assert cosine._rate(3) < 0.02
    assert engine(images=ImagesConfig(recipe="simplebits"))._rate(3) == 0.1


@pytest.mark.parametrize(("ipc", "expected"), [*PUBLISHED.items(), (5, (5, 100)), (3, (3, 167)), (100, (50, 5))])
def test_any_images_per_class_has_a_schedule(ipc: int, expected: tuple[int, int]) -> None:
    assert MatchingConfig().schedule(ipc) == expected


def test_a_non_finite_gradient_stops_the_run_and_names_step_and_class() -> None:
    made = engine()
    with torch.no_grad():
        made.synthetic.parameters[0][2] = torch.nan
    with pytest.raises(NonFiniteError, match="class 2 is not finite at outer step 1"):
        made.outer_step(1)


class CopiesThatWait(TorchDispatchMode):
    """Counts the copies between devices, and those of them that would wait until a GPU is idle."""

    count = waiting = 0

    def __torch_dispatch__(
        self, called: Any, types: Sequence[type], args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        options = dict(kwargs or {})
        if called is torch.ops.aten._to_copy.default:
            here, there, waits = args[0].device, options.get("device"), not options.get("non_blocking")
        elif called is torch.ops.aten.copy_.default:
            here, there, waits = args[1].device, args[0].device, not (*args, False)[2]
        else:
            here = there = waits = None
        if there is not None and here.type != torch.device(there).type:
            self.count += 1
            self.waiting += bool(waits)
        return called(*args, **options)


@pytest.mark.parametrize(
    ("objective", "images", "matching"),
    [
        ("gradient", {}, {"inner_epochs": 1, "augment": "dsa"}),
        (
            "gradient",
            {"factor": 2, "averaging": 0.9},
            {"learner_training": "real", "learner_cutmix": True, "augment": "color-crop-cutout"},
        ),
        ("gradient", {"labels": "soft"}, {"learner_training": "pool", "pool": 2, "pool_steps": 1}),
        ("gradient", {"optimizer": "adam"}, {"inner_epochs": 1, "real_batch_choice": "representative"}),
        ("distribution", {}, {"augment": "dsa"}),
    ],
)
def test_an_outer_step_waits_for_its_device_only_at_its_end(
    objective: str, images: dict[str, Any], matching: dict[str, Any]
) -> None:
    own = {} if objective == "distribution" else {"steps": 3}
    made = engine(
        ipc=2,
        images=ImagesConfig(**images),
        matching=MatchingConfig(real_batch=6, updates=2, **own, **matching),
        objective=objective,
        device="meta",  # holds no values: whatever reads one fails
    )
    copies = CopiesThatWait()
    with copies, pytest.raises(NotImplementedError) as read:
        made.outer_step(0)
    assert any("sum_(totals).cpu()" in str(entry.statement) for entry in read.traceback)
    assert copies.count > 10
    assert copies.waiting == 1


def test_more_workers_than_classes_is_refused_and_slices_cover_all_classes() -> None:
    with pytest.raises(ConfigError, match="5 workers for 4 classes"):
        class_slice(4, 0, 5)
    assert [label for rank in range(3) for label in class_slice(10, rank, 3)] == list(range(10))


def test_a_class_smaller_than_the_real_batch_is_drawn_with_replacement() -> None:
    made = engine(matching=MatchingConfig(real_batch=50))
    assert made.replicas[0].batches.at(0).shape == (CLASSES, 50, *SHAPE)


def test_time_is_split_into_the_parts_of_the_step() -> None:
    made = engine(ipc=2)
    made.outer_step(0)
    parts = {"real gradients", "matching", "bits", "image update", "network training", "communication"}
    assert set(made.stopwatch.seconds) == parts
