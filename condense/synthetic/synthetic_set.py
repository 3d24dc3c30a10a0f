"""Holds the synthetic set: parameters, which give images in [0, 1].

v = bound(alpha), rounded to the 8-bit grid with a straight-through gradient. So the classifier, the flow and the file
on disk see one and the same image. There are two bounds, of the same slope in the middle:

    sigmoid   v = 1 / (1 + exp(-alpha))       (Schirrmeister et al. 2022); flat near black and white
    clamp     v = min(max(1/2 + alpha / 4, 0), 1); black and white, which cost few bits, are reached in finite steps

and two parameterisations of alpha:

    pixels    alpha itself
    pyramid   alpha = sum over levels l of the parameters at 1 / 2^l of the side, enlarged bilinearly; coarse levels
              move whole regions at once, so that simple images are reached in fewer steps

Labels are the classes that the images are made for, or soft ones, which are parameters too (soft_labels.py).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from condense import seeding
from condense.pixels import round_straight_through, to_float, to_uint8
from condense.synthetic.config import ImagesConfig
from condense.synthetic.controls import kmeans_real
from condense.synthetic.decoder import tile
from condense.synthetic.soft_labels import label_codes, soft_labels

COARSEST = 2  # side of the pyramid's last level

# Real images start at most this close to black and white: sigmoid has no gradient at its ends.
CLAMP = 0.02


class SyntheticSet:
    """Holds `ipc` images for each of the classes that one worker owns.

    Attributes:
        parameters: (C, ipc, channels, H / 2^l, W / 2^l) for each level l, unconstrained; one level is plain pixels.
            Where labels are soft, their logits (C, ipc, classes of the whole set) come last.
        levels: how many of the parameters are pixels.
        averages: of the parameters over updates, one by one; None where the parameters are the result.
        owned: the label of each row.
        classes: the same on the device, (C,) int64.
        factor: each image is a canvas of factor^2 images that learners see.
    """

    def __init__(
        self,
        parameters: Sequence[Tensor],
        owned: range,
        bound: Literal["sigmoid", "clamp"] = "clamp",
        factor: int = 1,
        averaging: float = 0.0,
        logits: Tensor | None = None,
    ) -> None:
        """
        Args:
            parameters: of the pixels, level by level.
            averaging: weight of the past in `averages`.
            logits: of soft labels; None is hard labels.
        """
        self.levels = len(parameters)
        parameters = [*parameters] if logits is None else [*parameters, logits]
        self.bound = torch.sigmoid if bound == "sigmoid" else clamp
        self.averages = [parameter.clone() for parameter in parameters] if averaging else None
        self.averaging, self.averaged = averaging, 0
        self.parameters = [parameter.requires_grad_() for parameter in parameters]
        self.owned, self.factor = owned, factor
        self.classes = torch.tensor(owned).to(self.parameters[0].device)

    @property
    def alpha(self) -> Tensor:
        """(C, ipc, channels, H, W), unconstrained, differentiable in the parameters."""
        return self._summed(self.parameters)

    def _summed(self, parameters: Sequence[Tensor]) -> Tensor:
        finest, *coarser = parameters[: self.levels]
        alpha = finest
        for level in coarser:
            enlarged = interpolate(level.flatten(0, 1), size=finest.shape[-2:], mode="bilinear", align_corners=False)
            alpha = alpha + enlarged.view_as(finest)
        return alpha

    def images(self) -> Tensor:
        """Returns the images (C, ipc, channels, H, W) in [0, 1] on the 8-bit grid, with a straight-through gradient."""
        return round_straight_through(self.bound(self.alpha))

    def images_uint8(self) -> Tensor:
        """Returns the bytes that are evaluated and written, uint8 (C, ipc, channels, H, W)."""
        with torch.no_grad():
            return to_uint8(self.bound(self._summed(self.averages or self.parameters)))

    def soft_labels(self) -> Tensor | None:
        """Returns soft labels (C, ipc, classes of the whole set), differentiable in their logits; None where labels are
        hard.
        """
        return None if self.levels == len(self.parameters) else soft_labels(self.parameters[-1])

    def label_codes(self) -> Tensor | None:
        """Returns the bytes of the labels that are evaluated and written, uint8 (C, ipc, classes of the whole set), or
        None.
        """
        with torch.no_grad():
            return None if self.levels == len(self.parameters) else label_codes((self.averages or self.parameters)[-1])

    @torch.no_grad()
    def average_(self) -> None:
        """Takes the parameters into their average, where there is one. Call it after each update.

        The first averages are short, so that the start is forgotten: of n updates the last tenth or so counts.
        """
        if self.averages is None:
            return
        self.averaged += 1
        weight = 1 - min(self.averaging, self.averaged / (self.averaged + 10))
        torch._foreach_lerp_(self.averages, list(self.parameters), weight)

    def copy_parameters(self) -> list[Tensor]:
        """Returns copies of the parameters, to start again from."""
        return [parameter.detach().clone() for parameter in self.parameters]

    @torch.no_grad()
    def set_parameters_(self, parameters: Sequence[Tensor]) -> None:
        """Sets the parameters to those of `copy_parameters`, and begins their average anew."""
        for parameter, start in zip(self.parameters, parameters, strict=True):
            parameter.copy_(start)
        self.averaged = 0

    @property
    def ipc(self) -> int:
        """Images per class."""
        return self.parameters[0].shape[1]

    @property
    def labels(self) -> Tensor:
        """(C, ipc) int64: the classes that the images are made for."""
        return self.classes[:, None].expand(-1, self.ipc)


class _Clamp(torch.autograd.Function):
    """Clamps to [0, 1]. Its gradient is the identity's, except where a descent step would leave [0, 1] further."""

    @staticmethod
    def forward(ctx: Any, values: Tensor) -> Tensor:
        ctx.save_for_backward(values)
        return values.clamp(0, 1)

    @staticmethod
    def backward(ctx: Any, *outputs: Tensor) -> Tensor:
        (values,) = ctx.saved_tensors
        gradient = outputs[0]
        leaves = ((values <= 0) & (gradient > 0)) | ((values >= 1) & (gradient < 0))
        return torch.where(leaves, torch.zeros_like(gradient), gradient)


def clamp(alpha: Tensor) -> Tensor:
    """Returns min(max(1/2 + alpha / 4, 0), 1). Its gradient lets a value at a bound come back."""
    bounded: Tensor = _Clamp.apply(0.5 + alpha / 4)
    return bounded


def initial_set(
    config: ImagesConfig,
    real: Sequence[Tensor],
    classes: range,
    ipc: int,
    *,
    seed: int,
    start: Tensor | None = None,
    logits: Tensor | None = None,
) -> SyntheticSet:
    """Makes a new synthetic set for `classes`. Each class has its own draws, whoever owns it.

    Args:
        config: the initialisation: "noise" is alpha ~ 0.2 N(0, 1), the others are of images.
        real: the classes' real images, uint8 (n_c, channels, H, W) each.
        classes: the labels of the classes in `real`.
        ipc: images per class.
        seed: the run's seed.
        start: the images of a set to start from, uint8 (len(classes), ipc, channels, H, W).
        logits: of soft labels, (len(classes), ipc, classes of the whole set); None is hard labels.
    """
    rows = []
    for index, (label, images) in enumerate(zip(classes, real, strict=True)):
        draws = seeding.generator(seed, "initial-images", index=label)
        if config.init == "noise":
            rows.append(0.2 * torch.randn((ipc, *images.shape[1:]), generator=draws))
        else:
            chosen = to_float(start[index]) if start is not None else _start(config, images, label, ipc, seed, draws)
            rows.append((torch.logit(chosen, eps=CLAMP) if config.bound == "sigmoid" else 4 * (chosen - 0.5)).cpu())
    device = real[0].device
    parameters = [torch.stack(rows).to(device)]
    if config.parameterisation == "pyramid":
        side = parameters[0].shape[-1] // 2
        while side >= COARSEST:
            parameters.append(torch.zeros((*parameters[0].shape[:-2], side, side), device=device))
            side //= 2
    if logits is not None:
        logits = logits.to(device)
    return SyntheticSet(parameters, classes, config.bound, config.factor, config.averaging, logits)


def _start(config: ImagesConfig, images: Tensor, label: int, ipc: int, seed: int, draws: torch.Generator) -> Tensor:
    """Makes the images that a class starts from, (ipc, channels, H, W) in [0, 1], of real ones, uint8 (n, channels, H,
    W).
    """
    if config.init == "kmeans":
        return to_float(kmeans_real([images], range(label, label + 1), ipc, seed=seed)[0])
    per_canvas = config.factor**2 if config.init == "tiles" else 1
    rows = torch.randperm(len(images), generator=draws)
    rows = rows.repeat(-(-ipc * per_canvas // len(rows)))[: ipc * per_canvas]  # again from the first where too few
    chosen = to_float(images[rows.to(images.device)])
    return tile(chosen, config.factor) if config.init == "tiles" else chosen


def build_optimizer(config: ImagesConfig, synthetic: SyntheticSet) -> torch.optim.Optimizer:
    """Returns the optimiser of a set's parameters, at its initial learning rates: pixels, then soft labels if there are
    any.
    """
    pixels, labels = synthetic.parameters[: synthetic.levels], synthetic.parameters[synthetic.levels :]
    groups: list[dict[str, Any]] = [{"params": pixels, "lr": config.learning_rate}]
    if labels:
        groups.append({"params": labels, "lr": config.label_learning_rate})
    if config.optimizer == "adam":
        return torch.optim.Adam(groups, betas=config.betas)
    return torch.optim.SGD(groups, momentum=config.momentum)
