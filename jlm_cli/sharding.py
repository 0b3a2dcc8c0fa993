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
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from multiprocessing import resource_tracker
from pathlib import Path
from typing import Any, NoReturn, Protocol

import orjson

from jlm_cli import signals, slurm
from jlm_cli.config import Config
from jlm_cli.errors import (
    EXIT_OK,
    EXIT_UNEXPECTED,
    GO_ON,
    Ended,
    JlmError,
    ModelError,
    ReaderLeft,
    SystemFailure,
    UsageError,
)
from jlm_cli.files import scratch, write_whole
from jlm_cli.records import Json

Work = Callable[[Config, "Workers"], int]

_POLL = 0.05  # seconds between looks at the store
_LOOK = 1  # second between looks at the other workers
_MOST_SILENT = 40  # looks at a worker that does not beat: one that is stopped, or hangs
_MOST_STOPPED = 10  # looks at one that is known to be stopped
_MOST_LEAVING = 5  # looks at fewer than there were, when all is done
_LEAVING = 10  # seconds that a worker's own watch has to end
_SHUTDOWN = "5"  # seconds that workers have to end when the run does; torch before 2.12: 30
_LEFT = 1 << 40  # beats of a worker that is done
_FAILURE = "JLM_FAILURE"  # names the file in which a worker says why it ends
_DONE = "done.json"  # beside it, the exit status when all is done
_STORE_GONE = "the process that keeps the workers' store has ended"
_JOINING = timedelta(minutes=30)  # for all of a launcher's processes to be there
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

        try:
            state = PartialState(cpu=True, timeout=_JOINING)
        except RuntimeError as error:
            where = f"{os.environ.get('MASTER_ADDR')}:{os.environ.get('MASTER_PORT')}"
            reason = str(error).strip().splitlines()[0]
            raise JlmError(f"the other processes were not met at {where}: {reason}") from error
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
            raise JlmError(f"{_STORE_GONE}; what is done is kept: {GO_ON}") from error

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
                _end_for(_STORE_GONE)
            for rank in others:
                stood = now[rank] == beats[rank] < _LEFT
                silent[rank] = silent[rank] + 1 if stood else 0
                if silent[rank] == _MOST_SILENT:
                    _end_for(f"worker {rank} has not moved for {_MOST_SILENT * _LOOK} seconds")
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
        _share_cores()
        _check_files(config)
        return _in_group(config, work)
    n = n_workers(config)
    if n == 1:
        return work(config, Alone())
    _check_files(config)
    return _launch(config, work, n)


def _check_files(config: Config) -> None:
    """Raises UsageError for a pipe, which only one worker could read."""
    for name in (*config.inputs, config.reference, config.gold):
        if name not in ("-", None) and (path := Path(name)).exists() and not path.is_file():
            raise UsageError(f"{name}: is no file that several workers can read; write it to one")


def _in_group(config: Config, work: Work) -> int:
    group = Group()
    try:
        return work(config, group)
    finally:
        group.leave()


def _launch(config: Config, work: Work, n: int) -> int:
    from torch.distributed.elastic.multiprocessing import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    os.environ.setdefault("TORCH_ELASTIC_SHUTDOWN_TIMEOUT", _SHUTDOWN)
    for name in [name for name in logging.root.manager.loggerDict if "torch" in name]:
        logging.getLogger(name).setLevel(logging.CRITICAL)  # each has a level of its own
    how = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=n,
        run_id="jlm",
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        local_addr="localhost",
        max_restarts=0,
        signals_to_handle=",".join([*signals.not_ignored(), "SIGQUIT"]),
    )
    with scratch() as folder:
        os.environ[_FAILURE] = str(folder / "failure.json")
        done, launching = folder / _DONE, _Launching()
        looks = (_end_the_stopped, os.environ[_FAILURE]), (_end_the_launcher, launching, done, n)
        for look, *given in looks:
            threading.Thread(target=look, args=given, daemon=True).start()
        try:
            try:
                with _deaf_workers():
                    elastic_launch(how, _worker)(config, work, os.getpid())
            finally:
                launching.end()  # here, since it may wake this thread until then
        except SignalException as error:
            if not done.exists():
                raise Ended(error.sigval) from None
        except ChildFailedError as error:
            if done.exists():  # it died when all was done
                return _status(done)
            if (failure := Path(os.environ[_FAILURE])).exists():
                raise _told(failure) from None
            rank, first = error.get_first_failure()
            cause = _cause(first.exitcode)
            raise JlmError(f"worker {rank} died ({cause}); what is done is kept: {GO_ON}") from None
        return _status(done)


def _status(done: Path) -> int:
    return int(orjson.loads(done.read_bytes()))


class _Launching:
    """Whether the main thread is in the launcher, and what wakes it there."""

    def __init__(self) -> None:
        self._lock, self._is_over = threading.Lock(), threading.Event()

    def wait(self, seconds: float) -> bool:
        """Whether it is over by then."""
        return self._is_over.wait(seconds)

    def wake(self) -> None:
        with self._lock:
            if not self._is_over.is_set():
                signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGQUIT)

    def end(self) -> None:
        with self._lock:
            self._is_over.set()


_OF_TERMINALS = [getattr(signal, name) for name in ("SIGINT", "SIGHUP") if hasattr(signal, name)]


@contextmanager
def _deaf_workers() -> Iterator[None]:
    """A terminal sends Ctrl-C to workers as well, also to those that are still being loaded.

    Workers inherit what this thread blocks, until `_worker` knows what to do with it. The thread
    that looks after them keeps an open ear.
    """
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    resource_tracker.ensure_running()  # where it is started later, it opens this thread's ear
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _OF_TERMINALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _end_the_stopped(failure: str) -> None:
    """Kill a worker that was stopped (SIGSTOP) and does not go on, in whatever it was doing.

    A suspended run as a whole (Ctrl-Z) is not looked at: this process sleeps with it.
    """
    import psutil

    if hasattr(signal, "pthread_sigmask"):
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _OF_TERMINALS)
    looks: Counter[int] = Counter()
    while True:
        time.sleep(_LOOK)
        for rank, process in enumerate(_spawned()):
            with suppress(psutil.Error):
                looks[process.pid] += 1
                if process.status() != psutil.STATUS_STOPPED:
                    looks[process.pid] = 0
                if looks[process.pid] == _MOST_STOPPED:
                    _leave_word(failure, f"worker {rank} was stopped and did not go on")
                    process.kill()


def _end_the_launcher(launching: _Launching, done: Path, n: int) -> None:
    """Wake it where all is done and some of its n workers have left, but not all: it tells them to
    go by a condition of multiprocessing, and for one that was killed just then it waits for ever.
    """
    looks = 0
    while not launching.wait(_LOOK):
        looks = looks + 1 if done.exists() and len(_spawned()) < n else 0
        if looks == _MOST_LEAVING:
            launching.wake()


def _spawned() -> list[Any]:
    """The workers that this process started, in the order of their ranks."""
    import psutil

    found = []
    for process in psutil.Process().children():
        with suppress(psutil.Error):
            if any("spawn_main" in word for word in process.cmdline()):
                found.append(process)
    return sorted(found, key=lambda process: (process.create_time(), process.pid))


def _end_for(reason: str) -> NoReturn:
    """End this worker, and so the run; the launcher ends the others."""
    if failure := os.environ.get(_FAILURE):
        _leave_word(failure, reason)
    else:
        print(f"jlm: {reason}; what is done is kept: {GO_ON}", file=sys.stderr, flush=True)
    os._exit(EXIT_UNEXPECTED)


def _leave_word(failure: str, reason: str) -> None:
    told = {"message": f"{reason}; what is done is kept: {GO_ON}", "exit_code": EXIT_UNEXPECTED}
    Path(failure).write_bytes(orjson.dumps(told))


def _worker(config: Config, work: Work, parent: int) -> None:
    """One process of several; the exit status, or a JlmError, is left in a file for the parent."""
    signals.leave_at_once()
    if hasattr(signal, "pthread_sigmask"):
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _OF_TERMINALS)
        signal.signal(signal.SIGQUIT, signal.getsignal(signal.SIGTERM))  # else it would dump core
    _die_with(parent)
    _share_cores()
    try:
        status = _in_group(config, work)
        if os.environ["RANK"] == "0":
            done = Path(os.environ[_FAILURE]).with_name(_DONE)
            write_whole(done, iter([orjson.dumps(status)]))
        return
    except ReaderLeft:
        told: Json = {"message": None, "exit_code": EXIT_OK}
    except JlmError as error:
        told = {"message": str(error), "exit_code": error.exit_code}
    except OSError as error:
        told = {"message": str(SystemFailure.of(error)), "exit_code": EXIT_UNEXPECTED}
    Path(os.environ[_FAILURE]).write_bytes(orjson.dumps(told))
    sys.exit(EXIT_UNEXPECTED)


def _told(failure: Path) -> BaseException:
    told = orjson.loads(failure.read_bytes())
    if told["message"] is None:
        return ReaderLeft()
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
