"""A Ray cluster of two nodes on this machine, on which vLLM for CPUs places its ranks.

vLLM's CPU platform names no resource of Ray, so vLLM refuses its Ray executor on a CPU. A plugin
names one: `vllm_rank`. The first node has two of them and the second one, so three ranks need both.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from .launch import GUARD, free_port, missing, python, stop

START_S = 120.0
STOP_S = 30.0
RANKS = (2, 1)
"""Ranks that each node takes."""
RECORD = "RANKS_RECORD"
"""Environment variable with the path of a file to which each rank writes its node."""
PLUGIN = """
from vllm.platforms.cpu import CpuPlatform


class RayCpuPlatform(CpuPlatform):
    ray_device_key = "vllm_rank"


def platform():
    return "vllm_ray_cpu.RayCpuPlatform"


def place_ranks():
    import os

    import ray
    from vllm.v1.executor.ray_executor_v2 import RayWorkerProc

    def placed(self):
        node = ray.get_runtime_context().get_node_id()
        with open(os.environ["RANKS_RECORD"], "a") as record:
            record.write(node + "\\n")
        return node, []

    RayWorkerProc.get_node_and_physical_gpu_ids = placed
"""
ENTRY_POINTS = """
[vllm.platform_plugins]
ray_cpu = vllm_ray_cpu:platform
[vllm.general_plugins]
ray_cpu = vllm_ray_cpu:place_ranks
"""


@dataclass(frozen=True)
class Cluster:
    """A cluster that is ready."""

    variables: dict[str, str]
    """Environment variables for a program that uses it."""
    record: Path
    """Holds the node of each rank, a line each."""

    def ranks_by_node(self) -> list[int]:
        """How many ranks each node has run, most first."""
        return sorted(Counter(self.record.read_text().split()).values(), reverse=True)


def missing_ray() -> str | None:
    """Why no cluster can be started on this machine; None if it can."""
    found = list(python("vllm").parents[1].glob("lib/python*/site-packages/ray/__init__.py"))
    return missing("vllm") or (None if found else "ray is not installed: run `make servers`")


@contextmanager
def cluster() -> Iterator[Cluster]:
    """Start both nodes, wait until they have joined, and end them after the block.

    Raises RuntimeError if they have not joined within `START_S`.
    """
    folder = Path(tempfile.mkdtemp(prefix="ray-"))  # short: Ray's sockets lie in it
    address = f"127.0.0.1:{free_port()}"
    ready = Cluster(_variables(folder, address), folder / "ranks")
    nodes: list[subprocess.Popen[bytes]] = []
    try:
        for number, ranks in enumerate(RANKS):
            nodes.append(_start(folder, address, ranks, ready.variables, head=number == 0))
            _wait(address, sum(RANKS[: number + 1]), ready.variables)
        yield ready
    except BaseException:
        print(f"the logs of the cluster are kept in {folder}", file=sys.stderr)
        raise
    else:
        shutil.rmtree(folder, ignore_errors=True)
    finally:
        for node in reversed(nodes):
            stop(node, STOP_S)


def _variables(folder: Path, address: str) -> dict[str, str]:
    """The plugin's folder on the path, and the address of the cluster."""
    installed = folder / "vllm_ray_cpu-0.1.dist-info"
    installed.mkdir()
    (folder / "vllm_ray_cpu.py").write_text(PLUGIN)
    (installed / "METADATA").write_text("Metadata-Version: 2.1\nName: vllm-ray-cpu\nVersion: 0.1\n")
    (installed / "entry_points.txt").write_text(ENTRY_POINTS)
    path = os.pathsep.join((str(folder), os.environ.get("PYTHONPATH", ""))).rstrip(os.pathsep)
    return {
        "PYTHONPATH": path,
        "RAY_ADDRESS": address,
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_memory_monitor_refresh_ms": "0",  # else Ray ends ranks if other programs fill memory
        RECORD: str(folder / "ranks"),
    }


def _start(
    folder: Path, address: str, ranks: int, variables: dict[str, str], *, head: bool
) -> subprocess.Popen[bytes]:
    host, port = address.split(":")
    place = ("--head", "--port", port, "--include-dashboard=false", "--temp-dir", str(folder / "r"))
    arguments = [
        *("-m", "ray.scripts.scripts", "start", "--block", "--node-ip-address", host),
        *("--num-cpus", "1", "--object-store-memory", str(200 * 2**20)),
        *("--resources", f'{{"vllm_rank": {ranks}}}'),
        *(place if head else ("--address", address)),
    ]
    joining = {name: value for name, value in variables.items() if name != "RAY_ADDRESS"}
    with (folder / "log").open("ab") as log:
        return subprocess.Popen(
            [sys.executable, str(GUARD), str(python("vllm")), *arguments],
            stdout=log,
            stderr=subprocess.STDOUT,
            stdin=subprocess.PIPE,  # closed by the system when this process ends: see guard.py
            start_new_session=True,
            env=os.environ | joining,
        )


def _wait(address: str, ranks: int, variables: dict[str, str]) -> None:
    """Wait until the cluster has as many ranks."""
    code = (
        f"import ray; ray.init(address={address!r}, logging_level='CRITICAL', log_to_driver=False);"
        "print(int(ray.cluster_resources().get('vllm_rank', 0)))"
    )
    until, said = time.monotonic() + START_S, ""
    while time.monotonic() < until:
        done = subprocess.run(
            [str(python("vllm")), "-c", code],
            capture_output=True,
            text=True,
            timeout=START_S,
            check=False,
            env=os.environ | variables,
        )
        if done.stdout.split()[-1:] == [str(ranks)]:
            return
        said = done.stderr[-2000:]
        time.sleep(1)
    raise RuntimeError(f"the cluster does not have {ranks} ranks after {START_S:.0f} s:\n{said}")
