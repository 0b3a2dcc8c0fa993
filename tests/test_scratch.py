"""Folders for the time being: gone when a run ends, those of killed ones when another begins."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from conftest import Jlm, pair
from filelock import FileLock

from jlm_cli.files import _prefix, scratch
from jlm_cli.records import dump


def test_what_a_killed_run_left_is_cleared_by_the_next(tmp_path: Path, jlm: Jlm) -> None:
    """Also what it had read from a pipe; not before a minute is over, and no other's folder."""
    room = tmp_path / "room"
    (other := room / f"{_prefix()}of-somebody").mkdir(parents=True)
    env = {**os.environ, "TMPDIR": str(room), "JLM_MODEL": "fake", "JLM_FAKE_DELAY": "60"}
    row = dump(pair(1)) + b"\n"
    process = subprocess.Popen(
        [sys.executable, "-m", "jlm_cli", "judge", "-", "-o", "-"],
        cwd=tmp_path,
        env=env,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert process.stdin is not None and process.stderr is not None
    process.stdin.write(row)
    process.stdin.close()
    process.stderr.readline()  # it has read all, and knows its model
    (left,) = [folder for folder in room.iterdir() if folder != other]
    assert (left / "stdin").read_bytes() == row

    def another() -> None:
        done = jlm("judge", "-", "-o", "-", stdin=row, env={"TMPDIR": str(room)})
        assert done.code == 0, done.err

    _age(left)
    another()
    assert left.exists()  # it is at work
    process.kill()
    for pipe in (process.stdout, process.stderr):
        assert pipe is not None
        pipe.close()
    process.wait()
    (left / ".held").touch()
    another()
    assert left.exists()
    _age(left)
    another()
    assert [folder.name for folder in room.iterdir()] == [other.name]


def _age(folder: Path) -> None:
    os.utime(folder / ".held", (time.time() - 3600,) * 2)


def test_a_link_in_its_place_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    (theirs := tmp_path / "theirs").mkdir()
    (theirs / ".held").touch()
    (tmp_path / f"{_prefix()}link").symlink_to(theirs)
    _age(theirs)
    with scratch() as folder:
        assert folder.parent == tmp_path
    assert (theirs / ".held").exists() and not folder.exists()


@pytest.mark.parametrize("error", [OSError(37, "No locks available"), NotImplementedError("flock")])
def test_where_there_are_no_locks_nothing_is_cleared(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    acquire = FileLock.acquire

    def fails(lock: FileLock, *given: Any, **named: Any) -> Any:
        acquire(lock, *given, **named).lock.release()
        raise error

    monkeypatch.setattr(FileLock, "acquire", fails)
    with scratch() as folder:
        assert not (folder / ".held").exists()
        with scratch():
            assert folder.exists()
    assert not list(tmp_path.iterdir())
