"""A run while its cluster changes: a node joins, a node is cut off, the driver is killed. It ends with the same images,
to within the rounding of another number of workers."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from condense.synthetic.dataset import read_dataset
from tests.builders.local_cluster import BIN, START_S, RayCluster, family, local_cluster, until
from tests.builders.sources import rows, write_hub

pytestmark = [
    pytest.mark.ray,
    pytest.mark.slow,
    pytest.mark.skipif(
        os.environ.get("CONDENSE_NODES") != "1",
        reason="minutes on an idle machine, and Ray gives nodes up on a busy one: set CONDENSE_NODES=1",
    ),
]

BRIDGE = "condense0"
HEAD = "10.213.71.1"

CONFIG = """
source: parquet:FOLDER/pets_train.parquet
data: {image_size: 16}
network: {name: mlp, width: 16, depth: 1}
matching: {real_batch: 32, updates: 40}
evaluation: {every: 2500, learners: 1, validation_images: 10, controls: false}
outer_steps: 2500
checkpoint_every: 1
tracking_uri: none
workers: 1
max_workers: 2
cpus_per_worker: 1
"""


def ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True, text=True)


@dataclass
class Network:
    """A bridge in this namespace, and nodes that each have a namespace, an address and a line to it of their own."""

    lines: dict[int, str] = field(default_factory=dict)  # process of the node: its end of the line here

    def __enter__(self) -> Network:
        ip("link", "add", BRIDGE, "type", "bridge")
        ip("addr", "add", f"{HEAD}/24", "dev", BRIDGE)
        ip("link", "set", BRIDGE, "up")
        return self

    def __exit__(self, *_: object) -> None:
        for line in self.lines.values():
            with contextlib.suppress(subprocess.CalledProcessError):
                ip("link", "del", line)
            with contextlib.suppress(subprocess.CalledProcessError):
                ip("netns", "del", line)
        ip("link", "del", BRIDGE)

    def join(self, cluster: RayCluster) -> subprocess.Popen[bytes]:
        name, address = f"condense{len(self.lines) + 2}", f"10.213.71.{len(self.lines) + 2}"
        ip("netns", "add", name)
        ip("link", "add", name, "type", "veth", "peer", "name", "eth0", "netns", name)
        ip("link", "set", name, "master", BRIDGE)
        ip("link", "set", name, "up")
        ip("-n", name, "addr", "add", f"{address}/24", "dev", "eth0")
        ip("-n", name, "link", "set", "eth0", "up")
        ip("-n", name, "link", "set", "lo", "up")
        ip("-n", name, "route", "add", "default", "via", HEAD)
        node = cluster.join(f"--node-ip-address={address}", through=("ip", "netns", "exec", name))
        self.lines[node.pid] = name
        return node

    def cut(self, node: subprocess.Popen[bytes]) -> None:
        """The node and all on it go on, and nobody hears of them."""
        ip("link", "set", self.lines[node.pid], "down")


@pytest.fixture(scope="module")
def network() -> Iterator[Network]:
    if os.geteuid() != 0 or shutil.which("ip") is None:
        pytest.skip("network namespaces need root and iproute2")
    try:
        ip("netns", "add", "condense-probe")
        ip("netns", "del", "condense-probe")
    except subprocess.CalledProcessError as error:
        pytest.skip(f"network namespaces cannot be made here: {error.stderr}")
    with Network() as made:
        yield made


@pytest.fixture
def cluster(network: Network) -> Iterator[RayCluster]:
    with local_cluster(HEAD) as made:
        yield made


@pytest.fixture
def started() -> Iterator[contextlib.ExitStack]:
    """Ends what a test has started."""
    with contextlib.ExitStack() as stack:
        yield stack


def workers_on(node: subprocess.Popen[bytes]) -> list[int]:
    found = []
    for pid in family(node.pid):
        with contextlib.suppress(OSError):
            if "RayTrainWorker" in Path(f"/proc/{pid}/cmdline").read_text():
                found.append(pid)
    return found


def test_a_node_that_joins_is_used_and_one_that_is_cut_off_and_a_killed_driver_change_only_rounding(
    cluster: RayCluster, network: Network, tmp_path: Path, started: contextlib.ExitStack
) -> None:
    write_hub(tmp_path / "pets_train.parquet", rows(60), [row % 2 for row in range(60)])
    write_hub(tmp_path / "pets_test.parquet", rows(10, start=60), [0, 1] * 5)
    (tmp_path / "config.yaml").write_text(CONFIG.replace("FOLDER", str(tmp_path)))
    command = [str(BIN / "condense"), "run", "config.yaml"]
    environment = cluster.environment | {"RAY_ADDRESS": f"{HEAD}:{cluster.port}"}
    del environment["RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S"]  # as a user's: the run sets its own

    def run(*changed: str) -> subprocess.Popen[bytes]:
        with (tmp_path / "log").open("ab") as log:
            process = subprocess.Popen([*command, *changed], cwd=tmp_path, env=environment, stdout=log, stderr=log)
        started.callback(process.kill)
        return process

    def step() -> int:
        steps = (int(file.stem.removeprefix("step-")) for file in tmp_path.glob("runs/*/step-*"))
        return max(steps, default=0)

    def meanwhile(true: Callable[[], object]) -> None:
        """Waits while the run goes on."""
        until(lambda: true() or driver.poll() is not None)
        assert driver.poll() is None, (tmp_path / "log").read_text()

    def further() -> None:
        """Some steps later; the last one of a group that has lost a worker may be written after the loss."""
        reached = step()
        meanwhile(lambda: step() > reached + 3)

    undisturbed = run("workers=0", "max_workers=null", f"output={tmp_path}/alone", f"storage={tmp_path}/alone")
    first = network.join(cluster)
    driver = run()
    further()
    assert len(workers_on(first)) == 1

    second = network.join(cluster)
    meanwhile(lambda: workers_on(second))
    further()

    network.cut(first)
    further()
    assert workers_on(second)
    driver.send_signal(signal.SIGKILL)
    driver.wait()
    assert not list(tmp_path.glob("condensed/*/data.parquet"))

    driver = run()
    assert driver.wait(START_S) == 0, (tmp_path / "log").read_text()
    assert undisturbed.wait(START_S) == 0
    # Another number of workers adds the same numbers in another order: 100,000 updates later some levels apart.
    one, other = (read_dataset(file).images.int() for file in tmp_path.glob("*/*/data.parquet"))
    apart = (one - other).abs()
    assert apart.max() <= 16
    assert apart.float().mean() < 2
