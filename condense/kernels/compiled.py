"""Builds the C kernels of this folder on first use, and calls them on as many threads as PyTorch has.

They are built with the machine's own C compiler, for its own processor, into the user's cache folder. The file ends
with the SHA-256 of what is before it, which is compared before it is loaded: code that was cut short would end the
process. Where they cannot be built, `available` is False, and callers take PyTorch's operations, which give the same
within rounding.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import logging
import os
import platform
import shutil
import subprocess
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor

from condense.errors import CapacityError, OutputError
from condense.files import check_folder_writable, scratch_folder, write_whole

T = TypeVar("T")

log = logging.getLogger(__name__)

SOURCES = [
    Path(__file__).with_name(name)
    for name in ("activations.h", "norm_relu_pool.c", "shared_sum.c", "few_channels.c", "winograd.c", "winograd.h")
]
FLAGS = ("-O3", "-march=native", "-fno-math-errno", "-fno-trapping-math", "-shared", "-fPIC")
MOST_CHANNELS = 1024  # as in norm_relu_pool.c: sums of one image's channels stand on the stack
WORTH_A_THREAD = 1 << 17  # numbers of an activation; below, starting a thread costs more than it saves
DIGEST_BYTES = hashlib.sha256().digest_size
SLOWER = (
    "PyTorch's operations are used, so a run on a CPU takes two to three times as long,"
    " and its digest differs from that of a run with the kernels"
)
WITHOUT_SCRATCH = ("forward", "backward", "twice")  # the others may find no memory
_SUFFIX = {torch.float32: "float", torch.bfloat16: "bfloat"}


@functools.cache
def load_library() -> ctypes.CDLL | None:
    """Builds the kernels if they are not built whole, and returns them; None, with a warning, where that fails."""
    compiler = next((found for name in ("cc", "gcc", "clang") if (found := shutil.which(name))), None)
    if compiler is None or platform.system() != "Linux":
        log.warning("no gcc or clang on Linux here: %s", SLOWER)
        return None
    processor = Path("/proc/cpuinfo").read_text().partition("\n\n")[0] if Path("/proc/cpuinfo").exists() else ""
    flags = next((line for line in processor.splitlines() if line.startswith("flags")), platform.machine())
    sources = b"".join(source.read_bytes() for source in SOURCES)
    identity = hashlib.sha256(sources + " ".join((*FLAGS, compiler, flags)).encode()).hexdigest()[:16]
    try:
        folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "condense"
        path = folder / f"kernels-{identity}.so"
        if not _is_whole(path):
            check_folder_writable(folder)
            code = _compile(compiler)
            write_whole(path, code + hashlib.sha256(code).digest())
        return ctypes.CDLL(str(path))
    except subprocess.CalledProcessError as error:
        said = error.stderr.decode(errors="replace").strip().splitlines()
        log.warning("%s cannot build the kernels (%s): %s", compiler, said[0] if said else error, SLOWER)
    except OutputError as error:
        log.warning("%s; set XDG_CACHE_HOME to a folder of yours: %s", error.problem, SLOWER)
    except (OSError, RuntimeError, subprocess.SubprocessError) as error:
        log.warning("the kernels cannot be built or loaded (%s): %s", error, SLOWER)
    return None


def _is_whole(path: Path) -> bool:
    try:
        content = path.read_bytes()
    except OSError:
        return False
    return hashlib.sha256(content[:-DIGEST_BYTES]).digest() == content[-DIGEST_BYTES:]


def _compile(compiler: str) -> bytes:
    """Returns the shared library; raises OSError or SubprocessError."""
    with scratch_folder() as beside:
        made = beside / "kernels.so"
        compiled = [str(source) for source in SOURCES if source.suffix == ".c"]
        command = [compiler, *FLAGS, "-o", str(made), *compiled, "-lm"]
        subprocess.run(command, check=True, capture_output=True, timeout=300)  # noqa: S603
        return made.read_bytes()


def available(images: Tensor, precision: torch.dtype, channels: int) -> bool:
    """Returns whether the kernels take activations of `precision`, and so many channels, where the images are."""
    fits = images.device.type == "cpu" and precision in _SUFFIX and channels <= MOST_CHANNELS
    return fits and load_library() is not None


def weights_by_tap(weight: Tensor) -> Tensor:
    """Returns weights (..., O, I, 3, 3) as (..., 3, 3, I, O) float32, contiguous."""
    return weight.movedim((-2, -1, -3, -4), (-4, -3, -2, -1)).float().contiguous()


def channels_last(images: Tensor) -> Tensor:
    """Returns images (N, I, H, W) as contiguous (N, H, W, I)."""
    return images.permute(0, 2, 3, 1).contiguous()


@functools.cache
def _pool() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(os.cpu_count(), thread_name_prefix="kernels")


def on_threads(some: Callable[[slice], T], count: int, each: int) -> list[T]:
    """Returns what `some` returns for parts of `count` images, or groups of them, on as many threads as PyTorch has.

    each: numbers in one of them; a few are not worth a second thread.
    """
    parts = max(1, min(torch.get_num_threads(), count, count * each // WORTH_A_THREAD))
    cuts = [count * part // parts for part in range(parts + 1)]
    slices = [slice(start, stop) for start, stop in pairwise(cuts)]
    return [some(slices[0])] if parts == 1 else list(_pool().map(some, slices))


def sum_shares(shares: Sequence[Tensor]) -> Tensor:
    """Sums shares. Of one share it returns the share itself: on one thread nothing is copied."""
    return functools.reduce(torch.add, shares)


def call(name: str, activation: Tensor, *arguments: Tensor | int | ctypes.c_float) -> None:
    """Calls the kernel of that name for activations of this type.

    Raises:
        CapacityError: it found no memory for its scratch.
    """
    library = load_library()
    assert library is not None
    passed = [
        ctypes.c_void_p(value.data_ptr())
        if isinstance(value, Tensor)
        else ctypes.c_int64(value)
        if isinstance(value, int)
        else value
        for value in (activation, *arguments)
    ]
    function = getattr(library, f"{name}_{_SUFFIX[activation.dtype]}")
    function.restype = None if name in WITHOUT_SCRATCH else ctypes.c_int
    if function(*passed) == 0:
        raise CapacityError("no memory for one image's activations", "lower network.width")
