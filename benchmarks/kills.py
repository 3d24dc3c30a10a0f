"""What a kill costs: a run on several nodes that is killed again and again, against the same run left alone.

    python -m benchmarks kills --out benchmarks/results/kills.jsonl      # 20 kills: a quarter of an hour on two cores
    python -m benchmarks kills --kills 3 --steps 120                     # does it work?

Each kill is a SIGKILL at a random moment, of one of three things in random order: a worker process; the driver, after
which the same command is given again; a whole node, every process of it at once, while a new one joins. A row a kill:
the outer step it came at and the longest time without a new step's checkpoint from then until the run had two more
(after a driver's death, until the new one had told of progress), less the time of a step. The checkpoint of every step
is compared, byte by byte, with that of the run left alone, and so are the digest and what MLflow has logged.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import random
import signal
import statistics
import subprocess
import tempfile
import threading
import time
from itertools import pairwise
from pathlib import Path

from benchmarks.harness import append, options
from cluster.tracking_store import connect
from condense.synthetic.dataset import read_dataset
from tests.builders.local_cluster import BIN, RayCluster, end, family, local_cluster

ROOT = Path(__file__).parents[1]
KINDS = ("worker", "driver", "node")
PAUSE_S = (0.2, 3.0)  # between the first step after a kill and the next kill
GIVE_UP_S = 900.0
SETTINGS = (
    "bits_weight=0",
    "images_per_class=2",
    "data.image_size=16",
    "network.width=8",
    "network.depth=2",
    "matching.real_batch=16",
    "matching.updates=1",
    "matching.inner_epochs=1",
    "checkpoint_every=1",
    "evaluation.every=40",
    "evaluation.learners=1",
    "evaluation.validation_images=20",
    "evaluation.controls=false",
    "cpus_per_worker=1",
    "max_failures=100",
)


class Run:
    """`condense run` on the cluster, its checkpoints noted as they come: when, and the SHA-256 of each step's."""

    def __init__(self, cluster: RayCluster, folder: Path, steps: int, workers: int) -> None:
        self.cluster, self.folder = cluster, folder
        self.uri = f"sqlite:///{folder}/mlflow.db"
        places = (f"output={folder}/condensed", f"storage={folder}/runs", f"tracking_uri={self.uri}")
        config = str(ROOT / "examples" / "quickstart.yaml")
        self.command = [
            str(BIN / "condense"),
            "run",
            config,
            *SETTINGS,
            f"outer_steps={steps}",
            f"workers={workers}",
            *places,
        ]
        self.seen: dict[int, float] = {}
        self.digests: dict[int, set[str]] = {}
        self.over = False
        folder.mkdir()
        self.start()
        threading.Thread(target=self._watch, daemon=True).start()

    def start(self) -> None:
        """The command, for the first time or again."""
        environment = self.cluster.environment | {"RAY_ADDRESS": f"127.0.0.1:{self.cluster.port}"}
        log = (self.folder / "log").open("ab")
        self.offset = log.tell()
        self.driver = subprocess.Popen(self.command, env=environment, stdout=log, stderr=log)

    def told(self) -> str:
        """What the present driver has written."""
        with (self.folder / "log").open() as log:
            log.seek(self.offset)
            return log.read()

    @property
    def step(self) -> int:
        """The last step whose checkpoint was seen."""
        return max(self.seen, default=0)

    def wait_for(self, step: int) -> None:
        """Until a checkpoint of this step or a later one is there."""
        deadline = time.monotonic() + GIVE_UP_S
        while self.step < step:
            if self.driver.poll() is not None or time.monotonic() > deadline:
                raise SystemExit((self.folder / "log").read_text()[-3000:])
            time.sleep(0.01)

    def gap(self, since: float) -> float:
        """The longest time without a new step, from the last one before `since` on."""
        times = sorted(self.seen.values())
        late = [time for time in times if time > since]
        return max(later - sooner for sooner, later in pairwise([times[len(times) - len(late) - 1], *late]))

    def finish(self) -> None:
        if self.driver.wait(GIVE_UP_S) != 0:
            raise SystemExit((self.folder / "log").read_text()[-3000:])
        self.over = True

    def digest(self) -> str:
        (file,) = self.folder.glob("condensed/*/data.parquet")
        return str(read_dataset(file).provenance["content_digest"])

    def logged(self) -> dict[str, list[tuple[int, float | None]]]:
        """Every metric's history; of what a clock says only the steps."""
        client = connect(self.uri)
        (run,) = client.search_runs([client.get_experiment_by_name("condense").experiment_id])
        found = {}
        for name in run.data.metrics:
            points = client.get_metric_history(run.info.run_id, name)
            found[name] = [(at.step, None if name.startswith("seconds/") else at.value) for at in points]
        return found

    def _watch(self) -> None:
        while not self.over:
            for file in self.folder.glob("runs/*/step-*.safetensors"):
                step = int(file.stem.removeprefix("step-"))
                with contextlib.suppress(OSError):  # taken away since
                    self.digests.setdefault(step, set()).add(hashlib.sha256(file.read_bytes()).hexdigest())
                    self.seen.setdefault(step, time.monotonic())
            time.sleep(0.01)


def strike(kind: str, run: Run, draws: random.Random) -> None:
    """One kill, and what a supervisor would do about it."""
    nodes = run.cluster.nodes[1:]
    if kind == "driver":
        run.driver.kill()
        run.driver.wait()
        run.start()
        return
    workers = [(node, pid) for node in nodes for pid in family(node.pid) if node.poll() is None and is_worker(pid)]
    node, pid = draws.choice(workers)
    if kind == "worker":
        os.kill(pid, signal.SIGKILL)
    else:
        end(node)
        run.cluster.join()


def is_worker(pid: int) -> bool:
    try:
        return "RayTrainWorker" in Path(f"/proc/{pid}/cmdline").read_text()
    except OSError:
        return False


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--steps", type=int, default=4000)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    draws = random.Random(arguments.seed)
    kinds = [KINDS[number % len(KINDS)] for number in range(arguments.kills)]
    draws.shuffle(kinds)
    with local_cluster() as cluster, tempfile.TemporaryDirectory() as scratch:
        for _ in range(arguments.workers + 1):  # and a node that waits for another's loss
            cluster.join()
        calm = Run(cluster, Path(scratch) / "calm", arguments.steps, arguments.workers)
        calm.finish()
        times = sorted(calm.seen.values())
        step_s = statistics.median(later - sooner for sooner, later in pairwise(times))
        rough = Run(cluster, Path(scratch) / "rough", arguments.steps, arguments.workers)
        rough.wait_for(1)
        rows = []
        for number, kind in enumerate(kinds, start=1):
            time.sleep(draws.uniform(*PAUSE_S))
            at, struck = rough.step, time.monotonic()
            strike(kind, rough, draws)
            rough.wait_for(at + 2)
            while kind == "driver" and "condensing" not in rough.told():
                time.sleep(0.05)
            rough.wait_for(rough.step + 1)
            lost = rough.gap(struck) - step_s
            rows.append({"kill": number, "kind": kind, "step": at, "lost_s": round(lost, 2)})
            print(json.dumps(rows[-1]), flush=True)
        rough.finish()
        both = calm.digests.keys() & rough.digests.keys()
        same = sum(calm.digests[step] == rough.digests[step] for step in both)
        print(f"steps {arguments.steps} of {step_s:.3f} s; checkpoints seen in both runs {len(both)}, equal {same}")
        print(f"digest equal: {calm.digest() == rough.digest()}; logged equal: {calm.logged() == rough.logged()}")
        for kind in KINDS:
            lost_s = [row["lost_s"] for row in rows if row["kind"] == kind]
            if lost_s:
                print(
                    f"{kind}: {len(lost_s)} kills, median {statistics.median(lost_s):.1f} s lost, "
                    f"{min(lost_s):.1f} to {max(lost_s):.1f}"
                )
    if arguments.out:
        for row in rows:
            append(arguments.out, row)


if __name__ == "__main__":
    main()
