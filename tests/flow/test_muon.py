from __future__ import annotations

import pytest
import torch
from torch import nn

from condense.flow.muon import Muon, orthogonalise
from condense.seeding import generator


@pytest.mark.parametrize("shape", [(16, 16), (16, 48), (48, 16)])
def test_orthogonalised_matrices_keep_directions_and_lose_lengths(shape: tuple[int, int]) -> None:
    matrix = torch.randn(shape, generator=generator(0, "matrix"))
    u, values, v = torch.linalg.svd(matrix, full_matrices=False)
    along = u.T @ orthogonalise(matrix).float() @ v.T
    assert values.max() > 2 * values.min()
    assert ((along.diagonal() > 0.5) & (along.diagonal() < 1.3)).all()
    assert (along - along.diagonal().diag()).abs().max() < 0.1


def test_matrices_alone_move_by_equal_lengths_in_all_directions() -> None:
    matrix, narrow, bias = (nn.Parameter(torch.zeros(shape)) for shape in ((16, 32, 3, 3), (8, 32, 1, 1), (16,)))
    optimiser = Muon([matrix, narrow, bias], lr=0.01)
    for parameter in (matrix, narrow, bias):
        parameter.grad = torch.randn(parameter.shape, generator=generator(1, "gradient"))
    optimiser.step()
    lengths = torch.linalg.svdvals(matrix.detach().permute(0, 2, 3, 1).flatten(1))
    assert ((lengths > 0.5 * 32 * 0.01) & (lengths < 1.3 * 32 * 0.01)).all()
    for parameter in (narrow, bias):  # Adam's first step is the rate, with the gradient's opposite sign
        assert parameter.grad is not None
        torch.testing.assert_close(parameter.detach(), -0.01 * parameter.grad.sign())
