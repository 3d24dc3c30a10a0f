"""A checkpoint's file: an exact round trip, and no byte of it can change unnoticed."""

from __future__ import annotations

import contextlib

import pytest
import torch

from condense.errors import CheckpointError
from condense.files import pack_tensors
from condense.workers.checkpoints import Checkpoint, pack, unpack

TENSORS = {
    "0.parameter": torch.linspace(-1, 1, 12).view(3, 4),
    "waiting.2.images": torch.arange(24, dtype=torch.uint8).view(2, 3, 4),
    "half": torch.ones(3, dtype=torch.bfloat16),
    "empty": torch.zeros(0),
}
SCALARS = {"schedule.total": 40.0, "attempt.0.weight": 0.1, "count": 3}
WHOLE = Checkpoint(7, "identity", TENSORS, SCALARS)


def test_a_checkpoint_comes_back_as_it_was() -> None:
    found = unpack(pack(WHOLE), "here")
    assert (found.step, found.identity, found.scalars) == (7, "identity", SCALARS)
    assert found.tensors.keys() == TENSORS.keys()
    assert all(torch.equal(found.tensors[name], tensor) for name, tensor in TENSORS.items())


def test_no_byte_can_change_unnoticed() -> None:
    content = pack(WHOLE)
    for place in range(len(content)):
        altered = bytearray(content)
        altered[place] ^= 1
        with contextlib.suppress(CheckpointError):
            found = unpack(bytes(altered), "here")  # a byte that means nothing, such as the header's padding
            assert (found.step, found.identity, found.scalars) == (7, "identity", SCALARS)
            assert all(torch.equal(found.tensors[name], tensor) for name, tensor in TENSORS.items())


def test_a_flipped_byte_of_a_tensor_is_named() -> None:
    altered = bytearray(pack(WHOLE))
    altered[-1] ^= 1
    with pytest.raises(CheckpointError, match="does not have the checksum that it was written with"):
        unpack(bytes(altered), "here")


def test_a_checkpoint_of_the_first_version_which_has_no_checksum_is_read() -> None:
    old = pack_tensors(TENSORS, {"step": 7, "identity": "identity", "scalars": SCALARS})
    assert unpack(old, "here").step == 7
