"""Workers: processes that take batches from one counter, until there are none.

`jlm` starts them itself (`--gpus`, `--workers`), through torch's elastic launcher; under
`accelerate launch`, torchrun or srun it joins those that were started, on any number of machines
with a common folder. Either way accelerate sets up the process group, whose key-value store
holds the counter.
"""

from __future__ import annotations

import ctypes
import logging
import os
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any, Protocol

import orjson

from jlm_cli.config import Config
from jlm_cli.errors import Ended, JlmError, ModelError

Work = Callable[[Config, "Workers"], int]

_POLL = 0.05  # seconds between looks at the store
_PR_SET_PDEATHSIG = 1


class Workers(Protocol):
    """What a worker knows of the others: `rank` counts from 0; the first plans and merges."""

    rank: int
    size: int

    def take(self) -> int:
        """A number from 0 on that no worker was given before."""
        ...

    def count(self, rows: int) -> int:
        """Tell of rows that are done; how many all workers have done."""
        ...

    def ready(self) -> None:
        """The first says that the plan is made; the others wait for that."""
        ...

    def finish(self) -> None:
        """The others say that they are done; the first waits for them."""
        ...


class Alone:
    """A single worker, in this process."""

    rank, size = 0, 1

    def __init__(self) -> None:
        self._taken = 0
        self._done = 0

    def take(self) -> int:
        self._taken += 1
        return self._taken - 1

    def count(self, rows: int) -> int:
        self._done += rows
        return self._done

    def ready(self) -> None:
        pass

    def finish(self) -> None:
        pass


class Group:
    """One of several workers; the environment says which (RANK, WORLD_SIZE, …)."""

    def __init__(self) -> None:
        from accelerate import PartialState
        from torch.distributed.distributed_c10d import _get_default_store

        state = PartialState(cpu=True, timeout=timedelta(days=7))
        self.rank: int = state.process_index
        self.size: int = state.num_processes
        self._store: Any = _get_default_store()

    def take(self) -> int:
        return int(self._store.add("jlm/next", 1)) - 1

    def count(self, rows: int) -> int:
        return int(self._store.add("jlm/done", rows))

    def ready(self) -> None:
        if self.rank == 0:
            self._store.set("jlm/ready", "yes")
        while not self._store.check(["jlm/ready"]):
            time.sleep(_POLL)

    def finish(self) -> None:
        finished = int(self._store.add("jlm/finished", 1))
        while self.rank == 0 and finished < self.size:
            time.sleep(_POLL)
            finished = int(self._store.add("jlm/finished", 0))


def started_by_launcher() -> bool:
    """Whether this process is one of several that torchrun, accelerate or srun started."""
    if int(os.environ.get("SLURM_STEP_NUM_TASKS", 1)) > 1 and "RANK" not in os.environ:
        _take_slurm_names()
    return int(os.environ.get("WORLD_SIZE", 1)) > 1 and "RANK" in os.environ


def _take_slurm_names() -> None:
    """srun names things its own way; torch wants them in these variables."""
    given = os.environ
    given["RANK"], given["LOCAL_RANK"] = given["SLURM_PROCID"], given["SLURM_LOCALID"]
    given["WORLD_SIZE"] = given["SLURM_STEP_NUM_TASKS"]
    given["LOCAL_WORLD_SIZE"] = given.get("SLURM_NTASKS_PER_NODE", "1")
    given.setdefault("MASTER_ADDR", given.get("SLURM_LAUNCH_NODE_IPADDR", "127.0.0.1"))
    given.setdefault("MASTER_PORT", str(20000 + int(given.get("SLURM_JOB_ID", 0)) % 20000))


def local_rank() -> int:
    return int(os.environ.get("LOCAL_RANK", 0))


def n_workers(config: Config) -> int:
    """How many processes a run takes on this machine. Raises ModelError for GPUs that lack."""
    from jlm_cli import models

    on_cpu = config.workers is not None or config.device in ("cpu", "mps")
    if config.gpus is None and (on_cpu or config.model == models.FAKE):
        return config.workers or 1
    there = models.n_gpus()
    wanted = there if config.gpus is None else config.gpus
    if wanted > there:
        raise ModelError(f"--gpus {wanted}: there are {there} CUDA devices on this machine")
    if wanted % config.gpus_per_model:
        raise ModelError(
            f"--gpus-per-model {config.gpus_per_model} does not divide the {wanted} GPUs"
        )
    return max(1, wanted // config.gpus_per_model)


def run_workers(config: Config, work: Work) -> int:
    """Do the work in as many processes as the configuration asks for; the exit status."""
    if started_by_launcher():
        _share_cores()
        return work(config, Group())
    n = n_workers(config)
    return work(config, Alone()) if n == 1 else _launch(config, work, n)


def _launch(config: Config, work: Work, n: int) -> int:
    from torch.distributed.elastic.multiprocessing import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    logging.getLogger("torch.distributed").setLevel(logging.CRITICAL)
    how = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=n,
        run_id="jlm",
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        local_addr="localhost",
        max_restarts=0,
        shutdown_timeout=5,
    )
    with tempfile.TemporaryDirectory(prefix="jlm-") as scratch:
        failure = Path(scratch) / "failure.json"
        try:
            codes = elastic_launch(how, _worker)(config, work, str(failure), os.getpid())
        except SignalException as error:
            raise Ended(error.sigval) from None
        except ChildFailedError as error:
            if failure.exists():
                raise _told(failure) from None
            rank, first = error.get_first_failure()
            raise JlmError(
                f"worker {rank} died ({_cause(first.exitcode)}); what is done is kept: "
                "the same command goes on from there"
            ) from None
    return int(codes[0])


def _worker(config: Config, work: Work, failure: str, parent: int) -> int:
    """One process of several; a JlmError is left in a file for the parent to tell."""
    _die_with(parent)
    _share_cores()
    try:
        return work(config, Group())
    except JlmError as error:
        told = {"message": str(error), "exit_code": error.exit_code}
        Path(failure).write_bytes(orjson.dumps(told))
        sys.exit(error.exit_code)


def _told(failure: Path) -> JlmError:
    told = orjson.loads(failure.read_bytes())
    error = JlmError(told["message"])
    error.exit_code = told["exit_code"]
    return error


def _cause(exit_code: int) -> str:
    return f"signal {-exit_code}" if exit_code < 0 else f"exit code {exit_code}"


def _die_with(parent: int) -> None:
    """End this process when its parent is killed (Linux)."""
    prctl = getattr(ctypes.CDLL(None), "prctl", None)
    if prctl is not None:
        prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:
            os._exit(1)


def _share_cores() -> None:
    """Each of a machine's workers computes with its share of the cores."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    share = max(1, (cores or 1) // int(os.environ.get("LOCAL_WORLD_SIZE", 1)))
    os.environ.setdefault("OMP_NUM_THREADS", str(share))  # accelerate would take 1
    import torch

    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
