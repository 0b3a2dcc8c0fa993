"""What a run costs beside the model's own work, and how it grows: one subcommand each.

    python benchmarks/costs.py startup              seconds until help, a version, a first verdict
    python benchmarks/costs.py workers --rows 96    two workers of one thread against one
    python benchmarks/costs.py lengths              seconds a pair by prompt length, batch, rows
    python benchmarks/costs.py stages               rows a second: survey, plan, journal, merge
    python benchmarks/costs.py metrics              seconds and memory for figures of many records

Every figure comes from real commands in processes of their own, or, for `stages`, from the very
functions that a run calls; all take turns, and medians over rounds are given.
"""

from __future__ import annotations

import argparse
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import orjson
from throughput import machine, tell

from jlm_cli.batching import make_plan
from jlm_cli.journal import Journal, read_part

Json = dict[str, Any]
SAMPLES = Path(__file__).resolve().parent.parent / "samples"
PAIRS = SAMPLES / "pairs.jsonl"


_MEASURED = """
import resource, subprocess, sys, time
start = time.perf_counter()
status = subprocess.run(sys.argv[1:], stdout=subprocess.DEVNULL).returncode
print(time.perf_counter() - start, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)
sys.exit(status)
"""  # from a small process: until a command starts, its memory counts as that of the one before


def jlm(*words: str | Path, threads: int | None = None) -> tuple[float, float]:
    """A real command: its seconds, and the most memory that one of its processes took, in MB."""
    env = dict(os.environ)
    if threads is not None:
        env["OMP_NUM_THREADS"] = str(threads)
    command = [sys.executable, "-m", "jlm_cli", *map(str, words)]
    done = subprocess.run(
        [sys.executable, "-c", _MEASURED, *command], env=env, stdout=subprocess.PIPE
    )
    if done.returncode:
        raise SystemExit(f"failed: {' '.join(command)}")
    seconds, kilobytes = done.stdout.split()
    return float(seconds), int(kilobytes) / 1e3


def in_turns(rounds: int, ways: Mapping[str, Callable[[], float]]) -> dict[str, float]:
    """Medians of what each way gives, all taking turns; a first round warms up."""
    found: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(rounds + 1):
        for name, way in ways.items():
            found[name].append(way())
    return {name: round(statistics.median(values[1:]), 3) for name, values in found.items()}


def startup(options: argparse.Namespace, scratch: Path) -> Json:
    out = scratch / "out.jsonl"

    def judge(model: str) -> float:
        words = ("judge", PAIRS, "-m", model, "--limit", "1", "-q", "--overwrite", "-o", out)
        return jlm(*words)[0]

    ways = {
        "version": lambda: jlm("--version")[0],
        "help": lambda: jlm("judge", "--help")[0],
        "first_verdict_fake": lambda: judge("fake"),
        "first_verdict": lambda: judge(options.model),
    }
    return {"seconds": in_turns(options.rounds, ways)}


def workers(options: argparse.Namespace, scratch: Path) -> Json:
    """Loading included, since users wait for it too; and with it taken off."""

    def judge(n: int, rows: int) -> float:
        words = ["judge", options.input, "-m", options.model, "--workers", str(n), "-q"]
        words += ["--limit", str(rows), "--overwrite", "-o", scratch / f"{n}.jsonl"]
        return jlm(*words, threads=1)[0]

    ways = {
        f"{n}_workers_{rows}_rows": partial(judge, n, rows)
        for n in (1, 2)
        for rows in (2, options.rows)
    }
    found = in_turns(options.rounds, ways)
    one, two = (found[f"{n}_workers_{options.rows}_rows"] for n in (1, 2))
    loading = [found[f"{n}_workers_2_rows"] for n in (1, 2)]
    same = (scratch / "1.jsonl").read_bytes() == (scratch / "2.jsonl").read_bytes()
    return {
        "rows": options.rows,
        "rounds": options.rounds,
        "two_over_one": round(one / two, 3),
        "two_over_one_without_loading": round((one - loading[0]) / (two - loading[1]), 3),
        "same_bytes": same,
        "seconds": found,
    }


def lengths(options: argparse.Namespace, scratch: Path) -> Json:
    """One thing at a time is varied; what a run of two rows takes is taken off."""

    def judge(words_each: int, rows: int, *more: str) -> tuple[float, float]:
        given = scratch / f"{words_each}-{rows}.jsonl"
        write_rows(given, made(words_each, rows))
        words = ("judge", given, "-m", options.model, "-q", "--overwrite", *more)
        return jlm(*words, "-o", scratch / "out.jsonl")

    def cost(words_each: int, rows: int, *more: str) -> Json:
        start = statistics.median(judge(words_each, 2, *more)[0] for _ in range(options.rounds))
        full = [judge(words_each, rows, *more) for _ in range(options.rounds)]
        seconds = statistics.median(one[0] for one in full) - start
        memory = max(one[1] for one in full)
        return {"seconds_a_pair": round(seconds / (rows - 2), 4), "peak_mb": round(memory)}

    n = options.rows
    return {
        "rows": n,
        "rounds": options.rounds,
        "by_words_of_an_answer": {str(w): cost(w, n) for w in (20, 80, 320)},
        "by_batch_tokens": {
            str(t): cost(80, n, "--batch-tokens", str(t)) for t in (2048, 4096, 16384)
        },
        "by_rows": {str(r): cost(80, r) for r in (n // 2, n, 2 * n)},
    }


def made(words_each: int, rows: int) -> Iterator[Json]:
    words = [
        "the",
        "answer",
        "to",
        "this",
        "question",
        "is",
        "that",
        "many",
        "things",
        "come",
        "together",
        "here",
    ]
    for row in range(rows):
        texts = [
            " ".join(words[(row * 7 + place * (side + 3)) % 12] for place in range(words_each))
            for side in (0, 1)
        ]
        yield {"id": row, "question": f"What about number {row}?", "answers": texts}


def write_rows(path: Path, rows: Iterable[Json]) -> None:
    with path.open("wb") as file:
        file.writelines(orjson.dumps(row) + b"\n" for row in rows)


def stages(options: argparse.Namespace, scratch: Path) -> Json:
    """Of many short rows, in batches of 64, as a GPU would judge them."""
    n = options.many
    tokens = np.random.default_rng(0).integers(100, 900, n)
    out = scratch / "few.jsonl"
    few = min(n, 20_000)
    given = scratch / "rows.jsonl"
    write_rows(given, made(8, few))
    survey = jlm("judge", given, "-m", "fake", "--plan", "-q")[0] - jlm("--version")[0]
    jlm("judge", given, "-m", "fake", "-q", "--limit", "1", "-o", out)
    record = out.read_bytes().rstrip(b"\n")

    start = time.perf_counter()
    plan = make_plan(range(n), tokens.tolist(), range(n), 64 * 500)
    planned = time.perf_counter() - start
    journal = Journal(scratch / "partial")
    journal.folder.mkdir()
    start = time.perf_counter()
    for batch in plan:
        journal.append([(row, record) for row in batch])
    journal.close()
    journalled = time.perf_counter() - start
    start = time.perf_counter()
    read_part(journal.folder / "part-0")
    scanned = time.perf_counter() - start
    start = time.perf_counter()
    size = sum(map(len, journal.records()))
    merged = time.perf_counter() - start
    return {
        "rows": n,
        "megabytes": round(size / 1e6),
        "rows_a_second": {
            "survey": round(few / survey),
            "plan": round(n / planned),
            "journal": round(n / journalled),
            "merge": round(n / merged),
            "plan_journal_and_merge": round(n / (planned + journalled + merged)),
        },
        "resume_scan_seconds": round(scanned, 2),
        "peak_mb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3),
    }


def metrics(options: argparse.Namespace, scratch: Path) -> Json:
    """Of compact records with gold: those of a thousand rows over and over, by other ids."""
    given, judged, many = (scratch / name for name in ("rows.jsonl", "out.jsonl", "many.jsonl"))
    write_rows(given, ({**row, "gold": str(1 + row["id"] % 2)} for row in made(2, 1000)))
    jlm("judge", given, "-m", "fake", "--compact", "-q", "-o", judged)
    records = [orjson.loads(line) for line in judged.read_bytes().splitlines()]
    write_rows(many, ({**records[n % 1000], "id": str(n)} for n in range(options.many)))
    seconds, memory = jlm("metrics", many)
    return {"rows": options.many, "seconds": round(seconds, 1), "peak_mb": round(memory)}


COMMANDS = {one.__name__: one for one in (startup, workers, lengths, stages, metrics)}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("what", choices=COMMANDS)
    parser.add_argument("--input", type=Path, default=PAIRS)
    parser.add_argument("--model", default="tiny")
    parser.add_argument("--rows", type=int, default=48)
    parser.add_argument("--many", type=int, default=1_000_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--output", type=Path, help="write the JSON here as well")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="jlm-costs-") as scratch:
        found = COMMANDS[options.what](options, Path(scratch))
    result = {**found, "conditions": {"machine": machine("cpu"), "model": options.model}}
    tell(result, options.output)


if __name__ == "__main__":
    main()
