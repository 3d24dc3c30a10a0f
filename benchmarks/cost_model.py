"""A cost model of an outer step on several workers, held against this machine, and asked about GPUs.

    python -m benchmarks cost-model measured --rows benchmarks/results/service.jsonl    # two idle cores, four minutes
    python -m benchmarks cost-model measured --rows benchmarks/results/replicas.jsonl --set replicas=2
    python -m benchmarks cost-model gpus                                                # arithmetic alone

With C classes, n = ceil(C / W) of the largest slice, M match steps and S steps of SGD on the synthetic set in between:

    T(W) = M (launches_m + compute_m n) + S (launches_s + compute_s n + exchange(W))
    exchange(W) = latency(W) + 2 (W - 1) / W bytes / bandwidth(W)              a ring all-reduce of the gradients

`measured` takes launches and compute (what does not shrink with the slice, and what does) from an engine of ten classes
and from two of five, side by side in processes of one thread each, the exchange from two processes, and compares with
the rows that benchmarks.workers wrote. With `replicas=2` each of the two workers has all classes and one network,
trained alone, and what is exchanged is the gradient at the images, once an update. `gpus` takes them from counts of
operations and the data sheet figures below.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from benchmarks.gpu_launches import counted
from benchmarks.harness import RESULTS, ROOT, finished, options, quiet, table
from benchmarks.workers import FULL
from condense.condensation.build import build_engine
from condense.condensation.checks import open_checked
from condense.condensation.config import RunConfig
from condense.data.normalisation import normalisation_of
from condense.learners.networks import build_network
from condense.matching.replica import CLASSES_AT_ONCE
from condense.settings import resolve
from condense.synthetic.synthetic_set import initial_set
from condense.workers.collective import Alone, ProcessGroup
from condense.workers.mesh import build_mesh, mesh_shape

STEPS, EXCHANGES = 3, 200


def engine_seconds(config: RunConfig, classes: int) -> dict[str, float]:
    """Seconds by part of an outer step whose slice has so many classes."""
    source, _ = open_checked(config)
    real = source.load_classes(range(classes))
    mesh = build_mesh(Alone(), config.replicas)
    synthetic = initial_set(config.images, real, range(classes), config.images_per_class, seed=0)
    engine = build_engine(config, 10, real, normalisation_of(real, Alone()), None, synthetic, mesh)
    engine.outer_step(0)
    engine.stopwatch.seconds.clear()
    for step in range(1, STEPS + 1):
        engine.outer_step(step)
    return {part: seconds / STEPS for part, seconds in engine.stopwatch.seconds.items()}


def side_by_side(config: RunConfig, classes: int, clock: str, processes: int) -> dict[str, float]:
    """The slowest of so many processes' `engine_seconds` at the same time: cores share caches and memory."""
    with ProcessPoolExecutor(processes, mp.get_context("spawn"), _start, (clock,)) as pool:
        found = list(pool.map(engine_seconds, [config] * processes, [classes] * processes))
    return max(found, key=lambda parts: sum(parts.values()))


def _start(clock: str) -> None:
    if clock == "cpu":
        time.perf_counter = time.process_time
    quiet()


def exchange_seconds(numbers: int) -> float:
    """Seconds of one all-reduce of so many floats between two processes of this machine."""
    with mp.Manager() as manager:
        found = manager.list()
        mp.spawn(_exchange, args=(numbers, found), nprocs=2)
        return float(max(found))


def _exchange(rank: int, numbers: int, found: list[float]) -> None:
    torch.set_num_threads(1)
    store = dist.TCPStore("127.0.0.1", 29871, 2, rank == 0)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=2)
    group, tensor = ProcessGroup(), torch.zeros(numbers)
    group.sum_(tensor)
    started = time.perf_counter()
    for _ in range(EXCHANGES):
        group.sum_(tensor)
    found.append((time.perf_counter() - started) / EXCHANGES)
    dist.destroy_process_group()


def measured(rows: Path, settings: list[str], clock: str, repeats: int) -> None:
    """The model's prediction of the two-worker run of benchmarks.workers, beside what it took."""
    _start(clock)
    config = resolve(RunConfig, ROOT / "examples" / "quickstart.yaml", (*FULL, "bits_weight=0", "workers=0", *settings))
    slices, columns = mesh_shape(2, config.replicas)
    shared = config.model_copy(update={"replicas": config.replicas // columns})
    whole = engine_seconds(config, 10)
    alone, together = zip(
        *((side_by_side(shared, 10 // slices, clock, processes) for processes in (1, 2)) for _ in range(repeats)),
        strict=True,
    )
    half = medians(together)
    steps, epochs = config.matching.schedule(config.images_per_class)
    source, _ = open_checked(config)
    if columns == 1:
        batches = math.ceil(10 * config.images_per_class / config.matching.learner_batch)
        exchanges = config.replicas * (steps - 1) * epochs * batches
        numbers = sum(parameter.numel() for parameter in build_network(config.network, source.shape, 10).parameters())
    else:
        exchanges, numbers = steps * config.matching.updates, 10 * config.images_per_class * math.prod(source.shape)
    exchange = exchange_seconds(numbers)
    print(
        f"parts of one worker {shown(whole)}; of each of two {shown(half)}, where it is alone {shown(medians(alone))}"
    )
    for part in half:
        slower = sorted(100 * (beside[part] / own[part] - 1) for own, beside in zip(alone, together, strict=True))
        print(f"beside the other {part} {statistics.median(slower):+.0f} % ({slower[0]:.0f} to {slower[-1]:.0f})")
    print(f"{exchanges} exchanges of {numbers:,} floats an outer step, {1000 * exchange:.2f} ms each")
    one, two = sum(whole.values()), sum(half.values()) + exchanges * exchange
    fixed = 2 * sum(half.values()) - sum(whole.values())
    print(f"of {one:.2f} s an outer step {fixed:.2f} s do not shrink with the share (launches, a cache that is shared)")
    print(f"predicted: {one:.2f} s on one worker, {two:.2f} s on two, efficiency {one / (2 * two):.2f}")
    found = finished(rows)
    if not found:
        return
    for workers, predicted in ((0, one), (1, one), (2, two)):
        taken = statistics.median(row["loop_s"] for row in found if row["workers"] == workers) / (
            config.outer_steps - 1
        )
        print(f"{workers} workers: measured {taken:.2f} s, prediction {100 * (predicted / taken - 1):+.0f} %")


def medians(found: Sequence[dict[str, float]]) -> dict[str, float]:
    """Of each part."""
    return {part: statistics.median(parts[part] for parts in found) for part in found[0]}


def shown(parts: dict[str, float]) -> str:
    """Seconds by part in words."""
    return ", ".join(f"{part} {seconds:.2f}" for part, seconds in parts.items())


@dataclass(frozen=True)
class Gpu:
    """Of a cluster of H100-class GPUs, eight a machine. Rates per second; a rate is the share of the data sheet's.

    flops: TF32 495e12 dense, of which 35 % is taken for 3x3 convolutions of 128 channels: what learners are trained in.
    half_flops: bfloat16, twice that, in which gradients are matched.
    launch: a kernel, with Python between them. nvlink: 450e9 bytes each way, network: 400 Gbit/s a GPU, 70 % of both.
    """

    flops: float = 0.35 * 495e12
    half_flops: float = 0.35 * 990e12
    launch: float = 6e-6
    nvlink: float = 0.7 * 450e9
    network: float = 0.7 * 50e9
    latency_inside: float = 20e-6
    latency_hop: float = 10e-6

    def exchange(self, bytes_: float, workers: int) -> float:
        """Seconds of one all-reduce: a ring inside a machine, a tree of machines with eight rings beside it."""
        if workers == 1:
            return 0.0
        inside = min(workers, 8)
        seconds = self.latency_inside + 2 * (inside - 1) / inside * bytes_ / self.nvlink
        machines = workers / inside
        if machines > 1:
            seconds += (
                2 * math.log2(machines) * self.latency_hop + 2 * (machines - 1) / machines * bytes_ / 8 / self.network
            )
        return seconds


@dataclass(frozen=True)
class Task:
    """ImageNet-1k at 64x64, ten images a class, ConvNet of width 128 and depth 4, the published schedule."""

    classes: int = 1000
    ipc: int = 10
    side: int = 64
    width: int = 128
    depth: int = 4
    real_batch: int = 64
    match_steps: int = 10
    epochs: int = 50
    batch: int = 256
    updates: int = 1

    @property
    def forward(self) -> float:
        """Operations of one image forward."""
        blocks = (
            9 * (3 if block == 0 else self.width) * self.width * (self.side >> block) ** 2
            for block in range(self.depth)
        )
        return 2.0 * (sum(blocks) + self.features * self.classes)

    @property
    def features(self) -> int:
        """Numbers that the last layer sees."""
        return self.width * (self.side >> self.depth) ** 2

    @property
    def parameters(self) -> int:
        """Numbers in the network."""
        return 9 * 3 * self.width + 9 * self.width**2 * (self.depth - 1) + self.features * self.classes


# Operations per forward one: a gradient is two more; matching differentiates through one, about three of those.
GRADIENT, MATCHING = 3, 9


def step(task: Task, gpu: Gpu, workers: int) -> tuple[float, float, float, float]:
    """(seconds of an outer step, of them matching, of them training between match steps, of that the exchange)."""
    slice_ = math.ceil(task.classes / workers)
    at_once = math.ceil(slice_ / CLASSES_AT_ONCE)
    kernels = counted(
        "gradient",
        task.ipc,
        precision="bfloat16",
        depth=task.depth,
        shape=(3, task.side, task.side),
        classes=math.ceil(slice_ / at_once),
        real_batch=task.real_batch,
    )
    real = GRADIENT * task.forward * slice_ * task.real_batch / gpu.half_flops
    images = MATCHING * task.forward * slice_ * task.ipc * task.updates / gpu.half_flops
    launches = gpu.launch * at_once * (kernels["target"] + kernels["update"] * task.updates)
    matching = task.match_steps * (real + images + launches)
    sgd = (task.match_steps - 1) * task.epochs * math.ceil(task.classes * task.ipc / task.batch)
    own = math.ceil(task.batch / workers)  # of a batch, on average
    exchange = sgd * gpu.exchange(4 * task.parameters, workers)
    training = sgd * (GRADIENT * task.forward * own / gpu.flops + gpu.launch * kernels["learner"]) + exchange
    return matching + training, matching, training, exchange


def gpus() -> None:
    """The table for ImageNet-1k."""
    gpu = Gpu()
    for task, name in ((Task(), "published: batches of 256, 50 epochs"), (Task(batch=4096), "batches of 4096")):
        alone = step(task, gpu, 1)[0]
        print(f"\n{name}: {task.forward / 1e6:.0f} MFLOP forward, {task.parameters / 1e6:.2f} M parameters")
        lines = []
        for workers in (1, 8, 64, 512):
            total, matching, training, exchange = step(task, gpu, workers)
            cells = (total, matching, training, exchange, 300 * total / 3600, alone / total / workers)
            lines.append((workers, *(f"{cell:.2f}" for cell in cells)))
        columns = ("GPUs", "outer step, s", "matching", "training", "of it exchange", "300 steps, h", "efficiency")
        print(table(columns, lines))


def main() -> None:
    parser = options(__doc__, rows=False, settings=True)
    parser.add_argument("what", choices=["measured", "gpus"])
    parser.add_argument("--rows", type=Path, default=RESULTS / "service.jsonl")
    parser.add_argument(
        "--clock", choices=["wall", "cpu"], default="wall", help="cpu: of one process, on a busy machine"
    )
    parser.add_argument("--repeats", type=int, default=5, help="of a worker's share alone and beside another, in turn")
    arguments = parser.parse_args()
    if arguments.what == "measured":
        measured(arguments.rows, arguments.set, arguments.clock, arguments.repeats)
    else:
        gpus()


if __name__ == "__main__":
    main()
