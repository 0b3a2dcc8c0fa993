"""What srun tells each of its processes, in the words that torch wants."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping

_FIRST_PORT, _PORTS = 20000, 20000


def started_by_srun() -> bool:
    return int(os.environ.get("SLURM_STEP_NUM_TASKS", 1)) > 1 and "RANK" not in os.environ


def take_names() -> None:
    """Set RANK and the like, where the processes meet, and how many cores each may take."""
    given = os.environ
    given["RANK"], given["LOCAL_RANK"] = given["SLURM_PROCID"], given["SLURM_LOCALID"]
    given["WORLD_SIZE"] = given["SLURM_STEP_NUM_TASKS"]
    given["LOCAL_WORLD_SIZE"] = str(tasks_here(given))
    given.setdefault("MASTER_ADDR", meeting_host(given))
    given.setdefault("MASTER_PORT", str(meeting_port(given)))
    if cores := given.get("SLURM_CPUS_PER_TASK"):
        given.setdefault("OMP_NUM_THREADS", cores)


def tasks_here(given: Mapping[str, str]) -> int:
    """Of the step's processes those of this machine; `4(x2),3` is 4, 4 and 3."""
    told = given.get("SLURM_STEP_TASKS_PER_NODE") or given.get("SLURM_NTASKS_PER_NODE") or "1"
    by_node: list[int] = []
    for count, times in re.findall(r"(\d+)(?:\(x(\d+)\))?", told):
        by_node += [int(count)] * int(times or 1)
    return by_node[min(int(given.get("SLURM_NODEID", 0)), len(by_node) - 1)]


def meeting_host(given: Mapping[str, str]) -> str:
    """The step's first machine, on which its first process is. Where srun was typed is another
    one, as often as not."""
    if int(given.get("SLURM_STEP_NUM_NODES", 1)) == 1:
        return "127.0.0.1"
    return first_host(given["SLURM_STEP_NODELIST"])


def first_host(nodes: str) -> str:
    """Of a list as Slurm writes it: `n07` of `n[07-09,12],m3`."""
    name, numbers, rest = re.fullmatch(r"([^,[]*)(?:\[(\d+)[^]]*\])?(.*)", nodes).groups()  # type: ignore[union-attr]
    return name if numbers is None else name + numbers + first_host(rest)


def meeting_port(given: Mapping[str, str]) -> int:
    """Steps of one job that run at the same time do not meet each other."""
    job, step = (int(given.get(name, 0)) for name in ("SLURM_JOB_ID", "SLURM_STEP_ID"))
    return _FIRST_PORT + (job + 7919 * step) % _PORTS
