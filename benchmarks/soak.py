"""Whether anything grows or is left behind over many jobs on one cluster.

    python -m benchmarks soak --out benchmarks/results/soak.jsonl        # 50 jobs, two at a time: about 20 minutes
    python -m benchmarks soak --jobs 4                                   # does it work?

A Ray head without CPUs, two nodes with one each, an MLflow server on SQLite: all real and on this machine. The jobs are
`condense run` of the digits, submitted as `ray job submit` does, each with its own seed. Every five seconds a row says
how many jobs are over, and the memory (PSS, MiB: a page that several processes share counts once) and number of
processes of the head, the nodes, the MLflow server and the jobs, and what each of the head's programs has of it. At the
end: the slope of each in MiB a job over the last four fifths of the jobs with its standard error; processes that are
left of jobs; versions in the registry, each downloaded and compared with its checksums; runs that did not finish; files
that should be gone.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

from ray.job_submission import JobStatus, JobSubmissionClient

from benchmarks.harness import append, options
from cluster.registry import download, list_datasets
from cluster.tracking_store import connect
from tests.builders.failing import Server
from tests.builders.local_cluster import RayCluster, family, local_cluster

SAMPLE_S = 5.0
AGENTS = ("ray::DashboardAgent", "ray::RuntimeEnvAgent")  # of each node
SETTLE_S = 30.0  # after the last job: Ray ends idle workers after a while
CONFIG = """
source: digits
bits_weight: 0
data: {image_size: 16}
network: {name: mlp, width: 16, depth: 1}
matching: {real_batch: 8, updates: 1}
evaluation: {every: 10, learners: 1, validation_images: 40, controls: false}
outer_steps: 20
workers: 1
cpus_per_worker: 1
name: soak
"""


def memory(pids: list[int]) -> float:
    """MiB of these processes, what they share counted once."""
    total = 0
    for pid in pids:
        with contextlib.suppress(OSError):  # ended since
            lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
            total += sum(int(line.split()[1]) for line in lines if line.startswith("Pss:"))
    return total / 1024


def command_of(pid: int) -> str:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_text().replace("\0", " ")
    return ""


def name_of(pid: int) -> str:
    """Of a process of Ray's: the program, or the script that Python runs."""
    words = command_of(pid).split()
    named = [Path(word).name for word in words if word.endswith(".py")] if "python" in "".join(words[:1]) else []
    return (named or [Path(word).name for word in words] or [""])[0]


def by_name(pids: list[int]) -> dict[str, float]:
    """MiB of the processes of each name."""
    found: dict[str, float] = {}
    for pid in pids:
        found[name_of(pid)] = round(found.get(name_of(pid), 0) + memory([pid]), 2)
    return found


def groups(cluster: RayCluster, server: Server) -> dict[str, list[int]]:
    """The processes of each group, by id."""
    found: dict[str, list[int]] = {"head": [], "nodes": [], "mlflow": [], "jobs": []}
    assert server.process is not None
    found["mlflow"] = family(server.process.pid)
    for number, node in enumerate(cluster.nodes):
        for pid in family(node.pid):
            command = command_of(pid)
            of_job = (command.startswith("ray::") and not command.startswith(AGENTS)) or "condense run" in command
            of_job = of_job or ("default_worker.py" in command and "raylet/raylet" not in command)
            found["jobs" if of_job else "nodes" if number else "head"].append(pid)
    return found


def strays(cluster: RayCluster, server: Server) -> list[str]:
    """Processes that hold this cluster's token and whose node is not their ancestor any more."""
    known = {pid for pids in groups(cluster, server).values() for pid in pids}
    secret = f"RAY_AUTH_TOKEN={cluster.token}".encode()
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if int(folder.name) not in known and secret in (folder / "environ").read_bytes():
                found.append(command_of(int(folder.name)))
    return found


def slope(points: list[tuple[float, float]]) -> tuple[float, float]:
    """Least squares: the slope and its standard error."""
    x, y = zip(*points, strict=True)
    fit = statistics.linear_regression(x, y)
    residual = sum((b - fit.slope * a - fit.intercept) ** 2 for a, b in points) / max(1, len(points) - 2)
    mean = statistics.fmean(x)
    return fit.slope, (residual / sum((a - mean) ** 2 for a in x)) ** 0.5


def submit(jobs: JobSubmissionClient, project: Path, places: list[str], seed: int) -> str:
    return jobs.submit_job(
        entrypoint=" ".join(["condense", "run", "config.yaml", f"seed={seed}", *places]),
        runtime_env={"working_dir": str(project)},
        entrypoint_num_cpus=0,
    )


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("--jobs", type=int, default=50)
    parser.add_argument("--at-once", type=int, default=2)
    parser.add_argument("--limit-s", type=float, default=3600, help="submit no more after this; what ran is summed up")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch, local_cluster() as cluster:
        folder = Path(scratch)
        (folder / "project").mkdir()
        (folder / "project" / "config.yaml").write_text(CONFIG)
        server = Server(folder)
        server.start()
        uri = f"http://127.0.0.1:{server.port}"
        try:
            soak(cluster, server, folder, uri, arguments)
        finally:
            server.kill()


def soak(cluster: RayCluster, server: Server, folder: Path, uri: str, arguments: argparse.Namespace) -> None:
    count, at_once = arguments.jobs, arguments.at_once
    places = [f"output={folder}/condensed", f"storage={folder}/runs", f"tracking_uri={uri}"]
    for _ in range(at_once):
        cluster.join()
    jobs = JobSubmissionClient(cluster.address, headers={"Authorization": f"Bearer {cluster.token}"})
    running: dict[str, float] = {}
    seconds: list[float] = []
    rows: list[dict[str, Any]] = []
    submitted, failed, started, sampled = 0, 0, time.monotonic(), 0.0
    while submitted < count or running:
        if submitted < count and time.monotonic() - started > arguments.limit_s:
            count = submitted
        if submitted < count and len(running) < at_once:
            running[submit(jobs, folder / "project", places, submitted)] = time.monotonic()
            submitted += 1
        for job in list(running):
            status = jobs.get_job_status(job)
            if status.is_terminal():
                seconds.append(time.monotonic() - running.pop(job))
                if status != JobStatus.SUCCEEDED:
                    failed += 1
                    print(jobs.get_job_logs(job)[-2000:], flush=True)
        if time.monotonic() - sampled > SAMPLE_S:
            sampled = time.monotonic()
            rows.append({"t_s": round(sampled - started, 1), "jobs_over": len(seconds)})
            for name, pids in groups(cluster, server).items():
                rows[-1] |= {f"{name}_mib": round(memory(pids), 1), f"{name}_processes": len(pids)}
            rows[-1]["head_parts"] = by_name(groups(cluster, server)["head"])
            print(json.dumps(rows[-1]), flush=True)
        time.sleep(0.5)
    time.sleep(SETTLE_S)
    if arguments.out:
        for row in rows:
            append(arguments.out, row)

    total = time.monotonic() - started - SETTLE_S
    print(f"{count} jobs, {at_once} at a time, {failed} failed; {total:.0f} s in all,", end=" ")
    print(f"a job {statistics.median(seconds):.1f} s ({min(seconds):.1f} to {max(seconds):.1f})")
    late = [row for row in rows if row["jobs_over"] >= count / 5]
    for name in ("head", "nodes", "mlflow", "jobs"):
        rise, error = slope([(row["jobs_over"], row[f"{name}_mib"]) for row in late])
        first, last = late[0][f"{name}_mib"], late[-1][f"{name}_mib"]
        print(f"{name}: {first:.0f} MiB to {last:.0f} MiB, {rise:+.2f} ± {error:.2f} MiB a job")
    for name in late[-1]["head_parts"]:
        points = [(row["jobs_over"], row["head_parts"][name]) for row in late if name in row["head_parts"]]
        if len(points) > 2:
            rise, error = slope(points)
            print(f"  of it {name}: {points[-1][1]:.1f} MiB, {rise:+.2f} ± {error:.2f} MiB a job")
    left = [command_of(pid) for pid in groups(cluster, server)["jobs"]]
    print(f"left of jobs: {[command for command in left if 'IDLE' not in command]}; strays: {strays(cluster, server)}")
    versions = list_datasets(uri)
    for version in versions:
        download(uri, version.reference, folder / "downloads" / str(version.version))
    client = connect(uri)
    found = client.search_runs([client.get_experiment_by_name("condense").experiment_id], max_results=1000)
    unfinished = [run.info.run_id for run in found if run.info.status != "FINISHED"]
    print(f"versions {len(versions)} of {count}, all whole; runs {len(found)}, not finished {len(unfinished)}")
    print(f"left in storage: {[file.name for file in (folder / 'runs').rglob('*') if file.is_file()]}")


if __name__ == "__main__":
    main()
