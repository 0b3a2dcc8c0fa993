"""Several workers, real processes and real signals: same bytes, nothing lost."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import TORCHRUN, Jlm, pair, read_rows, write_rows
from filelock import FileLock

from jlm_cli import loading, preflight, resuming, runner, sharding, slurm
from jlm_cli.config import Config
from jlm_cli.devices import THREADS
from jlm_cli.journal import Journal
from jlm_cli.report import Report

N = 400
SLOWLY = {"JLM_FAKE_DELAY": "0.1"}  # ten seconds for a whole run: time to reach into it


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, bytes]:
    """An input, and the output of an unbroken run of one worker."""
    folder = tmp_path_factory.mktemp("made")
    given = [pair(n, answers=["a" * (n % 50), "b" * (n % 31)], gold="1") for n in range(N)]
    given[7] = {**given[7], "answers": ["one"]}
    path = write_rows(folder / "in.jsonl", given)
    assert end(start(folder))[0] == 3
    return path, (folder / "out.jsonl").read_bytes()


@pytest.fixture
def rows(tmp_path: Path, made: tuple[Path, bytes]) -> Path:
    return Path(shutil.copy(made[0], tmp_path))


@pytest.fixture
def wanted(rows: Path, made: tuple[Path, bytes]) -> bytes:
    return made[1]


def start(folder: Path, *words: str, env: dict[str, str] | None = None) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-m", "jlm_cli", "judge", "in.jsonl", "-o", "out.jsonl", *words],
        cwd=folder,
        env={**os.environ, "JLM_MODEL": "fake", **(env or {})},
        stderr=subprocess.PIPE,
        start_new_session=True,
        preexec_fn=_hear_interrupts,
    )


def _hear_interrupts() -> None:
    """A shell's background jobs inherit a deaf ear for SIGINT."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def wait_for_records(folder: Path, part: str = "part-*") -> None:
    """Until some batches are journalled."""
    for _ in range(6000):
        sizes = [path.stat().st_size for path in folder.glob(f"out.jsonl.partial/{part}")]
        if sum(sizes) > 5000:
            return
        time.sleep(0.02)
    raise AssertionError("nothing was journalled")


def children(pid: int) -> Iterator[int]:
    """Workers: the processes below `pid` that are Python children of the launcher."""
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text().rsplit(")", 1)[1].split()
            command = (path.parent / "cmdline").read_bytes()
        except (FileNotFoundError, ProcessLookupError):
            continue
        if int(fields[1]) == pid and b"spawn_main" in command:
            yield int(path.parent.name)


def end(process: subprocess.Popen[bytes]) -> tuple[int, str]:
    _, err = process.communicate(timeout=60)
    return process.returncode, err.decode()


@pytest.mark.parametrize("workers", ["2", "3"])
def test_any_number_of_workers_gives_the_same_bytes(
    tmp_path: Path, jlm: Jlm, wanted: bytes, workers: str
) -> None:
    done = jlm("judge", "in.jsonl", "-q", "--workers", workers)
    assert (done.code, done.err) == (3, "")
    assert (tmp_path / "in.judge.jsonl").read_bytes() == wanted
    assert not list(tmp_path.glob("*.partial"))


@pytest.mark.parametrize(("before", "after"), [("1", "1"), ("2", "1"), ("2", "3"), ("1", "2")])
def test_killed_and_resumed(
    tmp_path: Path, jlm: Jlm, wanted: bytes, before: str, after: str
) -> None:
    process = start(tmp_path, "--workers", before, env=SLOWLY)
    wait_for_records(tmp_path)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    assert not (tmp_path / "out.jsonl").exists()
    done = jlm("judge", "in.jsonl", "-o", "out.jsonl", "--workers", after)
    assert done.code == 3
    assert "going on: " in done.err
    assert (tmp_path / "out.jsonl").read_bytes() == wanted


@pytest.mark.parametrize("workers", ["1", "2"])
@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)]
)
def test_signals_end_with_their_code_and_can_be_resumed(
    tmp_path: Path, jlm: Jlm, wanted: bytes, number: int, code: int, workers: str
) -> None:
    process = start(tmp_path, "--workers", workers, env=SLOWLY)
    wait_for_records(tmp_path)
    process.send_signal(number)
    found, err = end(process)
    assert (found, "Traceback" in err) == (code, False), err
    assert err.count("ended; what is done is kept: the same command goes on") == 1
    assert jlm("judge", "in.jsonl", "-o", "out.jsonl", "-q").code == 3
    assert (tmp_path / "out.jsonl").read_bytes() == wanted


def test_a_dead_worker_is_named(tmp_path: Path, jlm: Jlm, wanted: bytes) -> None:
    process = start(tmp_path, "--workers", "2", env=SLOWLY)
    wait_for_records(tmp_path, "part-1")
    first, *_ = children(process.pid)
    os.kill(first, signal.SIGKILL)
    code, err = end(process)
    assert code == 1
    assert "died (signal 9); what is done is kept: the same command goes on" in err
    assert "Traceback" not in err
    assert jlm("judge", "in.jsonl", "-o", "out.jsonl", "-q", "--workers", "2").code == 3
    assert (tmp_path / "out.jsonl").read_bytes() == wanted


_KILLED_WHEN_TOLD_TO_GO = """
import os, signal, sys, time
from torch.distributed.elastic.multiprocessing.api import MultiprocessContext
from jlm_cli.cli import app

is_done = MultiprocessContext._is_done

def and_one_is_killed(context):
    if is_done(context):
        time.sleep(0.5)  # by then all wait for the word to go
        os.kill(context.pids()[1], signal.SIGKILL)
    return is_done(context)

MultiprocessContext._is_done = and_one_is_killed
if __name__ == "__main__":
    app()
"""


def test_a_worker_that_is_killed_when_all_is_done_holds_nothing_up(
    tmp_path: Path, rows: Path, wanted: bytes
) -> None:
    """The launcher would wait for it for ever: seen once in 402 random kills."""
    script = tmp_path / "script.py"
    script.write_text(_KILLED_WHEN_TOLD_TO_GO)
    done = subprocess.run(
        [sys.executable, script, "judge", "in.jsonl", "-o", "out.jsonl", "--workers", "3"],
        cwd=tmp_path,
        env={**os.environ, "JLM_MODEL": "fake"},
        stderr=subprocess.PIPE,
        timeout=120,
    )
    assert done.returncode == 3, done.stderr
    assert (tmp_path / "out.jsonl").read_bytes() == wanted


def test_workers_die_with_their_parent(tmp_path: Path, rows: Path) -> None:
    process = start(tmp_path, "--workers", "2", env=SLOWLY)
    wait_for_records(tmp_path)
    below = list(children(process.pid))
    assert len(below) == 2
    process.kill()
    process.communicate()
    for _ in range(3000):
        if not any(_alive(pid) for pid in below):
            return
        time.sleep(0.02)
    raise AssertionError("workers outlived their parent by a minute")


def _alive(pid: int) -> bool:
    try:
        return "Z" not in Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False


def test_joins_a_launcher(tmp_path: Path, jlm: Jlm, wanted: bytes) -> None:
    """torchrun around the command: two processes on one counter, one output."""
    command = [*TORCHRUN, "-m", "jlm_cli", "judge", "in.jsonl", "-o", "out.jsonl", "-q"]
    env = {**os.environ, "JLM_MODEL": "fake", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True)
    assert (tmp_path / "out.jsonl").read_bytes() == wanted, done.stderr.decode()


RESTLESS = """
from jlm_cli import cli, sharding
sharding._LOOK, sharding._MOST_SILENT = 0, 10**9
cli.main()
"""


def test_ends_whatever_its_watch_is_doing(tmp_path: Path, made: tuple[Path, bytes]) -> None:
    """Python aborted at its end where the watch was within the store, which here it always is."""
    given = [
        row for n, row in enumerate(read_rows(made[0])) if n != 7
    ]  # torchrun wants no failures
    write_rows(tmp_path / "in.jsonl", given)
    (tmp_path / "restless.py").write_text(RESTLESS)
    command = [*TORCHRUN, "--standalone", "restless.py", "judge", "in.jsonl", "-o", "out.jsonl"]
    env = {**os.environ, "JLM_MODEL": "fake", "OMP_NUM_THREADS": "1"}
    done = subprocess.run([*command, "-q"], cwd=tmp_path, env=env, capture_output=True)
    assert done.returncode == 0, done.stderr.decode()
    assert len(read_rows(tmp_path / "out.jsonl")) == N - 1


def test_a_launcher_needs_files(jlm: Jlm) -> None:
    done = jlm("judge", "-", "-o", "-", env={"RANK": "0", "WORLD_SIZE": "2"})
    assert done.code == 2 and "share files, not pipes" in done.err


def of_srun(rank: int, port: int) -> dict[str, str]:
    return {
        "SLURM_STEP_NUM_TASKS": "2",
        "SLURM_PROCID": str(rank),
        "SLURM_LOCALID": str(rank),
        "SLURM_NTASKS_PER_NODE": "2",
        "SLURM_JOB_ID": str(port - 20000),
    }


def test_where_processes_of_srun_meet() -> None:
    assert slurm.meeting_host({"SLURM_LAUNCH_NODE_IPADDR": "10.0.0.1"}) == "127.0.0.1"
    several = {"SLURM_STEP_NUM_NODES": "2", "SLURM_STEP_NODELIST": "n[07-09,12],m3"}
    assert slurm.meeting_host({**several, "SLURM_LAUNCH_NODE_IPADDR": "10.0.0.1"}) == "n07"
    for nodes, first in {
        "alone": "alone",
        "a-1,b[2-3]": "a-1",
        "n[1,3]-ib,m": "n1-ib",
        "r[0-1]n[4-6]": "r0n4",
        "gpu[011-014]": "gpu011",
    }.items():
        assert slurm.first_host(nodes) == first
    ports = [slurm.meeting_port({"SLURM_JOB_ID": "7", "SLURM_STEP_ID": str(n)}) for n in range(9)]
    assert len(set(ports)) == 9 and all(20000 <= port < 40000 for port in ports)


@pytest.mark.parametrize(
    "told, node, tasks", [("8", 0, 8), ("4(x2),3", 1, 4), ("4(x2),3", 2, 3), ("2(x3)", 2, 2)]
)
def test_how_many_processes_of_srun_share_a_machine(told: str, node: int, tasks: int) -> None:
    given = {"SLURM_STEP_TASKS_PER_NODE": told, "SLURM_NODEID": str(node)}
    assert slurm.tasks_here({**given, "SLURM_NTASKS_PER_NODE": "1"}) == tasks
    assert slurm.tasks_here({"SLURM_NTASKS_PER_NODE": "5"}) == 5


@pytest.mark.parametrize("option", ["--gpus", "--workers"])
def test_a_launcher_s_processes_start_no_others(tmp_path: Path, rows: Path, option: str) -> None:
    code, said = end(start(tmp_path, option, "2", env={"RANK": "0", "WORLD_SIZE": "2"}))
    assert code == 2 and "a launcher has started them" in said


def test_a_worker_that_no_batch_is_left_for_loads_no_weights(
    tmp_path: Path, rows: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = Config(command="judge", inputs=(str(rows),), output=None, model="fake", limit=3)
    now, journal = preflight.open_run(config, Report(True)), Journal(tmp_path / "partial", 0)
    journal.folder.mkdir()
    runner._begin(now, journal, Report(True))
    monkeypatch.setattr(loading, "load_engine", lambda *_: pytest.fail("weights were loaded"))
    second = sharding.Alone()
    second.rank = 1
    runner._judge_share(now, Journal(journal.folder, 1), second, Report(True))
    assert list(journal.records()) == []
    now.rows.source.__exit__()


def free_port() -> int:
    """Of those that a job's number stands for, other ones for each process of pytest."""
    mine = 1000 * int(os.environ.get("PYTEST_XDIST_WORKER", "gw0")[2:])
    for port in range(20000 + mine + os.getpid() % 500, 21000 + mine):
        with socket.socket() as one, suppress(OSError):
            one.bind(("", port))
            return port
    raise AssertionError("no free port")


def test_srun_gives_the_same_bytes(tmp_path: Path, wanted: bytes) -> None:
    port = free_port()
    both = [start(tmp_path, env=of_srun(rank, port)) for rank in (0, 1)]
    assert [end(one)[0] for one in both] == [3, 0]
    assert (tmp_path / "out.jsonl").read_bytes() == wanted


def test_a_mistake_that_srun_s_first_process_sees_leaves_no_traceback(
    tmp_path: Path, rows: Path
) -> None:
    folder = tmp_path / "out.jsonl.partial"
    folder.mkdir()
    port = free_port()
    with FileLock(folder / "lock"):
        both = [start(tmp_path, env=of_srun(rank, port)) for rank in (0, 1)]
        (code, first), (other, second) = (end(one) for one in both)
    assert code == 2 and "another run is writing there" in first
    assert other == 1 and "the workers' store has ended; what is done is kept" in second
    assert "Traceback" not in first + second


def test_a_process_that_stays_alone_ends_with_a_line(tmp_path: Path, rows: Path) -> None:
    impatient = (
        "import sys; from datetime import timedelta; from jlm_cli import cli, sharding; "
        "sharding._JOINING = timedelta(seconds=3); "
        "sys.argv = ['jlm', 'judge', 'in.jsonl', '-m', 'fake', '-o', 'out.jsonl', '-q']; cli.main()"
    )
    done = subprocess.run(
        [sys.executable, "-c", impatient],
        cwd=tmp_path,
        env={**os.environ, **of_srun(1, free_port())},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1 and "the other processes were not met at 127.0.0.1:" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("n", [0, 1, 2])
def test_fewer_rows_than_workers(tmp_path: Path, jlm: Jlm, n: int) -> None:
    write_rows(tmp_path / "in.jsonl", [pair(number) for number in range(n)])
    done = jlm("judge", "in.jsonl", "--workers", "3", "-q")
    assert done.code == 0, done.err
    assert len(read_rows(tmp_path / "in.judge.jsonl")) == n


def test_a_mistake_seen_by_workers_is_told_once(tmp_path: Path, jlm: Jlm, rows: Path) -> None:
    done = jlm("judge", "in.jsonl", "--workers", "2", "--strict")
    assert done.code == 2
    assert done.err.strip().splitlines()[-1].startswith("jlm: in.jsonl:8: field answers")
    assert done.err.count("field answers") == 1 and "Traceback" not in done.err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--gpus", "8"), "--gpus 8: there are 0 CUDA devices on this machine"),
        (("--workers", "2", "--gpus", "1"), "--workers is for processes on the CPU"),
        (("--gpus", "1", "--device", "cpu"), "--gpus and --device cpu exclude each other"),
    ],
)
def test_what_the_machine_lacks(
    tmp_path: Path, jlm: Jlm, words: tuple[str, ...], message: str
) -> None:
    write_rows(tmp_path / "in.jsonl", [pair(1)])
    done = jlm("judge", "in.jsonl", *words, env={"CUDA_VISIBLE_DEVICES": ""})
    assert done.code == 2 and done.err.strip() == f"jlm: {done.err.strip()[5:]}"
    assert message in done.err


def test_pipe_with_workers(jlm: Jlm) -> None:
    given = "".join(json.dumps(pair(n)) + "\n" for n in range(40))
    one: Any = jlm("judge", "-", "-q", stdin=given)
    two = jlm("judge", "-", "-q", "--workers", "2", stdin=given)
    assert one.out == two.out and len(one.out.splitlines()) == 40


def test_real_model_gives_the_same_bytes(tmp_path: Path, jlm: Jlm, replica: Path) -> None:
    """Workers of one thread each."""
    given = [pair(n, answers=["a word " * (n % 40), "b"]) for n in range(60)]
    write_rows(tmp_path / "in.jsonl", given)
    words = ("judge", "in.jsonl", "-q", "-m", str(replica), "--batch-tokens", "2000")
    for workers in ("1", "2"):
        more = ("-o", f"{workers}.jsonl", "--workers", workers)
        done = jlm(*words, *more, env={"OMP_NUM_THREADS": "1"})
        assert done.code == 0, done.err
    assert (tmp_path / "1.jsonl").read_bytes() == (tmp_path / "2.jsonl").read_bytes()


def test_a_run_goes_on_with_as_many_threads_as_it_began_with(tmp_path: Path, jlm: Jlm) -> None:
    """They can change bytes."""
    given = [pair(n, answers=["some more words " * (n % 40), "b"]) for n in range(60)]
    write_rows(tmp_path / "in.jsonl", given)
    model = ("-m", "tiny", "--batch-tokens", "1500")
    process = start(tmp_path, *model, env={"OMP_NUM_THREADS": "1"})
    wait_for_records(tmp_path)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    begun = Journal(tmp_path / "out.jsonl.partial")
    assert 0 < begun.n_records() < len(given)
    done = jlm("judge", "in.jsonl", "-q", "-o", "out.jsonl", *model, env={"OMP_NUM_THREADS": "2"})
    assert done.code == 0, done.err
    whole = ("judge", "in.jsonl", "-q", "-o", "whole.jsonl", *model)
    assert jlm(*whole, env={"OMP_NUM_THREADS": "1"}).code == 0
    assert (tmp_path / "out.jsonl").read_bytes() == (tmp_path / "whole.jsonl").read_bytes()
    made = json.loads((tmp_path / "out.metrics.json").read_bytes())["made_with"]
    assert made[THREADS] == 1


def test_a_run_goes_on_computing_as_it_began(tmp_path: Path, replica: Path) -> None:
    """As many threads, and as large batches where none are asked for; begun anew, as it likes."""
    write_rows(tmp_path / "in.jsonl", [pair(n) for n in range(3)])
    config = Config(
        inputs=(str(tmp_path / "in.jsonl"),), output=tmp_path / "out.jsonl", model=str(replica),
        device="cpu",
    )  # fmt: skip
    now, journal = preflight.open_run(config, Report(True)), Journal(tmp_path / "out.jsonl.partial")
    journal.folder.mkdir()
    assert now.compute.threads == torch.get_num_threads()
    assert resuming.as_begun(now, journal) == now
    before = replace(now, compute=replace(now.compute, threads=7, batch_tokens=5000))
    journal.begin(preflight.fingerprint(before))
    for overwrite in (False, True):  # the same run, once more
        again = replace(now, config=replace(config, overwrite=overwrite))
        assert resuming.as_begun(again, journal).compute == before.compute
    asked = replace(now, config=replace(config, batch_tokens=4096))
    assert resuming.as_begun(asked, journal).compute == replace(now.compute, threads=7)
    other = replace(now, config=replace(config, limit=2, overwrite=True))
    assert resuming.as_begun(other, journal) == other
    now.rows.source.__exit__()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
@pytest.mark.parametrize("rank", [0, 1])
def test_who_waits_for_others_can_be_ended(
    tmp_path: Path, rows: Path, rank: int, number: signal.Signals
) -> None:
    """Under srun, for processes that never come: torch waits in C++, where Python hears nothing."""
    process = start(tmp_path, env=of_srun(rank, free_port()))
    while "torch" not in maps_of(process.pid):
        assert process.poll() is None
        time.sleep(0.05)
    time.sleep(2)
    process.send_signal(number)
    code, said = end(process)
    assert code in (-number, 128 + number) and "Traceback" not in said


def maps_of(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/maps").read_text()
    except OSError:
        return ""


def test_one_question_is_for_one_process(jlm: Jlm) -> None:
    asked = ("judge", "-Q", "Why?", "-A", "So.", "-A", "No.")
    done = jlm(*asked, env={"RANK": "0", "WORLD_SIZE": "2"})
    assert done.code == 2 and "-Q is one question" in done.err


def test_workers_leave_nothing_behind(tmp_path: Path, rows: Path) -> None:
    (tmp_path / "tmp").mkdir()
    for threads in ("1,1", ""):  # a list, as OpenMP takes one; none
        env = {"TMPDIR": str(tmp_path / "tmp"), "OMP_NUM_THREADS": threads}
        process = start(tmp_path, "--workers", "2", "--overwrite", env=env)
        assert end(process)[0] == 3
    assert list((tmp_path / "tmp").iterdir()) == []


def test_more_workers_than_cores_are_told_of(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sharding, "_n_cores", lambda: 2)
    monkeypatch.setattr(sharding, "launch", lambda work, n: n)
    for n, told in ((2, False), (3, True)):
        config = Config(("in.jsonl",), None, "fake", workers=n)
        assert sharding.run_workers(config, lambda *_: 0) == n
        assert ("3 workers on 2 cores" in capsys.readouterr().err) == told
