from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from condense.data.config import DataConfig
from condense.data.sources import open_source
from condense.errors import CheckpointError, ConfigError, NonFiniteError, OutputError, SourceError
from condense.flow.architecture import FlowDescription
from condense.flow.bits import measure
from condense.flow.fit import fit, fresh_state, take_step_
from condense.flow.mixture import random_batch, to_channels
from condense.flow.recipe import FlowFitConfig, learning_rate_at
from condense.flow.store import load_card, load_flow
from condense.pixels import dequantise, to_float, to_uint8
from condense.seeding import generator
from condense.settings import validate
from condense.workers.checkpoints import NoCheckpoints
from condense.workers.collective import Alone
from condense.workers.context import Progress, WorkerContext
from condense.workers.tracking import RecordingTracker
from tests.builders.fits import pictures_in

HELD_OUT = "held_out_bits_per_dim"
TINY = FlowDescription(channels=1, image_size=16, levels=2, steps=1, hidden=4, components=2)
AUTOREGRESSIVE = FlowDescription(
    architecture="autoregressive", channels=1, image_size=16, steps=1, hidden=16, components=2
)


def recipe(folder: Path, **changes: object) -> FlowFitConfig:
    return FlowFitConfig(
        **{
            "name": "tiny",
            "source": "digits",
            "validation_fraction": 0.1,
            "architecture": TINY,
            "steps": 6,
            "batch_size": 8,
            "warmup_steps": 2,
            "initial_images": 32,
            "evaluate_every": 3,
            "evaluation_images": 8,
            "checkpoint_every": 2,
            "augmentation": "crop-flip",
            "blended": 0.1,
            "output": folder / "tiny.safetensors",
            **changes,
        }
    )


class InterruptedFitError(Exception):
    pass


def interrupt_at(step: int):  # type: ignore[no-untyped-def]
    def progress(told: Progress) -> None:
        if told.done == step:
            raise InterruptedFitError

    return progress


def test_fit_stores_a_flow_whose_card_says_how_it_was_made(tmp_path: Path) -> None:
    result = fit(recipe(tmp_path))
    card = load_card(result.path)
    assert load_flow(result.path).digest == result.digest == card["digest"]
    assert card["recipe"]["steps"] == 6
    assert card["held_out"]["digits"]["images"] > 0
    assert [point["step"] for point in card["curve"]] == [3, 6]
    assert list(tmp_path.iterdir()) == [result.path]


def test_the_stated_held_out_bits_are_measured_again(tmp_path: Path) -> None:
    config = recipe(tmp_path)
    result = fit(config)
    data = DataConfig(image_size=16, validation_fraction=config.validation_fraction)
    test = open_source("digits", data, seed=config.seed).load("test").images
    again = measure(load_flow(result.path), test, seed=config.seed).mean
    assert again == pytest.approx(result.card["held_out"]["digits"]["bits_per_dim"], abs=1e-3)


@pytest.mark.parametrize("step", [1, 4, 5])
def test_an_interrupted_and_resumed_fit_is_an_unbroken_one(tmp_path: Path, step: int) -> None:
    unbroken = fit(recipe(tmp_path / "unbroken"))
    broken = recipe(tmp_path / "broken")
    with pytest.raises(InterruptedFitError):
        fit(broken, progress=interrupt_at(step))
    resumed = fit(broken, resume=True)
    assert resumed.digest == unbroken.digest
    assert [point["bits_per_dim"] for point in resumed.card["curve"]] == [
        point["bits_per_dim"] for point in unbroken.card["curve"]
    ]


def test_an_autoregressive_fit_by_muon_is_interrupted_and_resumed_exactly(tmp_path: Path) -> None:
    changes = {"architecture": AUTOREGRESSIVE, "optimiser": "muon", "learning_rate": 2e-4}
    unbroken = fit(recipe(tmp_path / "unbroken", **changes))
    broken = recipe(tmp_path / "broken", **changes)
    with pytest.raises(InterruptedFitError):
        fit(broken, progress=interrupt_at(4))
    assert fit(broken, resume=True).digest == unbroken.digest
    assert load_flow(unbroken.path).description == AUTOREGRESSIVE
    curve = unbroken.card["curve"]
    assert curve[-1]["bits_per_dim"] < curve[0]["bits_per_dim"]


def test_fit_lowers_held_out_bits_and_leaves_the_global_generator_alone(tmp_path: Path) -> None:
    state = torch.get_rng_state()
    told: list[Progress] = []
    fit(recipe(tmp_path, steps=60, evaluate_every=20), progress=told.append)
    assert torch.equal(torch.get_rng_state(), state)
    held_out = [at.values[HELD_OUT] for at in told if HELD_OUT in at.values]
    assert held_out[0] > held_out[1] > held_out[2]


def test_mixed_precision_trains_nearly_the_same_flow(tmp_path: Path) -> None:
    exact = fit(recipe(tmp_path / "float32", steps=30))
    mixed = fit(recipe(tmp_path / "bfloat16", steps=30, precision="bfloat16"))
    bits = [result.card["held_out"]["digits"]["bits_per_dim"] for result in (exact, mixed)]
    assert bits[0] == pytest.approx(bits[1], abs=0.05)
    assert load_flow(mixed.path).digest == mixed.digest


def test_training_starts_from_latents_that_are_white(tmp_path: Path) -> None:
    path = fit(recipe(tmp_path, steps=1, learning_rate=1e-9, augmentation="none", initial_images=512)).path
    images = open_source("digits", DataConfig(image_size=16), seed=0).load("train").images[:256]
    noise = torch.rand(images.shape, generator=torch.Generator().manual_seed(0))
    for z in load_flow(path).encode(dequantise(to_float(images), noise))[0]:
        assert abs(z.mean()) < 0.1
        assert abs(z.std() - 1) < 0.2


def test_training_goes_on_from_a_stored_flow(tmp_path: Path) -> None:
    first = fit(recipe(tmp_path / "first", steps=40, evaluate_every=40))
    second = recipe(tmp_path / "second", steps=4, learning_rate=1e-5, start_from=str(first.path))
    told: list[Progress] = []
    card = fit(second, progress=told.append).card
    assert card["start"]["digest"] == first.digest
    held_out = [at.values[HELD_OUT] for at in told if HELD_OUT in at.values]
    assert held_out[-1] == pytest.approx(first.card["curve"][-1]["bits_per_dim"], abs=0.05)


def test_starting_from_another_architecture_is_refused(tmp_path: Path) -> None:
    first = fit(recipe(tmp_path / "first"))
    wider = TINY.model_copy(update={"hidden": 5})
    with pytest.raises(ConfigError, match="another architecture"):
        fit(recipe(tmp_path / "second", architecture=wider, start_from=str(first.path)))


def test_a_checkpoint_of_another_recipe_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InterruptedFitError):
        fit(recipe(tmp_path), progress=interrupt_at(5))
    with pytest.raises(CheckpointError, match="another recipe"):
        fit(recipe(tmp_path, learning_rate=1e-3), resume=True)


def test_a_truncated_checkpoint_is_refused(tmp_path: Path) -> None:
    config = recipe(tmp_path)
    with pytest.raises(InterruptedFitError):
        fit(config, progress=interrupt_at(5))
    config.checkpoint.write_bytes(config.checkpoint.read_bytes()[:2000])
    with pytest.raises(CheckpointError, match="checkpoint"):
        fit(config, resume=True)


def test_a_diverging_fit_stops_at_the_step(tmp_path: Path) -> None:
    with pytest.raises(NonFiniteError, match="step 2"):
        fit(recipe(tmp_path, learning_rate=1e30))
    assert not (tmp_path / "tiny.safetensors").exists()


def test_several_sources_are_mixed_and_each_is_held_out(tmp_path: Path) -> None:
    folder = pictures_in(tmp_path / "pictures", np.random.default_rng(0).integers(0, 256, (40, 16, 16, 3)))
    result = fit(recipe(tmp_path, source=("digits", f"folder:{folder}")))
    assert set(result.card["held_out"]) == set(result.card["sources"]) == {"digits", "pictures"}


def test_two_sources_of_one_name_stay_apart(tmp_path: Path) -> None:
    draws = np.random.default_rng(0)
    folders = [pictures_in(tmp_path / at / "set", draws.integers(0, 256, (40, 16, 16, 3))) for at in "ab"]
    result = fit(recipe(tmp_path, source=tuple(f"folder:{folder}" for folder in folders)))
    assert set(result.card["held_out"]) == set(result.card["sources"]) == {"set", "set-2"}


def test_an_unwritable_output_is_found_before_training(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError):
        fit(recipe(tmp_path, output=tmp_path / "file" / "flow.safetensors"), progress=interrupt_at(1))


def test_constant_images_are_refused(tmp_path: Path) -> None:
    folder = pictures_in(tmp_path / "grey", np.full((40, 16, 16, 3), 77))
    with pytest.raises(SourceError, match="one grey level"):
        fit(recipe(tmp_path, source=f"folder:{folder}"))


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("side", [16, 32, 64, 128])
def test_every_stated_size_can_be_fitted(side: int, channels: int, tmp_path: Path) -> None:
    draws = np.random.default_rng(0)
    folder = pictures_in(tmp_path / "pictures", draws.integers(0, 256, (24, side, side, 3)))
    sized = TINY.model_copy(update={"image_size": side, "channels": channels})
    result = fit(recipe(tmp_path, source=f"folder:{folder}", architecture=sized, steps=2, batch_size=2))
    assert load_flow(result.path).shape == (channels, side, side)


@pytest.mark.parametrize("values", [{"image_size": 24}, {"image_size": 256}, {"channels": 2}, {"levels": 4}])
def test_a_size_that_no_flow_has_is_refused(values: dict[str, int], tmp_path: Path) -> None:
    architecture = {**TINY.model_dump(), **values}
    with pytest.raises(ConfigError, match=r"key 'architecture"):
        validate(FlowFitConfig, {"source": "digits", "architecture": architecture}, where="recipe")


def test_more_workers_than_images_in_a_batch_are_refused() -> None:
    with pytest.raises(ConfigError, match="workers <= batch_size"):
        validate(FlowFitConfig, {"source": "digits", "batch_size": 4, "workers": 5}, where="recipe")


def test_a_fit_is_followed_while_it_runs(tmp_path: Path) -> None:
    tracker = RecordingTracker()
    result = fit(recipe(tmp_path), tracker=tracker)
    assert [step for step, _ in tracker.rows["train_bits_per_dim"]] == [1, 2, 3, 4, 5, 6]
    assert [round(bits, 4) for _, bits in tracker.rows[HELD_OUT]] == [at["bits_per_dim"] for at in result.card["curve"]]
    assert tracker.rows["learning_rate"][0][1] == learning_rate_at(recipe(tmp_path), 0)
    assert [step for step, _ in tracker.pictures["samples"]] == [3, 6]


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_the_shares_of_a_batch_add_up_to_its_gradient(precision: str, tmp_path: Path) -> None:
    config = recipe(tmp_path, batch_size=7, precision=precision)  # 7 is no multiple of the workers
    whole, *parts = (gradients(config, share) for share in (Share(0, 1), Share(0, 3), Share(1, 3), Share(2, 3)))
    scale = max(float(gradient.abs().max()) for gradient in whole)
    bound = 1e-5 if precision == "float32" else 0.02  # of the largest
    for together, *apart in zip(whole, *parts, strict=True):
        torch.testing.assert_close(sum(apart), together, rtol=0, atol=bound * scale)


def test_where_a_fit_works_is_no_part_of_its_identity(tmp_path: Path) -> None:
    one = recipe(tmp_path).identity()
    assert recipe(tmp_path / "elsewhere", workers=2, storage="there", tracking_uri="none").identity() == one
    assert recipe(tmp_path, learning_rate=1e-4).identity() != one


def test_grey_data_is_not_counted_three_times(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"architecture\.channels=1"):
        fit(recipe(tmp_path, architecture=TINY.model_copy(update={"channels": 3})))


def test_colour_becomes_grey_by_its_luminance() -> None:
    colour = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (5, 3, 16, 16), dtype=np.uint8))
    grey = to_channels(colour, 1, "test")
    pillow = [np.asarray(Image.fromarray(image.permute(1, 2, 0).numpy()).convert("L")) for image in colour]
    assert (grey[:, 0].int() - torch.from_numpy(np.stack(pillow)).int()).abs().max() <= 1


def test_blended_images_are_8_bit_and_some_are_constant_or_noise() -> None:
    images = torch.randint(64, 192, (50, 1, 16, 16), generator=generator(0, "images"), dtype=torch.uint8)
    plain = random_batch(images, 400, "none", generator(0, "batch"))
    mixed = random_batch(images, 400, "none", generator(0, "batch"), blended=0.5)
    assert torch.equal(to_float(to_uint8(mixed)), mixed)
    changed = (mixed != plain).flatten(1).any(1)
    assert 0.4 < changed.float().mean() < 0.6
    spread = mixed.flatten(1).std(1)
    assert (spread == 0).any()
    assert spread.max() > 0.27 > plain.flatten(1).std(1).max()


def test_the_learning_rate_warms_up_and_falls_to_nearly_nothing(tmp_path: Path) -> None:
    config = recipe(tmp_path, steps=100, warmup_steps=10, learning_rate=1.0)
    rates = [learning_rate_at(config, step) for step in range(100)]
    assert rates[0] < 0.1 < rates[5] < rates[10]
    assert rates[10:] == sorted(rates[10:], reverse=True)
    assert rates[-1] < 1e-3
    assert learning_rate_at(config.model_copy(update={"schedule": "constant"}), 99) == 1.0


class Share(Alone):
    """One of several workers, whose sums hold what it gave alone."""

    def __init__(self, rank: int, size: int) -> None:
        self.rank, self.size = rank, size


def gradients(config: FlowFitConfig, share: Share) -> list[torch.Tensor]:
    """What one worker adds to the gradient of the first step."""
    images = open_source("digits", DataConfig(image_size=16), seed=0).load("train").images
    context = WorkerContext(share, RecordingTracker(), NoCheckpoints(), lambda at: None, torch.device("cpu"))
    state = fresh_state(config, images, replace(context, collective=Alone()))
    take_step_(state, config, images, context)
    return [parameter.grad for parameter in state.flow.parameters() if parameter.grad is not None]
