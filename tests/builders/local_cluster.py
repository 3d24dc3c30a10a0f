"""A real Ray cluster of several nodes with token authentication, started by `ray start` as a user would."""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

BIN = Path(sys.executable).parent
START_S = 600.0  # a busy machine
ATTEMPTS = 5
LOOPBACK = "127.0.0.1"
# As in the image: a head that keeps little of the jobs that are over.
IN_THE_IMAGE = {
    "RAY_enable_metrics_collection": "0",
    "RAY_maximum_gcs_destroyed_actor_cached_count": "100",
    "RAY_maximum_gcs_dead_worker_cached_count": "100",
    "RAY_task_events_max_num_task_in_gcs": "1000",
    "MALLOC_ARENA_MAX": "1",
}
STARTED = "Ray runtime started"


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@dataclass
class RayCluster:
    """A head without CPUs, whose address and token nobody else has, and nodes that come and go."""

    folder: Path
    host: str = LOOPBACK
    token: str = field(default_factory=lambda: secrets.token_hex(32))
    port: int = field(default_factory=free_port)
    dashboard: int = field(default_factory=free_port)
    nodes: list[subprocess.Popen[bytes]] = field(default_factory=list)

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.dashboard}"

    @property
    def environment(self) -> dict[str, str]:
        """Of the cluster and of those whom it lets in."""
        kept = {key: value for key, value in os.environ.items() if not key.startswith("RAY_")}
        return kept | {
            "PATH": f"{BIN}:{os.environ['PATH']}",
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": self.token,
            "RAY_TMPDIR": str(self.folder),
            "RAY_USAGE_STATS_ENABLED": "0",
            **IN_THE_IMAGE,
            "RAY_USAGE_STATS_REPORT_URL": "http://127.0.0.1:9",
            "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "120",
            "RAY_health_check_period_ms": "1000",
            "RAY_health_check_timeout_ms": "4000",
            "RAY_worker_niceness": "0",  # by default workers give way to everything else on the machine
            "OMP_NUM_THREADS": "1",
        }

    def start(
        self, *options: str, started: Callable[[str], bool], through: Sequence[str] = ()
    ) -> subprocess.Popen[bytes]:
        """`ray start`, as an argument of the command `through`; again if it gives up, as it does after 30 seconds.

        Returns when it has started: two that start at once on one machine take each other's sockets.
        """
        command = [*through, str(BIN / "ray"), "start", "--block", "--disable-usage-stats", *options]
        command += ["--object-store-memory=100000000", f"--dashboard-agent-listen-port={free_port()}"]
        file = self.folder / f"node{len(self.nodes)}.log"
        for _ in range(ATTEMPTS):
            with file.open("wb") as log:
                node = subprocess.Popen(command, env=self.environment, stdout=log, stderr=log, start_new_session=True)
            self.nodes.append(node)
            until(lambda: self.nodes[-1].poll() is not None or started(file.read_text()))
            if node.poll() is None:
                return node
            self.nodes.pop()
        raise AssertionError(file.read_text())

    def head(self) -> None:
        options = [f"--port={self.port}", "--dashboard-host=127.0.0.1", f"--dashboard-port={self.dashboard}"]
        if self.host != LOOPBACK:
            options.append(f"--node-ip-address={self.host}")

        def answers(log: str) -> bool:
            return STARTED in log and self.ray("job", "list", "--address", self.address).returncode == 0

        self.start("--head", "--num-cpus=0", *options, started=answers)

    def join(self, *options: str, through: Sequence[str] = ()) -> subprocess.Popen[bytes]:
        """A node with one CPU."""
        address = f"--address={self.host}:{self.port}"
        return self.start(address, "--num-cpus=1", *options, started=lambda log: STARTED in log, through=through)

    def ray(self, *arguments: str, **changed: str) -> subprocess.CompletedProcess[str]:
        environment = self.environment | changed
        return subprocess.run(
            [str(BIN / "ray"), *arguments], env=environment, capture_output=True, text=True, cwd=self.folder
        )

    def submit(self, *arguments: str, **changed: str) -> subprocess.CompletedProcess[str]:
        return self.ray("job", "submit", "--address", self.address, *arguments, **changed)


def until(true: Callable[[], object], timeout_s: float = START_S) -> None:
    deadline = time.monotonic() + timeout_s
    while not true():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.2)


def end(node: subprocess.Popen[bytes]) -> None:
    """Ends a node and all that it started at once: the plug is pulled."""
    for pid in family(node.pid):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    node.wait()


def family(pid: int) -> list[int]:
    """A process and all that it started, and those."""
    parents: dict[int, int] = {}
    for status in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            parents[int(status.parent.name)] = int(status.read_text().rpartition(")")[2].split()[1])
    tree = [pid]
    for ancestor in tree:
        tree.extend(child for child, parent in parents.items() if parent == ancestor)
    return tree


@contextmanager
def local_cluster(host: str = LOOPBACK) -> Iterator[RayCluster]:
    """A head at this address, and at the end no process of it."""
    folder = Path(tempfile.mkdtemp(prefix="ray"))  # short: sockets have names of at most 107 bytes
    made = RayCluster(folder, host)
    try:
        made.head()
        yield made
    finally:
        for node in reversed(made.nodes):
            end(node)
        shutil.rmtree(folder, ignore_errors=True)
