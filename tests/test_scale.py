"""A million rows with the fake engine: memory beside a small run's, and the scan on resuming."""

from __future__ import annotations

import json
import subprocess
import sys
import time
import zlib
from pathlib import Path

import numpy as np
import pytest
from conftest import pair, peak_memory, write_rows

from jlm_cli.journal import read_part

ROWS, FEW = 1_000_000, 10_000
LEFT_EVERY = 200  # rows that the resumed run still has to judge
MEGABYTE = 1e6


def test_memory_of_places_alone(tmp_path: Path) -> None:
    """A small likeness of the test below that the default suite can afford."""
    path = fill(tmp_path / "part-0", range(20_000), {"text": "x" * 100})
    part = read_part(path)
    assert len(part.rows) == 20_000 and part.rows.itemsize + part.starts.itemsize == 16


@pytest.mark.slow
def test_a_million_rows(tmp_path: Path) -> None:
    """Surveyed for real, journalled for all but every 200th row, resumed for real."""
    peak_of_few = peak(tmp_path, write_rows(tmp_path / "few.jsonl", rows(FEW)))
    record = json.loads((tmp_path / "few.judge.jsonl").read_bytes().split(b"\n", 1)[0])
    many = write_rows(tmp_path / "many.jsonl", rows(ROWS))
    partial = tmp_path / "many.judge.jsonl.partial"
    process = subprocess.Popen(command(many), cwd=tmp_path)
    while not (partial / "part-0").exists():
        assert process.poll() is None
        time.sleep(0.2)
    process.kill()
    process.wait()
    (partial / "part-0").unlink()
    order = np.load(partial / "plan.npz")["order"].tolist()
    part = fill(partial / "part-0", [row for row in order if row % LEFT_EVERY], record)
    started = time.monotonic()
    assert len(read_part(part).rows) == ROWS - ROWS // LEFT_EVERY
    print(f"\nscan {time.monotonic() - started:.1f} s, {part.stat().st_size / MEGABYTE:.0f} MB")
    peak_of_many = peak(tmp_path, many)
    print(f"peak memory {peak_of_few:.0f} MB with {FEW} rows, {peak_of_many:.0f} MB with {ROWS}")
    assert peak_of_many < peak_of_few + 400
    with (tmp_path / "many.judge.jsonl").open("rb") as merged:
        for row, raw in enumerate(merged):
            assert json.loads(raw)["id"] == row
    assert row == ROWS - 1


def rows(n: int) -> list[object]:
    return [pair(number, answers=["Yes. " * (number % 7), "No."], gold="1") for number in range(n)]


def command(given: Path) -> list[str]:
    return [sys.executable, "-m", "jlm_cli", "judge", given.name, "-m", "fake", "-q"]


def peak(folder: Path, given: Path) -> float:
    """Judge the input; the most memory that took, in MB."""
    code, found = peak_memory(folder, *command(given))
    assert code == 0
    return found / MEGABYTE


def fill(path: Path, numbers: object, record: dict[str, object]) -> Path:
    """A journal part as a run would have left it, in batches of eight."""
    chosen = list(numbers)  # type: ignore[call-overload]
    with path.open("wb") as part:
        for start in range(0, len(chosen), 8):
            batch = chosen[start : start + 8]
            for row in batch:
                raw = json.dumps({**record, "id": row, "line": row + 1}).encode()
                checksum = zlib.crc32(raw, zlib.crc32(b"%d" % row))
                part.write(b"%d\t%08x\t%s\n" % (row, checksum, raw))
            part.write(b"#\t%d\n" % len(batch))
    return path
