"""The launcher: processes of this machine that do one work together, and what looks after them.

torch's elastic launcher starts them and ends all when one fails. Why one ends it writes to a file,
since the launcher would keep no more than its exit code.
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
from multiprocessing import resource_tracker
from pathlib import Path
from typing import Any, NoReturn

import orjson

from jlm_cli import signals
from jlm_cli.errors import (
    EXIT_OK,
    EXIT_UNEXPECTED,
    KEPT,
    Ended,
    JlmError,
    ReaderLeft,
    SystemFailure,
)
from jlm_cli.files import scratch, write_whole
from jlm_cli.records import Json, dump

_LOOK = 1  # second between looks at the workers
_MOST_STOPPED = 10  # looks at one that is known to be stopped
_MOST_LEAVING = 5  # looks at fewer than there were, when all is done
_SHUTDOWN = "5"  # seconds that workers have to end when the run does; torch before 2.12: 30
_FAILURE = "JLM_FAILURE"  # names the files in which workers say why they end, but for their ranks
_WORD = 16384  # bytes of such a file
_DONE = "done.json"  # beside it, the exit status when all is done
_PR_SET_PDEATHSIG = 1


def launch(work: Callable[[], int], n: int) -> int:
    """Do the work in n processes; the first one's exit status. Raises what made one end: JlmError,
    ReaderLeft, Ended."""
    from torch.distributed.elastic.multiprocessing import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import elastic_launch

    os.environ.setdefault("TORCH_ELASTIC_SHUTDOWN_TIMEOUT", _SHUTDOWN)
    for name in [name for name in logging.root.manager.loggerDict if "torch" in name]:
        logging.getLogger(name).setLevel(logging.CRITICAL)  # each has a level of its own
    heard = [*signals.not_ignored(), "SIGQUIT"]  # for which torch leaves handlers behind
    with scratch() as folder, signals.handlers_kept(*heard):
        words = [folder / f"word-{rank}" for rank in range(n)]
        for word in words:
            word.write_bytes(bytes(_WORD))  # room for what is to be said of a full disk
        os.environ[_FAILURE] = str(folder / "word")
        done, launching = folder / _DONE, _Launching()
        for look, *given in ((_end_the_stopped,), (_end_the_launcher, launching, done, n)):
            threading.Thread(target=look, args=given, daemon=True).start()
        try:
            try:
                with _deaf_workers():
                    elastic_launch(_how(n, folder), _worker)(work, os.getpid())
            finally:
                launching.end()  # here, since it may wake this thread until then
        except SignalException as error:
            if not done.exists():
                raise Ended(error.sigval) from None
        except ChildFailedError as error:
            if done.exists():  # it died when all was done
                return _status(done)
            if (told := next(filter(None, map(_told, words)), None)) is not None:
                raise told from None
            rank, first = error.get_first_failure()
            cause = _cause(first.exitcode)
            raise JlmError(f"worker {rank} died ({cause}); {KEPT}") from None
        return _status(done)


def _how(n: int, folder: Path) -> Any:
    """torch's LaunchConfig for so many processes, whose logs would be in the folder."""
    from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs
    from torch.distributed.launcher.api import LaunchConfig

    return LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=n,
        run_id="jlm",
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        local_addr="localhost",
        max_restarts=0,
        signals_to_handle=",".join([*signals.not_ignored(), "SIGQUIT"]),
        logs_specs=DefaultLogsSpecs(log_dir=str(folder / "log")),
    )


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
    _start_tracker()  # where it is started later, it opens this thread's ear
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _OF_TERMINALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _start_tracker() -> None:
    """What a signal ends leaves semaphores for it to remove, of which nobody need be told."""
    sys.warnoptions.append("ignore::UserWarning:multiprocessing.resource_tracker")
    try:
        resource_tracker.ensure_running()
    finally:
        sys.warnoptions.pop()


def _end_the_stopped() -> None:
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
                    _leave_word(rank, f"worker {rank} was stopped and did not go on; {KEPT}")
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


def end_for(reason: str) -> NoReturn:
    """End this worker, and so the run; the launcher ends the others."""
    if _FAILURE in os.environ:
        _leave_word(int(os.environ["RANK"]), f"{reason}; {KEPT}")
    else:
        print(f"jlm: {reason}; {KEPT}", file=sys.stderr, flush=True)
    os._exit(EXIT_UNEXPECTED)


def _leave_word(rank: int, message: str | None, exit_code: int = EXIT_UNEXPECTED) -> None:
    """Why a worker ends, in the room that is kept for it: a disk may be full by now."""
    told = dump({"message": message and message[: _WORD // 8], "exit_code": exit_code})
    with Path(f"{os.environ[_FAILURE]}-{rank}").open("r+b", buffering=0) as file:
        file.write(told.ljust(_WORD, b"\0"))


def _worker(work: Callable[[], int], parent: int) -> None:
    """One process of several; the exit status, or a JlmError, is left in a file for the parent."""
    signals.leave_at_once()
    if hasattr(signal, "pthread_sigmask"):
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _OF_TERMINALS)
        signal.signal(signal.SIGQUIT, signal.getsignal(signal.SIGTERM))  # else it would dump core
    _die_with(parent)
    try:
        status = work()
        if os.environ["RANK"] == "0":
            done = Path(os.environ[_FAILURE]).with_name(_DONE)
            write_whole(done, iter([orjson.dumps(status)]))
        return
    except ReaderLeft:
        told: tuple[str | None, int] = None, EXIT_OK
    except JlmError as error:
        told = str(error), error.exit_code
    except OSError as error:
        told = str(SystemFailure.of(error)), EXIT_UNEXPECTED
    _leave_word(int(os.environ["RANK"]), *told)
    sys.exit(EXIT_UNEXPECTED)


def _told(word: Path) -> BaseException | None:
    """What a worker has said, if it has."""
    if not (said := word.read_bytes().rstrip(b"\0")):
        return None
    told: Json = orjson.loads(said)
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
