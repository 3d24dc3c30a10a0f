"""Makes every random generator.

A generator is named by what it is for: seed, purpose, step, class, replica. It depends neither on a rank, a world size
or a clock, nor on how many numbers were drawn before. So a resumed run, and a run on another mesh, draw the same
numbers.
"""

from __future__ import annotations

import hashlib

import torch


def derived_seed(seed: int, purpose: str, *, step: int = 0, index: int = 0, replica: int = 0) -> int:
    """Returns a 63-bit seed that depends on every argument; unequal arguments give unrelated seeds."""
    name = f"{seed}/{purpose}/{step}/{index}/{replica}".encode()
    return int.from_bytes(hashlib.blake2b(name, digest_size=8).digest(), "little") >> 1


def generator(
    seed: int,
    purpose: str,
    *,
    step: int = 0,
    index: int = 0,
    replica: int = 0,
    device: torch.device | str = "cpu",
) -> torch.Generator:
    """Returns a fresh generator for one purpose.

    Args:
        seed: the run's seed.
        purpose: what is drawn, in words: "learner", "real-batch", "dequantisation" ...
        step: the outer step (or any counter that a resumed run knows again).
        index: the class or image index, where each has its own draws.
        replica: the network replica.
        device: where the numbers are drawn. Draws differ between CPU and CUDA.
    """
    made = torch.Generator(device=device)
    # The CPU engine keeps 32 bits of its seed; the hash spreads every argument over them.
    made.manual_seed(derived_seed(seed, purpose, step=step, index=index, replica=replica) & 0xFFFFFFFF)
    return made
