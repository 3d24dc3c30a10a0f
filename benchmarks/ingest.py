"""What a worker needs to read its classes from a large Parquet file: memory, time, bytes.

    python -m benchmarks ingest all --out benchmarks/results/ingest.jsonl      # minutes, and 2 GB of disk at a time

Each file has pictures of 64x64 (random, so that neither PNG nor Parquet makes them smaller) in classes of 2,600; a
larger one has more classes. The worker owns the last four, whatever the size, so its working set is the same; it is a
process of its own that may not allocate more than `--limit-mib` above what it has after its imports (RLIMIT_DATA).
It reads what a worker of a run reads: its slice, the digest and normalisation of it, 2,000 validation images, and a
test split of 1,000.
"""

from __future__ import annotations

import json
import resource
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from benchmarks.harness import child, options, quiet, tell
from condense.data.config import DataConfig
from condense.data.decoding import encode_png
from condense.data.normalisation import normalisation_of
from condense.data.slices import HeldOut, load_held_out, load_slice, source_digest
from condense.data.sources import open_source
from condense.workers.collective import Alone
from condense.workers.mesh import build_mesh

LAYOUTS = ("sorted", "shuffled", "one group")
PER_CLASS, OWN, SIDE, GROUP = 2600, 4, 64, 1000
MIB = 1 << 20


def write(path: Path, layout: str, classes: int, *, per_class: int = PER_CLASS, side: int = SIDE) -> None:
    """A file of `classes` times `per_class` random pictures, and beside it the test split, one class's worth."""
    draws = torch.Generator().manual_seed(0)
    drawn = [torch.randint(256, (3, side, side), generator=draws, dtype=torch.uint8) for _ in range(500)]
    pictures = pa.array([encode_png(image) for image in drawn], pa.binary())
    labels = np.repeat(np.arange(classes), per_class)
    if layout == "shuffled":
        labels = np.random.default_rng(0).permutation(labels)
    _write(path, labels, pictures, group=len(labels) if layout == "one group" else GROUP)
    _write(path.with_name("test.parquet"), np.arange(max(classes, 1000)) % classes, pictures, group=GROUP)


def _write(path: Path, labels: np.ndarray[Any, Any], pictures: Any, *, group: int) -> None:
    schema = pa.schema([("image", pa.binary()), ("label", pa.int64())])
    options: dict[str, Any] = {"compression": "none", "use_dictionary": False}
    with pq.ParquetWriter(path, schema, **options) as writer:
        for start in range(0, len(labels), group):
            part = labels[start : start + group]
            images = pictures.take(pa.array(np.arange(start, start + len(part)) % len(pictures)))
            writer.write_table(pa.table([images, pa.array(part)], schema=schema), row_group_size=group)


def read(path: Path, limit_mib: int) -> dict[str, Any]:
    """In a process of its own: what reading the last classes of the file takes."""
    quiet()
    Path("/proc/self/clear_refs").write_text("5")  # the peak from here on
    before, data, bytes_before = _status("VmRSS"), _status("VmData"), _bytes_read()
    resource.setrlimit(resource.RLIMIT_DATA, ((data + limit_mib) * MIB,) * 2)
    started = time.perf_counter()
    source = open_source(f"parquet:{path}", DataConfig(image_size=None), seed=0)
    own = range(len(source.class_names) - OWN, len(source.class_names))
    cpu = torch.device("cpu")
    real = load_slice(source, own, Alone(), cpu)
    slice_s = time.perf_counter() - started
    source_digest(real, own, source.class_names, Alone(), cpu)
    normalisation_of(real, Alone())
    validation, _ = load_held_out(source, "validation", own, build_mesh(Alone()), cpu, limit=2000)
    tested = sum(len(labels) for _, labels in HeldOut(source, own, build_mesh(Alone()), cpu))
    return {
        "file_mib": path.stat().st_size // MIB,
        "working_set_mib": sum(images.numel() for images in real) // MIB,
        "held_out_mib": (len(validation) + tested) * int(np.prod(source.shape)) // MIB,
        "peak_mib": _status("VmHWM") - before,
        "limit_mib": limit_mib,
        "slice_s": round(slice_s, 1),
        "read_mib": (_bytes_read() - bytes_before) // MIB,
    }


def _status(key: str) -> int:
    """A size of this process, MiB."""
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(key + ":"))
    return int(line.split()[1]) // 1024


def _bytes_read() -> int:
    """Bytes that this process has asked the system for, cached ones too."""
    return int(Path("/proc/self/io").read_text().split()[1])


def in_child(path: Path, limit_mib: int) -> dict[str, Any]:
    """`read` in a fresh process."""
    found: dict[str, Any] = child("benchmarks.ingest", "read", "--file", path, "--limit-mib", limit_mib)
    return found


def measured(gigabytes: list[float], limit_mib: int) -> Iterator[dict[str, Any]]:
    """A row for each layout and size."""
    picture = len(encode_png(torch.randint(256, (3, SIDE, SIDE), dtype=torch.uint8)))
    for layout in LAYOUTS:
        for size in gigabytes:
            with tempfile.TemporaryDirectory() as folder:
                path = Path(folder) / "train.parquet"
                write(path, layout, max(OWN, round(size * 1e9 / picture / PER_CLASS)))
                yield {"layout": layout, **in_child(path, limit_mib)}


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("what", choices=["all", "read"], help="read: one file, in this process")
    parser.add_argument("--file", type=Path, help="of read")
    parser.add_argument("--limit-mib", type=int, default=400, help="beyond the imports")
    parser.add_argument("--gigabytes", type=float, nargs="+", default=[0.25, 0.5, 1, 2], help="sizes of files")
    arguments = parser.parse_args()
    if arguments.what == "read":
        print(json.dumps(read(arguments.file, arguments.limit_mib)))
        return
    for row in measured(arguments.gigabytes, arguments.limit_mib):
        tell(arguments.out, row)


if __name__ == "__main__":
    main()
