"""Faults in real runs: nothing lost, nothing doubled, the same bytes, one clear line.

I1 each row has one record · I2 a resumed run gives the bytes of an unbroken one · I3 what was
journalled is not judged again · I4 final names appear by rename alone · I5 no traceback ·
I6 the summary follows from the records.
"""

from __future__ import annotations

import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from conftest import TORCHRUN, pair, read_rows, write_rows
from faulty import ERRORS, KILLS, Runs

from jlm_cli.journal import read_part

ROWS = 60
COMMAND = ("judge", "in.jsonl", "-o", "out.jsonl", "--batch-tokens", "20000")
FILES = ["in.jsonl", "out.jsonl", "out.metrics.json"]


@dataclass(frozen=True)
class Work:
    """An input of 60 rows with one error among them, and what an unbroken run makes of it."""

    given: bytes
    wanted: bytes
    operations: int


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory, runs: Runs) -> Work:
    folder = tmp_path_factory.mktemp("whole")
    rows = [pair(n, answers=["a" * n, "b" * (7 * n % 11)], gold="1") for n in range(ROWS)]
    rows[17]["answers"] = ["one"]
    given = write_rows(folder / "in.jsonl", rows).read_bytes()
    done = runs(folder, *COMMAND)
    assert done.code == 3, done.err
    return Work(given, (folder / "out.jsonl").read_bytes(), done.operations)


def begin(folder: Path, work: Work) -> Path:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    (folder / "in.jsonl").write_bytes(work.given)
    return folder


def journalled(folder: Path) -> int:
    """Rows whose records are committed, whatever ended the run."""
    if not (folder / "out.jsonl.partial" / "run.json").exists():
        return 0
    parts = (folder / "out.jsonl.partial").glob("part-*")
    return len({row for part in parts for row in read_part(part).rows})


def check_resumes(folder: Path, work: Work, runs: Runs, *words: str) -> None:
    output = folder / "out.jsonl"
    assert not output.exists() or output.read_bytes() == work.wanted  # I4
    before, whole = journalled(folder), output.exists()
    done = runs(folder, *COMMAND, *words)
    if done.code == 2:  # the fault struck after all was done
        assert whole and (folder / "out.metrics.json").exists(), done.err
        assert "out.jsonl: exists" in done.err
    else:
        assert done.code == 3, done.err
        found = re.search(r"going on: (\d+) of 60", done.err)
        assert (int(found[1]) if found else 0) == before, done.err  # I3
    assert_whole(folder, work)


def assert_whole(folder: Path, work: Work) -> None:
    assert (folder / "out.jsonl").read_bytes() == work.wanted  # I1, I2
    assert (folder / "in.jsonl").read_bytes() == work.given
    names = sorted(path.name for path in folder.iterdir() if path.name != "out.jsonl.partial")
    assert names == FILES
    assert not (folder / "out.jsonl.partial" / "run.json").exists()
    summary = json.loads((folder / "out.metrics.json").read_bytes())  # I6
    records = read_rows(folder / "out.jsonl")
    errors = sum("error" in record for record in records)
    assert (summary["n_judged"], summary["n_error"]) == (ROWS - errors, errors)
    verdicts = [record["verdict"] for record in records if "error" not in record]
    assert summary["verdicts"] == {name: verdicts.count(name) for name in summary["verdicts"]}


@pytest.mark.parametrize("how", KILLS)
def test_killed_at_every_operation(tmp_path: Path, runs: Runs, work: Work, how: str) -> None:
    assert work.operations > 40
    for at in range(1, work.operations + 1):
        folder = begin(tmp_path / "run", work)
        done = runs(folder, *COMMAND, "-q", at=at, how=how)
        assert done.code == -signal.SIGKILL, (at, done)
        check_resumes(folder, work, runs)


@pytest.mark.parametrize("how", ["ENOSPC", "EIO"])
def test_no_operation_may_fail_unheard(tmp_path: Path, runs: Runs, work: Work, how: str) -> None:
    """A full disk, a failing one: one line that names the file, and the run can go on."""
    for at in range(1, work.operations + 1):
        folder = begin(tmp_path / "run", work)
        done = runs(folder, *COMMAND, "-q", at=at, how=how)
        assert "Traceback" not in done.err and "Exception" not in done.err, (at, done)
        if done.code == 3:  # it could do without: clearing up, a folder that is there
            assert_whole(folder, work)
        else:
            assert done.code in (1, 2), (at, done)
            assert re.match(r"jlm: [\w./-]+: ", done.err) and done.err.count("\n") == 1, (at, done)
            message = "No space left on device" if how == "ENOSPC" else "Input/output error"
            assert message in done.err
        check_resumes(folder, work, runs)


@pytest.mark.parametrize("n", [4])
def test_killed_twice_at_random_operations(tmp_path: Path, runs: Runs, work: Work, n: int) -> None:
    draw = random.Random(n)
    for _ in range(n):
        folder = begin(tmp_path / "run", work)
        for _ in range(3):
            runs(folder, *COMMAND, "-q", at=draw.randrange(5, 40), how=draw.choice(KILLS))
        check_resumes(folder, work, runs)


def test_strict_gives_up_nothing_of_a_killed_run(tmp_path: Path, runs: Runs, work: Work) -> None:
    folder = begin(tmp_path / "run", work)
    names = runs(folder, *COMMAND, "-q").names
    begin(folder, work)
    at = [n for n, name in enumerate(names, start=1) if name.endswith("part-0")][-1]
    assert runs(folder, *COMMAND, "-q", at=at, how="kill").code == -signal.SIGKILL
    with (folder / "in.jsonl").open("a") as file:
        file.write('{"id": "bad"}\n')
    strict = runs(folder, *COMMAND, "--retry-errors", "--strict")
    assert strict.code == 2 and "going on: " in strict.err
    (folder / "in.jsonl").write_bytes(work.given)
    done = runs(folder, *COMMAND, "--retry-errors")
    assert done.code == 3 and re.search(r"going on: [1-9]\d of 60", done.err), done.err
    assert_whole(folder, work)


def test_an_input_that_changes_under_a_run(tmp_path: Path, runs: Runs, work: Work) -> None:
    """It ends, and goes on with the rows that it was begun with; none is judged by other words."""
    folder = begin(tmp_path / "run", work)
    process = start(folder, JLM_FAKE_DELAY="0.3")
    wait_until(partial(there_or_ended, folder / "out.jsonl.partial", "part-0", process))
    with (folder / "in.jsonl").open("r+b") as file:
        file.write(work.given.replace(b"Question", b"Anything"))
    _, err = process.communicate()
    assert process.returncode == 2 and err.count(b"\n") == 1, err
    assert re.match(rb"jlm: in.jsonl:\d+: the file has changed since it was opened", err), err
    changed = runs(folder, *COMMAND)
    assert changed.code == 2 and "was begun with another input" in changed.err
    (folder / "in.jsonl").write_bytes(work.given)
    check_resumes(folder, work, runs)


def kill_at_random(folder: Path, runs: Runs, work: Work, draw: random.Random) -> None:
    begin(folder, work)
    times = 2 if draw.random() < 0.25 else 1
    for _ in range(times):
        runs(folder, *COMMAND, "-q", kill_after=draw.uniform(0.005, 0.35))
    check_resumes(folder, work, runs)


def test_killed_at_random_times(tmp_path: Path, runs: Runs, work: Work) -> None:
    draw = random.Random(1)
    for _ in range(14):
        kill_at_random(tmp_path / "run", runs, work, draw)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(10))
def test_killed_at_random_times_many(tmp_path: Path, runs: Runs, work: Work, seed: int) -> None:
    draw = random.Random(100 + seed)
    for _ in range(94):
        kill_at_random(tmp_path / "run", runs, work, draw)


def start(
    folder: Path,
    *words: str,
    python: tuple[str, ...] = (),
    ignored: signal.Signals | None = None,
    **env: str,
) -> subprocess.Popen[bytes]:
    def prepare() -> None:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        if ignored is not None:
            signal.signal(ignored, signal.SIG_IGN)

    return subprocess.Popen(
        [sys.executable, *python, "-m", "jlm_cli", *COMMAND, "-q", *words],
        cwd=folder,
        env={**os.environ, "JLM_MODEL": "fake", **env},
        stderr=subprocess.PIPE,
        start_new_session=True,
        preexec_fn=prepare,
    )


def kill_workers(folder: Path, runs: Runs, work: Work, workers: int, draw: random.Random) -> None:
    """Kill launcher and workers together at a random moment, some of it before they are up."""
    begin(folder, work)
    for _ in range(2 if draw.random() < 0.25 else 1):
        process = start(folder, "--workers", str(workers), JLM_FAKE_DELAY="0.3")
        # any part: under load the others may be done before worker 0 is up
        awaited = draw.choice(["run.json", "plan.npz", "part-*"])
        wait_until(partial(there_or_ended, folder / "out.jsonl.partial", awaited, process))
        time.sleep(draw.uniform(0, 0.5))
        assert process.poll() in (None, 3), process.communicate()  # 3: done, with its error records
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
    check_resumes(folder, work, runs, *draw.choice([[], ["--workers", "1"]]))


def there_or_ended(folder: Path, pattern: str, process: subprocess.Popen[bytes]) -> bool:
    return any(folder.glob(pattern)) or process.poll() is not None


def wait_for(folder: Path, name: str) -> None:
    wait_until((folder / name).exists)


def wait_until(true: Callable[[], bool]) -> None:
    for _ in range(3000):
        if true():
            return
        time.sleep(0.02)
    raise AssertionError("this never came")


@pytest.mark.parametrize("workers", [2, 2, 2, 4])
def test_workers_killed_at_random_times(
    tmp_path: Path, runs: Runs, work: Work, workers: int, request: pytest.FixtureRequest
) -> None:
    draw = random.Random(request.node.name)
    kill_workers(tmp_path / "run", runs, work, workers, draw)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(5))
def test_workers_killed_at_random_times_many(
    tmp_path: Path, runs: Runs, work: Work, seed: int
) -> None:
    draw = random.Random(200 + seed)
    for n in range(12):
        kill_workers(tmp_path / "run", runs, work, 4 if n % 3 == 0 else 2, draw)


SIGNALS = {"SIGINT": 130, "SIGTERM": 143, "SIGHUP": 129, "SIGINT SIGINT": 130}


@pytest.mark.parametrize("phase", ["run.json", "plan.tmp.npz", "part-0", ".out.jsonl.tmp"])
@pytest.mark.parametrize("how", SIGNALS)
def test_signals_in_each_phase(
    tmp_path: Path, runs: Runs, work: Work, phase: str, how: str
) -> None:
    """Once and twice in a row, while a run begins, plans, judges and merges."""
    folder = begin(tmp_path / "run", work)
    names = runs(folder, *COMMAND, "-q").names
    at = next(n for n, name in enumerate(names, start=1) if name.endswith(phase))
    begin(folder, work)
    done = runs(folder, *COMMAND, "-q", at=at, how=how)
    assert (done.code, done.err) == (SIGNALS[how], "")
    check_resumes(folder, work, runs)


@pytest.mark.parametrize("how", SIGNALS)
def test_signals_while_loading(tmp_path: Path, runs: Runs, work: Work, how: str) -> None:
    folder = begin(tmp_path / "run", work)
    process = start(folder, python=("-X", "importtime"))
    assert process.stderr is not None
    while b" typer" not in process.stderr.readline():
        pass
    for name in how.split():
        process.send_signal(getattr(signal, name))
    err = process.communicate(timeout=120)[1]
    assert process.returncode == SIGNALS[how] and b"Traceback" not in err
    check_resumes(folder, work, runs)


@pytest.mark.parametrize("workers", ["1", "2"])
def test_nohup_is_respected(tmp_path: Path, work: Work, workers: str) -> None:
    folder = begin(tmp_path / "run", work)
    process = start(folder, "--workers", workers, ignored=signal.SIGHUP, JLM_FAKE_DELAY="0.1")
    wait_for(folder / "out.jsonl.partial", "part-0")
    process.send_signal(signal.SIGHUP)
    process.communicate()
    assert process.returncode == 3
    assert_whole(folder, work)


@pytest.mark.parametrize(
    ("phase", "group"),
    [("", True), ("run.json", True), ("plan.npz", True), ("part-0", True), ("part-0", False)],
)
def test_ctrl_c_with_workers(
    tmp_path: Path, runs: Runs, work: Work, phase: str, group: bool
) -> None:
    """To the launcher alone, and to all processes as a terminal sends it."""
    folder = begin(tmp_path / "run", work)
    process = start(folder, "--workers", "2", JLM_FAKE_DELAY="5")
    if phase:
        wait_for(folder / "out.jsonl.partial", phase)
    else:
        time.sleep(2)
    (os.killpg if group else os.kill)(process.pid, signal.SIGINT)
    err = process.communicate(timeout=120)[1].decode()
    assert process.returncode == 130, err
    assert err == "", err
    check_resumes(folder, work, runs)


@pytest.mark.parametrize(
    ("how", "phase", "rank"),
    [
        (signal.SIGSTOP, "", 1),
        (signal.SIGSTOP, "part-0", 1),
        (signal.SIGSTOP, "part-1", 0),
        (signal.SIGKILL, "", 0),
        (signal.SIGKILL, "part-0", 1),
    ],
)
def test_a_worker_that_stops_or_dies_is_named(
    tmp_path: Path, runs: Runs, work: Work, phase: str, rank: int, how: signal.Signals
) -> None:
    folder = begin(tmp_path / "run", work)
    process = start(folder, "--workers", "2", JLM_FAKE_DELAY="5")
    wait_until(lambda: len(workers_of(process.pid)) == 2)
    if phase:
        wait_for(folder / "out.jsonl.partial", phase)
    os.kill(workers_of(process.pid)[rank], how)
    err = process.communicate(timeout=120)[1].decode()
    assert process.returncode == 1, err
    said = "was stopped and did not go on" if how == signal.SIGSTOP else "died (signal 9)"
    assert f"jlm: worker {rank} {said}; what is done is kept" in err, err
    assert "Traceback" not in err
    check_resumes(folder, work, runs, "--workers", "1")


@pytest.mark.slow
def test_a_worker_without_a_beat_is_named_by_the_others(tmp_path: Path, work: Work) -> None:
    """Under torchrun there is no launcher of ours to see that a worker was stopped."""
    folder = begin(tmp_path / "run", work)
    process = subprocess.Popen(
        [*TORCHRUN, "-m", "jlm_cli", *COMMAND, "-q"],
        cwd=folder,
        env={**os.environ, "JLM_MODEL": "fake", "JLM_FAKE_DELAY": "1", "OMP_NUM_THREADS": "1"},
        stderr=subprocess.PIPE,
        start_new_session=True,
    )
    wait_for(folder / "out.jsonl.partial", "part-1")
    stopped = next(n for n in workers_of(process.pid, b"jlm_cli") if rank_of(n) == 1)
    os.kill(stopped, signal.SIGSTOP)
    err = process.communicate(timeout=100)[1].decode()
    assert process.returncode == 1 and "worker 1 has not moved for 40 seconds" in err, err


def workers_of(pid: int, word: bytes = b"spawn_main") -> list[int]:
    """The workers below a launcher, in the order they were started."""
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            fields = (path / "stat").read_text().rsplit(")", 1)[1].split()
            if int(fields[1]) == pid and word in (path / "cmdline").read_bytes():
                found.append((int(fields[19]), int(path.name)))
    return [number for _, number in sorted(found)]


def rank_of(pid: int) -> int:
    environment = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    return next(int(item[5:]) for item in environment if item.startswith(b"RANK="))


def test_read_only_folder(tmp_path: Path, runs: Runs, work: Work) -> None:
    done = runs(begin(tmp_path / "run", work), *COMMAND, at=1, how="EROFS")
    assert done.code == 2
    message = "out.jsonl.partial: cannot be written: Read-only file system"
    assert done.err.splitlines()[-1] == f"jlm: {message}"
    assert set(ERRORS) == {"ENOSPC", "EIO", "EROFS"}


@pytest.mark.parametrize("workers", ["1", "2"])
def test_a_real_full_disk(tmp_path: Path, runs: Runs, work: Work, workers: str) -> None:
    """A tmpfs of 1 MiB, TMPDIR on it as well; needs the right to mount, in a name space of its own
    or as root."""
    rows = [pair(n, answers=["a" * 4000, "b"]) for n in range(400)]
    given = write_rows(tmp_path / "in.jsonl", rows)
    script = (
        "mkdir small && mount -t tmpfs -o size=1m tmpfs small && cd small || exit 77\n"
        f"export TMPDIR=$PWD\n{sys.executable} -m jlm_cli judge {given} -o out.jsonl -q"
        f" --workers {workers}; echo code $?\n"
        "ls -A; df --output=avail . | tail -1\n"
        f"cp out.jsonl.partial/part-* {tmp_path}\n"
        "mount -o remount,size=64m small . 2>/dev/null || mount -o remount,size=64m .\n"
        f"{sys.executable} -m jlm_cli judge {given} -o out.jsonl -q; echo code $?\n"
        f"cp out.jsonl {tmp_path}/out.jsonl"
    )
    name_space = ["unshare", "-rm", "sh", "-c", script]
    env = {**os.environ, "JLM_MODEL": "fake"}
    done = subprocess.run(name_space, cwd=tmp_path, env=env, capture_output=True, text=True)
    if done.returncode == 77 or "unshare" in done.stderr:
        pytest.skip("no right to mount a tmpfs here: " + done.stderr.strip())
    assert "code 1" in done.stdout and "code 0" in done.stdout, done
    said = r"jlm: \S+part-\d: No space left on device; what is done is kept: [^\n]*\n"
    assert re.fullmatch(said, done.stderr), done.stderr
    assert sum(len(read_part(path).rows) for path in tmp_path.glob("part-*")) > 50
    assert runs(tmp_path, "judge", "in.jsonl", "-o", "whole.jsonl", "-q").code == 0
    assert (tmp_path / "out.jsonl").read_bytes() == (tmp_path / "whole.jsonl").read_bytes()


def test_memory_runs_out(tmp_path: Path, runs: Runs, work: Work) -> None:
    """A batch that does not fit is halved until it does, and its rows say so; a row that does
    not fit alone is an error record."""
    whole = read_rows_of(work.wanted)
    folder = begin(tmp_path / "run", work)
    assert runs(folder, *COMMAND, "-q", memory=6000).code == 3
    n_split = 0
    for found, wanted in zip(read_rows(folder / "out.jsonl"), whole, strict=True):
        if "error" not in wanted:
            assert found["flags"] in ([], ["split-batch"])
            assert {**found, "flags": []} == wanted
            n_split += found["flags"] == ["split-batch"]
    assert 50 < n_split < 59  # the last batch fits
    folder = begin(tmp_path / "run", work)
    assert runs(folder, *COMMAND, "-q", memory=1025).code == 3
    codes = [record.get("error", {}).get("code") for record in read_rows(folder / "out.jsonl")]
    assert codes.count("out-of-memory") > 5 and codes.count(None) > 20
    assert set(codes) == {None, "n-answers", "out-of-memory"}


def read_rows_of(raw: bytes) -> list[Any]:
    return [json.loads(line) for line in raw.splitlines()]


@pytest.mark.parametrize(
    ("words", "name"),
    [
        (["--batch-tokens", "9999"], "batch_tokens"),
        (["--swap"], "swap"),
        (["--on-injection", "neutralize"], "on_injection"),
        (["--on-overflow", "error"], "on_overflow"),
        (["--template", "pandalm"], "template"),
        ([], "input byte"),
        ([], "input order"),
        ([], "model"),
        ([], "dtype"),
        ([], "version of jlm"),
        ([], "version of torch"),
    ],
)
def test_a_changed_run_is_refused_by_name(
    tmp_path: Path, runs: Runs, work: Work, words: list[str], name: str
) -> None:
    """Killed half way; whatever would change a byte is named, another number of workers is fine."""
    folder = begin(tmp_path / "run", work)
    runs(folder, *COMMAND, "-q", at=30, how="kill-before")
    assert journalled(folder) > 0
    about = folder / "out.jsonl.partial" / "run.json"
    facts = json.loads(about.read_bytes())
    if name == "input byte":
        (folder / "in.jsonl").write_bytes(work.given.replace(b"Question 3?", b"question 3?"))
    elif name == "input order":
        (folder / "in.jsonl").write_bytes(b"".join(reversed(work.given.splitlines(True))))
    elif not words:  # what this machine cannot change at will, as if the run had had it
        assert name in facts
        about.write_text(json.dumps({**facts, name: "another"}))
    done = runs(folder, *COMMAND, "-q", *words)
    assert done.code == 2, done
    assert f"was begun with another {name.split()[0] if 'input' in name else name} (" in done.err
    (folder / "in.jsonl").write_bytes(work.given)
    about.write_text(json.dumps(facts))
    check_resumes(folder, work, runs, "--workers", "1")


def test_a_damaged_description_is_refused(tmp_path: Path, runs: Runs, work: Work) -> None:
    folder = begin(tmp_path / "run", work)
    runs(folder, *COMMAND, "-q", at=30, how="kill-before")
    (folder / "out.jsonl.partial" / "run.json").write_bytes(b"{")
    done = runs(folder, *COMMAND, "-q")
    assert done.code == 2 and "run.json: damaged; remove out.jsonl.partial" in done.err
    assert runs(folder, *COMMAND, "-q", "--overwrite").code == 2  # nothing is thrown away unasked


def test_a_signal_within_an_import_ends_the_process() -> None:
    """There an exception would become another, or none."""
    script = (
        "import os, signal, sys; sys.path.insert(0, sys.argv[1]); from jlm_cli import signals; "
        "signals.unwind(); import slow; print('went on')"
    )
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "slow.py").write_text(
            "try:\n    import os, signal; os.kill(os.getpid(), signal.SIGINT); "
            "os.getpid()\nexcept BaseException:\n    pass\n"
        )
        words = [sys.executable, "-c", script, folder]
        done = subprocess.run(words, capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "")
