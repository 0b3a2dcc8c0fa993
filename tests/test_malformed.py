"""Odd input of every kind: one record a line, one clear line for a mistake, bounded memory."""

from __future__ import annotations

import gzip
import json
import os
import random
import sys
from pathlib import Path

import pytest
import zstandard
from conftest import ROOT, peak_memory, read_rows
from faulty import Outcome, Runs
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from malformed import FILES, GOOD_LINE, ODD_LINES, THREE

from jlm_cli.errors import RowError
from jlm_cli.reading.schemas import SCHEMAS, parse_row, read_sample
from jlm_cli.reading.source import LONGEST_LINE, open_source
from jlm_cli.records import read_gold, read_score_line


def judged(runs: Runs, folder: Path, data: bytes, *words: str) -> Outcome:
    (folder / "in.jsonl").write_bytes(data)
    (folder / "out.jsonl").unlink(missing_ok=True)
    done = runs(folder, "judge", "in.jsonl", "-o", "out.jsonl", "-q", *words)
    assert done.code in (0, 2, 3), done
    assert "Traceback" not in done.err and done.out == ""
    assert done.err.count("\n") == (done.code == 2) and (done.code != 2 or done.err[:5] == "jlm: ")
    assert (folder / "in.jsonl").read_bytes() == data
    return done


def check_records(folder: Path, n: int) -> list[dict[str, object]]:
    records: list[dict[str, object]] = read_rows(folder / "out.jsonl")
    summary = json.loads((folder / "out.metrics.json").read_bytes())
    errors = sum("error" in record for record in records)
    assert len(records) == n == summary["n_input"]
    assert (summary["n_judged"], summary["n_error"]) == (n - errors, errors)
    return records


def test_there_are_enough() -> None:
    assert len(ODD_LINES) + len(FILES) >= 80


@pytest.mark.parametrize("name", ODD_LINES)
def test_odd_lines(tmp_path: Path, runs: Runs, name: str) -> None:
    odd, code = ODD_LINES[name]
    done = judged(runs, tmp_path, GOOD_LINE + odd + GOOD_LINE)
    first, found, last = check_records(tmp_path, 3)
    assert "error" not in first and "error" not in last
    error = found.get("error")
    assert (error and error["code"]) == code, found  # type: ignore[index]
    if code:
        assert error["message"].startswith("in.jsonl:2: ")  # type: ignore[index]
    assert done.code == (3 if code else 0)
    strict = judged(runs, tmp_path, GOOD_LINE + odd + GOOD_LINE, "--strict")
    assert strict.code == (2 if code else 0)
    assert not code or strict.err.startswith("jlm: in.jsonl:2: ")


@pytest.mark.parametrize("name", FILES)
def test_odd_files(tmp_path: Path, runs: Runs, name: str) -> None:
    data, code, n = FILES[name]
    done = judged(runs, tmp_path, data)
    assert done.code == code, done
    if code == 2:
        assert "in.jsonl" in done.err and not (tmp_path / "out.jsonl").exists()
    else:
        check_records(tmp_path, n)


def test_a_name_that_is_no_unicode(tmp_path: Path, runs: Runs) -> None:
    name = os.fsdecode(b"\xff\x1b[31m.jsonl")
    (tmp_path / name).write_bytes(b"x\n" + GOOD_LINE)
    done = runs(tmp_path, "judge", name, "-o", "out.jsonl")
    assert done.code == 3 and "\x1b" not in done.err
    assert "31m.jsonl:1: not JSON" in read_rows(tmp_path / "out.jsonl")[0]["error"]["message"]
    done = runs(tmp_path, "judge", name, "-o", "strict.jsonl", "--strict")
    assert done.code == 2 and "\x1b" not in done.err and done.err.count("\n") > 0


@pytest.mark.parametrize("wrap", ["plain", "zstd", "zstd of two frames"])
def test_zstd(tmp_path: Path, runs: Runs, wrap: str) -> None:
    packed = zstandard.compress(THREE)
    data = {"plain": THREE, "zstd": packed, "zstd of two frames": packed + packed}[wrap]
    assert judged(runs, tmp_path, data).code == 0
    check_records(tmp_path, 6 if "two" in wrap else 3)


def test_broken_zstd(tmp_path: Path, runs: Runs) -> None:
    packed = zstandard.compress(random.Random(0).randbytes(3000))
    for data in (packed[:-1], packed[:100], packed[:4], packed + b"x", packed[:4] + b"x" * 9):
        done = judged(runs, tmp_path, data)
        assert done.code == 2 and "broken zstd data" in done.err, done


def test_default_name_of_packed_input(tmp_path: Path, runs: Runs) -> None:
    (tmp_path / "a.jsonl.zst").write_bytes(zstandard.compress(THREE))
    (tmp_path / "b.json.gz").write_bytes(gzip.compress(THREE))
    for name in ("a.jsonl.zst", "b.json.gz"):
        assert runs(tmp_path, "judge", name, "-q").code == 0
    assert (tmp_path / "a.judge.jsonl").exists() and (tmp_path / "b.judge.jsonl").exists()


@pytest.mark.parametrize("packed", [False, True])
def test_memory_is_bounded_on_a_line_of_100_mb(tmp_path: Path, packed: bool) -> None:
    """Against the same input without that line; as JSON it would be judgeable."""
    big = b'{"id": 1, "question": "Q", "answers": ["' + b"a" * 100_000_000 + b'", "b"]}\n'
    peaks = []
    for data in (THREE, THREE + big + GOOD_LINE):
        name = "in.jsonl.zst" if packed else "in.jsonl"
        (tmp_path / name).write_bytes(zstandard.compress(data) if packed else data)
        words = ("judge", name, "-m", "fake", "-o", "out.jsonl", "-q", "--overwrite")
        code, peak = peak_memory(tmp_path, sys.executable, "-m", "jlm_cli", *words)
        assert code in (0, 3)
        peaks.append(peak / 2**20)
    assert peaks[1] < peaks[0] + 150, peaks
    *_, found, last = read_rows(tmp_path / "out.jsonl")
    assert found["error"] == {
        "code": "too-long",
        "message": f"{name}:4: the line is longer than 16 MiB",
    }
    assert "error" not in last and last["line"] == 5


def test_the_longest_line_that_is_read(tmp_path: Path) -> None:
    for extra in (-1, 0, 1):
        start = b'{"id": 1, "question": "Q", "answers": ["", "'
        body = start + b"a " * ((LONGEST_LINE - len(start) - 3 + extra) // 2)
        body += b"a" * (LONGEST_LINE - len(body) - 3 + extra) + b'"]}'
        (tmp_path / "in.jsonl").write_bytes(body + b"\n" + GOOD_LINE)
        with open_source(str(tmp_path / "in.jsonl")) as source:
            raw, good = source
        assert parse_row(good)["id"] == "good"
        if extra <= 0:
            assert len(parse_row(raw)) == 3
        else:
            with pytest.raises(RowError, match="longer than 16 MiB"):
                parse_row(raw)


SEEDS = sorted((ROOT / "samples").iterdir())
TOKENS = [
    *(bytes([char]) for char in b'"{}[],:\\\n\r\0\xff-'),
    *(b"null", b"true", b"1e999", b"\\ud800", b"\xef\xbb\xbf", b"\x1f\x8b", b"\xe2\x80\xa8"),
    *(b"9" * 400, b"[" * 2000),
]
SIDES = [["--gold", "in.jsonl"], ["--reference", "in.jsonl"], ["--strict"], ["--swap"], []]


def mutated(draw: random.Random, data: bytes) -> bytes:
    """A few edits: cut, double, swap, flip, or put in what parsers stumble over."""
    for _ in range(draw.choice([1, 1, 2, 5])):
        start = draw.randrange(len(data) + 1)
        end = min(len(data), start + draw.choice([1, 2, 10, 200, 10_000]))
        match draw.randrange(5):
            case 0:
                data = data[:start] + data[end:]
            case 1:
                data = data[:end] + data[start:end] + data[end:]
            case 2:
                data = data[:start] + draw.choice(TOKENS) + data[end:]
            case 3:
                data = data[:start] + draw.choice(TOKENS) + data[start:]
            case _:
                data = data[:start] + draw.randbytes(1) + data[start + 1 :]
    return data


def survive(runs: Runs, folder: Path, draw: random.Random) -> None:
    """A mutated input is judged with a record for each line, or refused in one line."""
    path = draw.choice(SEEDS)
    data = mutated(draw, b"".join(path.read_bytes().splitlines(True)[: draw.choice([1, 3, 30])]))
    done = judged(runs, folder, data, *draw.choice(SIDES))
    if done.code != 2:
        with open_source(str(folder / "in.jsonl")) as source:
            check_records(folder, len(source))


@pytest.mark.parametrize("seed", range(4))
def test_mutations(tmp_path: Path, runs: Runs, seed: int) -> None:
    draw = random.Random(seed)
    for _ in range(60):
        survive(runs, tmp_path, draw)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(100, 120))
def test_mutations_many(tmp_path: Path, runs: Runs, seed: int) -> None:
    draw = random.Random(seed)
    for _ in range(1000):
        survive(runs, tmp_path, draw)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=8,
)
NAMES = {"id", "gold", "models", "text", "reference", "category", "score", "preference"}
ALL_NAMES = sorted(NAMES.union(*(schema.fields for schema in SCHEMAS)))
patient = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])


@patient
@given(st.data())
def test_any_object_is_a_sample_or_a_row_error(data: st.DataObject) -> None:
    schema = data.draw(st.sampled_from(SCHEMAS))
    names = data.draw(st.sets(st.sampled_from(ALL_NAMES), max_size=5)) | schema.fields
    try:
        read_sample({name: data.draw(JSON) for name in sorted(names)}, schema, 1)
    except RowError as error:
        assert error.code and str(error)


@patient
@given(st.text() | st.from_regex(r"[0-9 .,]{0,12}"))
def test_any_text_is_scores_or_none(text: str) -> None:
    scores = read_score_line(text)
    assert scores is None or all(0 <= score <= 10 for score in scores)
    read_gold(text, 2)


@patient
@given(st.binary())
def test_any_bytes_are_an_object_or_a_row_error(data: bytes) -> None:
    try:
        assert isinstance(parse_row(data), dict)
    except RowError as error:
        assert error.code in ("bad-json", "bad-type")
