"""Workers: processes that take batches from one counter, until there are none.

`jlm` starts them itself (`--gpus`, `--workers`; launching.py); under `accelerate launch`, torchrun
or srun it joins those that were started, on any number of machines with a common folder. Either
way accelerate sets up the process group, whose key-value store holds the counter.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from jlm_cli import signals, slurm
from jlm_cli.config import Config
from jlm_cli.errors import KEPT, JlmError, ModelError, UsageError
from jlm_cli.launching import end_for, launch
from jlm_cli.report import Report

Work = Callable[[Config, "Workers"], int]

_POLL = 0.05  # seconds between looks at the store
_LOOK = 1  # second between looks at the other workers
_MOST_SILENT = 40  # looks at a worker that does not beat: one that is stopped, or hangs
_LEAVING = 10  # seconds that a worker's own watch has to end
_LEFT = 1 << 40  # beats of a worker that is done
_STORE_GONE = "the process that keeps the workers' store has ended"
_TOLD_AFTER = 10  # seconds of waiting for the other processes
_JOINING = timedelta(minutes=30)  # for all of a launcher's processes to be there


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

    def __init__(self, report: Report) -> None:
        from accelerate import PartialState
        from torch.distributed.distributed_c10d import _get_default_store

        where = f"{os.environ.get('MASTER_ADDR')}:{os.environ.get('MASTER_PORT')}"
        rank, size = os.environ.get("RANK"), os.environ.get("WORLD_SIZE")
        told = f"process {rank} of {size} waits for the others at {where}"
        waits = threading.Timer(_TOLD_AFTER, report.note, [told])
        waits.daemon = True
        waits.start()
        try:
            with signals.by_the_system():  # which ends a wait in C++, where Python hears none
                state = PartialState(cpu=True, timeout=_JOINING)
        except RuntimeError as error:
            reason = str(error).strip().splitlines()[0]
            raise JlmError(f"the other processes were not met at {where}: {reason}") from error
        finally:
            waits.cancel()
        self.rank: int = state.process_index
        self.size: int = state.num_processes
        store: Any = _get_default_store()
        self._store = store
        self._finished = False
        self._left = threading.Event()
        beats = store.clone()  # one store is for one thread
        self._watch = threading.Thread(target=self._keep_watch, args=(beats,), daemon=True)
        self._watch.start()

    def take(self) -> int:
        return self._add("jlm/next", 1) - 1

    def count(self, rows: int) -> int:
        return self._add("jlm/done", rows)

    def ready(self) -> None:
        if self.rank == 0:
            self._add("jlm/ready", 1)
        while not self._add("jlm/ready", 0):
            time.sleep(_POLL)

    def finish(self) -> None:
        self._finished = True
        self._add(f"jlm/beats/{self.rank}", _LEFT)
        finished = self._add("jlm/finished", 1)  # the store may go from here on
        while self.rank == 0 and finished < self.size:
            time.sleep(_POLL)
            finished = self._add("jlm/finished", 0)

    def _add(self, name: str, number: int) -> int:
        """To a number that all workers share, 0 at first; what it is then. Raises JlmError."""
        try:
            return int(self._store.add(name, number))
        except RuntimeError as error:
            raise JlmError(f"{_STORE_GONE}; {KEPT}") from error

    def leave(self) -> None:
        """End the watch: Python aborts where it ends while the thread is within the store."""
        self._left.set()
        self._watch.join(_LEAVING)

    def _keep_watch(self, store: Any) -> None:
        """Every worker beats each second and counts the beats of all others.

        Time is counted in looks, so that a machine that was asleep is not taken for dead.
        """
        others = [rank for rank in range(self.size) if rank != self.rank]
        beats, silent = dict.fromkeys(others, -1), dict.fromkeys(others, 0)
        while not self._left.wait(_LOOK):
            try:
                store.add(f"jlm/beats/{self.rank}", 1)
                now = {rank: int(store.add(f"jlm/beats/{rank}", 0)) for rank in others}
            except RuntimeError:  # the store went with the process that kept it
                if self._finished:
                    return
                end_for(_STORE_GONE)
            for rank in others:
                stood = now[rank] == beats[rank] < _LEFT
                silent[rank] = silent[rank] + 1 if stood else 0
                if silent[rank] == _MOST_SILENT:
                    end_for(f"worker {rank} has not moved for {_MOST_SILENT * _LOOK} seconds")
            beats = now


def started_by_launcher() -> bool:
    """Whether this process is one of several that torchrun, accelerate or srun started."""
    if slurm.started_by_srun():
        slurm.take_names()
    return int(os.environ.get("WORLD_SIZE", 1)) > 1 and "RANK" in os.environ


def local_rank() -> int:
    return int(os.environ.get("LOCAL_RANK", 0))


def n_workers(config: Config) -> int:
    """How many processes a run takes on this machine. Raises ModelError for GPUs that lack."""
    from jlm_cli import devices, models

    on_cpu = config.workers is not None or config.device in ("cpu", "mps")
    if config.gpus is None and (on_cpu or config.model == models.FAKE):
        return config.workers or 1
    there = devices.n_gpus()
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
        if config.gpus is not None or config.workers is not None:
            raise UsageError(
                "--gpus and --workers start processes, and here a launcher has started them; each "
                "takes one GPU (or --gpus-per-model of them), or with --device cpu none"
            )
        _check_files(config)
        return _in_group(config, work)
    n = n_workers(config)
    if n == 1:
        return work(config, Alone())
    _check_files(config)
    if config.workers is not None and n > _n_cores():
        told = f"{n} workers on {_n_cores()} cores: more than one a core are no faster"
        Report(config.quiet).note(told)
    return launch(partial(_in_group, config, work), n)


def _check_files(config: Config) -> None:
    """Raises UsageError for a pipe, which only one worker could read."""
    for name in (*config.inputs, config.reference, config.gold):
        if name not in ("-", None) and (path := Path(name)).exists() and not path.is_file():
            raise UsageError(f"{name}: is not a file; several workers need one to read")


def _in_group(config: Config, work: Work) -> int:
    _share_cores()
    group = Group(Report(config.quiet))
    try:
        return work(config, group)
    finally:
        group.leave()


def _n_cores() -> int:
    """Those that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _share_cores() -> None:
    """Each of a machine's workers computes with its share of the cores."""
    share = max(1, _n_cores() // int(os.environ.get("LOCAL_WORLD_SIZE", 1)))
    given = os.environ.get("OMP_NUM_THREADS", "").partition(",")[0].strip()  # OpenMP takes a list
    threads = int(given) if given.isdecimal() and int(given) else share
    os.environ["OMP_NUM_THREADS"] = str(threads)  # accelerate would take 1 where there is none
    import torch

    torch.set_num_threads(threads)
