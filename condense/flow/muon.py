"""Muon: Adam, with orthogonalised momentum for the matrices between features (Jordan et al. 2024).

A matrix W moves by  -rate (sqrt(max(1, rows / columns)) U V^T + decay W),  with U S V^T the singular value
decomposition of its Nesterov momentum, found to bfloat16's precision by five Newton-Schulz steps of degree 5. A
convolution's kernel is the matrix (outputs, inputs * height * width).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn

MIN_SIDE = 16  # of a matrix
_WEIGHT_DECAY = 0.1  # of matrices, times their rate: without it they grow and their units fall silent
_MOMENTUM = 0.95
_NEWTON_SCHULZ_STEPS = 5
# Of the odd polynomial a s + b s^3 + c s^5, chosen there for its slope at 0; singular values end within 0.7 to 1.2.
_COEFFICIENTS = (3.4445, -4.7750, 2.0315)


class Muon(torch.optim.Adam):
    """Adam; matrices among the parameters move along their orthogonalised momentum instead.

    A matrix is a convolution's weight (outputs, inputs, height, width) with at least MIN_SIDE outputs and inputs. State
    is as Adam's: the momentum of a matrix is its `exp_avg`, its `exp_avg_sq` stays zero.

    Args:
        parameters: all of them.
        lr: of Adam.
        matrix_rate: of the matrices, in units of `lr`, so that one schedule serves both.
    """

    def __init__(self, parameters: Iterable[nn.Parameter], lr: float, matrix_rate: float = 32.0) -> None:
        everything = list(parameters)
        super().__init__(everything, lr=lr, betas=(0.9, 0.99))
        self._matrices = [p for p in everything if p.ndim == 4 and min(p.shape[:2]) >= MIN_SIDE]
        self._matrix_rate = matrix_rate

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Returns one step with the gradients that the parameters have."""
        gradients = [matrix.grad for matrix in self._matrices]
        for matrix in self._matrices:
            matrix.grad = None  # Adam passes by what has none
        loss: float | None = super().step(closure)
        rate = self.param_groups[0]["lr"] * self._matrix_rate
        for matrix, gradient in zip(self._matrices, gradients, strict=True):
            matrix.grad = gradient
            if gradient is None:
                continue
            state = self.state[matrix]
            if not state:
                state["step"] = torch.tensor(0.0)
                state["exp_avg"], state["exp_avg_sq"] = torch.zeros_like(matrix), torch.zeros_like(matrix)
            state["step"] += 1
            momentum = state["exp_avg"].lerp_(gradient, 1 - _MOMENTUM)
            rows = gradient.lerp(momentum, _MOMENTUM)
            shape = rows.permute(0, 2, 3, 1).shape
            direction = orthogonalise(rows.permute(0, 2, 3, 1).flatten(1))
            scale = max(1.0, direction.shape[0] / direction.shape[1]) ** 0.5
            matrix.mul_(1 - rate * _WEIGHT_DECAY)
            matrix.sub_(direction.to(matrix.dtype).view(shape).permute(0, 3, 1, 2), alpha=rate * scale)
        return loss


def orthogonalise(matrix: Tensor) -> Tensor:
    """About U V^T of the singular value decomposition of a (rows, columns) matrix, in bfloat16."""
    x = matrix.to(torch.bfloat16)
    wide = x.shape[0] <= x.shape[1]
    x = x if wide else x.T
    x = x / (x.norm() + 1e-7)
    a, b, c = _COEFFICIENTS
    for _ in range(_NEWTON_SCHULZ_STEPS):
        square = x @ x.T
        x = torch.addmm(x, torch.addmm(square, square, square, beta=b, alpha=c), x, beta=a)
    return x if wide else x.T
