"""Real runs of the command with a fault at their Nth operation on files.

As a program it reads cases, one JSON object a line, and forks a child for each, in which the
command runs; only the loading of modules is shared. In the child, every operation that changes
the run's folder passes a boundary, where it can be killed or can fail. Writes are those that
reach the operating system, behind Python's buffers.
"""

from __future__ import annotations

import builtins
import errno
import io
import json
import mmap
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from contextlib import redirect_stderr, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

KILLS = ("kill-before", "kill-partly", "kill-after")
ERRORS = ("ENOSPC", "EIO", "EROFS")


@dataclass(frozen=True)
class Outcome:
    """`code` is negative for a signal; `operations` counts the boundaries that were passed."""

    code: int
    operations: int
    err: str
    out: str
    names: tuple[str, ...]


class Runs:
    """Starts the program once; each call is a run of the command in a process of its own."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, __file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "JLM_MODEL": "fake", "COLUMNS": "120"},
        )

    def __call__(
        self,
        folder: Path,
        *words: str,
        at: int = 0,
        how: str = "",
        kill_after: float = 0.0,
        memory: int = 0,
        stdin: str = os.devnull,
    ) -> Outcome:
        """`at` counts from 1; `kill_after` seconds the child gets SIGKILL whatever it does;
        `memory` is the largest batch that the fake engine has memory for (0: any)."""
        case = {
            "folder": str(folder),
            "words": words,
            "at": at,
            "how": how,
            "kill_after": kill_after,
            "memory": memory,
            "stdin": stdin,
        }
        assert self._process.stdin is not None and self._process.stdout is not None
        print(json.dumps(case), file=self._process.stdin, flush=True)
        done = json.loads(self._process.stdout.readline())
        return Outcome(**{**done, "names": tuple(done["names"])})

    def close(self) -> None:
        self._process.communicate()


class Boundary:
    """Counts operations in memory that outlives the process, and strikes at one of them."""

    def __init__(self, folder: str, at: int, how: str) -> None:
        self.folder, self.at, self.how = os.path.realpath(folder), at, how
        self.seen = mmap.mmap(-1, 1 << 16)

    def inside(self, path: Any) -> bool:
        if isinstance(path, int):
            path = f"/proc/self/fd/{path}"
        real: str = os.path.realpath(os.fspath(path))
        return (real + os.sep).startswith(self.folder + os.sep)

    def pass_by(self, name: str, act: Callable[[], Any], partly: Callable[[], Any] | None) -> Any:
        names = [*self.names(), name]
        self.seen.seek(0)
        self.seen.write(" ".join(names).encode()[-60000:] + b"\n")
        if len(names) != self.at:
            return act()
        if self.how.startswith("SIG"):
            for signal_name in self.how.split():
                os.kill(os.getpid(), getattr(signal, signal_name))
            return act()
        if self.how in ERRORS:
            number = getattr(errno, self.how)
            if partly is not None and self.how == "ENOSPC":
                partly()
            operation, _, file = name.partition(":")
            file_known = () if operation in ("write", "fsync") else (file,)
            raise OSError(number, os.strerror(number), *file_known)
        if self.how == "kill-partly" and partly is not None:
            partly()
        if self.how == "kill-after":
            with suppress(OSError):
                act()
        os.kill(os.getpid(), signal.SIGKILL)
        raise AssertionError("killed")

    def names(self) -> list[str]:
        return self.seen[:].split(b"\n", 1)[0].decode().strip("\0").split()


def install(boundary: Boundary) -> None:
    """Put the boundary around everything that changes the folder."""

    class Raw(io.FileIO):
        def write(self, data: Any) -> int:
            half = lambda: super(Raw, self).write(bytes(data)[: len(data) // 2])  # noqa: E731
            written: int = boundary.pass_by(
                f"write:{Path(str(self.name)).name}", lambda: super(Raw, self).write(data), half
            )
            return written

    def around(name: str) -> None:
        plain = getattr(os, name)

        def call(path: Any, *rest: Any, **more: Any) -> Any:
            creates = name != "open" or (rest and rest[0] & os.O_CREAT)
            if not (creates and boundary.inside(path)):
                return plain(path, *rest, **more)
            real = os.path.realpath(f"/proc/self/fd/{path}" if isinstance(path, int) else path)
            label = f"{name}:{Path(real).name}"
            return boundary.pass_by(label, lambda: plain(path, *rest, **more), None)

        setattr(os, name, call)

    opened = io.open

    def open_(file: Any, mode: str = "r", *rest: Any, **more: Any) -> Any:
        writes = "b" in mode and any(letter in mode for letter in "wax+")
        if isinstance(file, int) or not writes or not boundary.inside(file):
            return opened(file, mode, *rest, **more)
        bare = mode.replace("b", "")
        raw = boundary.pass_by(f"open:{Path(file).name}", lambda: Raw(file, bare), None)
        if 0 in (*rest[:1], more.get("buffering")):
            return raw
        return io.BufferedRandom(raw) if "+" in mode else io.BufferedWriter(raw)

    builtins.open = io.open = open_
    for name in ("open", "fsync", "replace", "truncate", "unlink", "mkdir", "rmdir"):
        around(name)


def run_case(case: Any, boundary: Boundary, out: int, err: int) -> None:
    """The child: never returns."""
    os.chdir(case["folder"])
    for number, name in ((0, case["stdin"]), (1, out), (2, err)):
        os.dup2(os.open(name, os.O_RDONLY) if isinstance(name, str) else name, number)
    sys.argv = ["jlm", *case["words"]]
    if case["memory"]:
        _little_memory(case["memory"])
    if case["kill_after"]:
        signal.signal(signal.SIGALRM, lambda number, frame: os.kill(os.getpid(), signal.SIGKILL))
        signal.setitimer(signal.ITIMER_REAL, case["kill_after"])
    install(boundary)
    from jlm_cli.cli import main

    code = 1
    try:
        main()
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 0
    except BaseException:
        import traceback

        traceback.print_exc()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _little_memory(most: int) -> None:
    from jlm_cli.fake import FakeEngine

    begin = FakeEngine.begin

    def refusing(self: Any, prompts: Any, drafts: Any, columns: Any) -> Any:
        if sum(map(len, prompts)) > most:
            raise MemoryError
        return begin(self, prompts, drafts, columns)

    FakeEngine.begin = refusing  # type: ignore[method-assign]


def serve() -> None:
    import tempfile

    from jlm_cli import cli, runner, scoreline  # noqa: F401 - loaded once for all children
    from jlm_cli.models import FAKE, ModelFiles
    from jlm_cli.vocabularies import load_vocabulary

    load_vocabulary(ModelFiles(FAKE, Path()))  # loads its library
    sys.argv = ["jlm", "judge", "nothing-here.jsonl"]
    with suppress(SystemExit), redirect_stderr(io.StringIO()):
        cli.main()
    for line in sys.stdin:
        case = json.loads(line)
        boundary = Boundary(case["folder"], case["at"], case["how"])
        with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
            child = os.fork()
            if child == 0:
                run_case(case, boundary, out.fileno(), err.fileno())
            code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
            texts = []
            for file in (out, err):
                file.seek(0)
                texts.append(file.read().decode("utf-8", "replace"))
        names = boundary.names()
        done = {"code": code, "operations": len(names), "names": names}
        print(json.dumps({**done, "out": texts[0], "err": texts[1]}), flush=True)


if __name__ == "__main__":
    serve()
