"""Instance norm, ReLU and average pool of a ConvNet in PyTorch's operations, with their second derivative.

They compute what norm_relu_pool.c computes, on GPUs and on machines without a compiler. PyTorch would differentiate the
norm's gradient operation by operation, some hundred of them a block. In closed form, with x = (z - mean) r the
normalised plane, g the gradient at a = gamma x + beta, s = gamma r, and <.> the mean of a plane:

    at z     to_z = s (g - <g> - x <g x>)
    twice    of sum(v to_z), at g: s (v - <v> - x <v x>)
             at z: -r s (v <g x> + g <v x> - <v> <g x> - <g> <v x> + x (<v g> - <v> <g> - 3 <g x> <v x>))
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

PLANE = (2, 3)


def norm_relu_pool(
    activation: Tensor, gamma: Tensor, beta: Tensor, eps: float
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """avg_pool2d(relu(instance_norm(z) * gamma + beta), 2) of z (N, C, H, W), and what its gradient needs.

    z is contiguous: a GPU's norm asks for that, and does not check it.
    """
    count, channels, height, width = activation.shape
    normed, mean, rstd = torch.native_group_norm(
        activation, gamma, beta, count, channels, height * width, channels, eps
    )
    return F.avg_pool2d(F.relu(normed), 2), mean, rstd, normed


def norm_relu_pool_gradient(
    activation: Tensor, gradient: Tensor, gamma: Tensor, beta: Tensor, mean: Tensor, rstd: Tensor, normed: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Returns gradients at z, gamma and beta of `norm_relu_pool`, given that at its result; no graph."""
    count, channels, height, width = activation.shape
    found: tuple[Tensor, Tensor, Tensor] = torch.ops.aten.native_group_norm_backward(
        _to_normed(gradient, normed),
        activation,
        mean,
        rstd,
        gamma,
        count,
        channels,
        height * width,
        channels,
        [True, True, True],
    )
    return found


def norm_relu_pool_twice(
    activation: Tensor,
    gradient: Tensor,
    v: Tensor,
    gamma: Tensor,
    beta: Tensor,
    mean: Tensor,
    rstd: Tensor,
    normed: Tensor,
) -> tuple[Tensor, Tensor]:
    """Returns gradients at `gradient` and at z of sum(v * to_z), to_z as of `norm_relu_pool_gradient`."""
    wide = torch.promote_types(activation.dtype, torch.float32)
    z, v, g = (whole.to(wide) for whole in (activation, v, _to_normed(gradient, normed)))
    mean, rstd = (of_plane[:, :, None, None].to(wide) for of_plane in (mean, rstd))
    x, scale = (z - mean) * rstd, rstd * gamma.to(wide)[:, None, None]
    mean_v, mean_g = v.mean(PLANE, keepdim=True), g.mean(PLANE, keepdim=True)
    vx, gx, vg = ((a * b).mean(PLANE, keepdim=True) for a, b in ((v, x), (g, x), (v, g)))
    to_g = scale * (v - mean_v - x * vx)
    along_x = vg - mean_v * mean_g - 3 * gx * vx
    to_z = -(rstd * scale) * (v * gx + g * vx + x * along_x - (mean_v * gx + mean_g * vx))
    positive = torch.ops.aten.threshold_backward(to_g.to(normed.dtype), normed, 0)
    return F.avg_pool2d(positive, 2), to_z.to(activation.dtype)


def _to_normed(gradient: Tensor, normed: Tensor) -> Tensor:
    """From the gradient at the pooled to that at the normed activations, before the ReLU."""
    pooled = torch.ops.aten.avg_pool2d_backward(gradient, normed, [2, 2], [2, 2], [0, 0], False, True, None)
    positive: Tensor = torch.ops.aten.threshold_backward(pooled, normed, 0)
    return positive.contiguous()
