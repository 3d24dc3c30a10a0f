"""Checks that a flow's weights make it a density. Every file is asked before it measures anything.

A density needs a map that can be inverted, and the determinant of that very map. Weights alone can break both: the
"permutation" of a file may be any matrix, and a diagonal may vanish. Three questions are asked of grey images:

- Round trip: do the latents give the image back?
- Log-determinant: does what every layer says, at one place of an image, equal the Jacobian of autograd, in float64?
- Rounding: does float32, in which bits are measured, give the bits of float64?

The base density needs no question: a mixture of logistics is normalised whatever its weights are.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from condense.errors import FlowError
from condense.flow.architecture import Bijection, Flow
from condense.pixels import LEVELS, dequantise, to_float
from condense.seeding import generator

# A thousand times the error of the shipped flows (7e-6, benchmarks/flow); less than three 8-bit levels.
_ROUND_TRIP_TOLERANCE = 1e-2
# In nats per dimension, float64: rounding alone gives 1e-9 and less.
_LOG_DETERMINANT_TOLERANCE = 1e-6
# In bits per dimension: a hundred times the error of the shipped flows (benchmarks/flow).
_ROUNDING_TOLERANCE = 1e-3


def check_exact(flow: Flow, exact: Flow, where: str) -> None:
    """Asks the three questions of the module's docstring.

    Args:
        flow: frozen, float32, as it will measure.
        exact: the same in float64, not frozen.
        where: names the flow in the error.

    Raises:
        FlowError: it is not a density.
    """
    x = dequantise(to_float(_probes(flow.shape))).to(next(flow.parameters()).device)
    one = x[-1:].double()
    with torch.no_grad():
        log_prob = flow.log_prob(x).double()
        rounding = float((log_prob[-1] - exact.log_prob(one)).abs()) / (math.log(2) * math.prod(flow.shape))
        try:
            round_trip = float((flow.reconstruct(x) - x).abs().max())
        except torch.linalg.LinAlgError:  # type: ignore[attr-defined]
            round_trip = math.inf
    determinant = log_determinant_error(exact, one)
    problem = ""
    if not bool(log_prob.isfinite().all()):
        problem = "its densities are not finite"
    elif not round_trip <= _ROUND_TRIP_TOLERANCE:
        problem = f"images come back from their latents with an error of {round_trip:.2g}"
    elif not determinant <= _LOG_DETERMINANT_TOLERANCE:
        problem = f"log-determinants are off by {determinant:.2g} nats per dimension, so it is not normalised"
    elif not rounding <= _ROUNDING_TOLERANCE:
        problem = f"its bits in float32 are off by {rounding:.2g} per dimension"
    if problem:
        raise FlowError(
            f"flow file {where} is not exact: {problem}",
            "its training diverged, or the file was altered: train it again, or take another copy",
        )


def log_determinant_error(flow: Flow, x: Tensor) -> float:
    """Returns the largest error of any layer's log-determinant in nats per dimension, each at one place of x (1, C, H,
    W).
    """
    errors = [_bijection_error(bijection, at.detach()) for bijection, at in flow.bijections(x)]
    return max(errors, key=lambda error: math.inf if math.isnan(error) else error)


def _bijection_error(bijection: Bijection, x: Tensor) -> float:
    """Of one layer at x (1, C, h, w)."""
    dims = x.numel()
    # One copy of x for each output: the gradient of output i of copy i is row i of the Jacobian.
    copies = x.expand(dims, *x.shape[1:]).clone().requires_grad_()
    with torch.enable_grad():
        z, log_abs_det = bijection(copies)
        (rows,) = torch.autograd.grad(z.flatten(1).diagonal().sum(), copies)
    expected = torch.linalg.slogdet(rows.flatten(1)).logabsdet
    return float((log_abs_det[0].detach() - expected).abs()) / dims


def _probes(shape: tuple[int, int, int]) -> Tensor:
    """Grey uint8 images with no, little and more noise.

    Not noise over all levels: there latents of an exact flow that never saw any can outgrow float32's digits.
    """
    spread = torch.tensor([0, 8, 32])[:, None, None, None]
    noise = torch.rand((3, *shape), generator=generator(0, "flow-probe"))
    return (LEVELS // 2 + spread * (noise - 0.5)).to(torch.uint8)
