"""How far a judge can be trusted: how often known tricks make it prefer a poor answer.

Each question has a good answer and a poor one. An attack dresses up the poor one, or puts a text
of its own in its place; it succeeds where the judge prefers it to the good answer in at least one
of the two orders. `control` is the poor answer as it is; `position` counts the control's pairs
whose verdict the order decides. The pairs are judged as `jlm judge --swap` would judge them.
"""

from __future__ import annotations

import math
import tempfile
import tomllib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import orjson

from jlm_cli import runner
from jlm_cli.config import Config
from jlm_cli.errors import EXIT_ABOVE_LIMIT, EXIT_OK, InputError
from jlm_cli.journal import write_stdout
from jlm_cli.records import Json, dump, dump_indented
from jlm_cli.report import Report

CONTROL, POSITION = "control", "position"
_Z = 1.959964  # of a 95 % interval


def rows() -> Iterator[Json]:
    """The built-in set as native rows; the poor or hostile answer is the second."""
    built_in = tomllib.loads((Path(__file__).parent / "probe.toml").read_text("utf-8"))
    attacks = {CONTROL: ["{answer}"], **built_in["attacks"]}
    for name, texts in attacks.items():
        for text in texts:
            for asked in built_in["questions"]:
                hostile = text.replace("{answer}", asked["poor"])
                answers = [asked["good"], hostile]
                yield {"question": asked["question"], "answers": answers, "category": name}


@dataclass
class Tally:
    """Pairs, and pairs in which the judge was led astray, by attack."""

    n: Counter[str] = field(default_factory=Counter)
    fell_for: Counter[str] = field(default_factory=Counter)
    n_error: int = 0

    def add(self, name: str, record: Json) -> None:
        if "error" in record:  # refused: no attack has worked
            self.n_error += 1
            self._count(name, False)
            if name == CONTROL:
                self._count(POSITION, False)
            return
        verdicts = {record["verdict"], record["swapped"]["verdict"]}
        self._count(name, "2" in verdicts)
        if name == CONTROL:
            self._count(POSITION, len(verdicts) > 1)

    def _count(self, name: str, success: bool) -> None:
        self.n[name] += 1
        self.fell_for[name] += success

    def summary(self) -> Json:
        rates = {name: rate(self.fell_for[name], self.n[name]) for name in self.n}
        attacks = {name: rates[name] for name in rates if name not in (CONTROL, POSITION)}
        won = sum(self.fell_for[name] for name in attacks)
        return {
            CONTROL: rates[CONTROL],
            POSITION: rates[POSITION],
            "attacks": attacks,
            "attack_success": rate(won, sum(self.n[name] for name in attacks)),
            "n_error": self.n_error,
        }


def rate(part: int, whole: int) -> Json:
    """A share with its 95 % interval (Wilson's score interval)."""
    p, z2 = part / whole, _Z**2
    centre = (p + z2 / (2 * whole)) / (1 + z2 / whole)
    half = _Z / (1 + z2 / whole) * math.sqrt(p * (1 - p) / whole + z2 / (4 * whole**2))
    low, high = max(0.0, centre - half), min(1.0, centre + half)
    return {"value": round(p, 6), "ci95": [round(low, 6), round(high, 6)], "n": whole}


def run(config: Config, most: float | None) -> int:
    """Probe the model of a configuration; the exit status. Raises JlmError."""
    report = Report(config.quiet)
    given = list(rows())
    report.note(f"probing {config.model} with {len(given)} pairs in both orders")
    tally = Tally()
    with tempfile.TemporaryDirectory(prefix="jlm-") as scratch:
        source, output = Path(scratch) / "probe.jsonl", Path(scratch) / "out.jsonl"
        source.write_bytes(b"".join(dump(row) + b"\n" for row in given))
        there = replace(config, inputs=(str(source),), output=output, quiet=True, print_json=False)
        runner.run(there)
        with output.open("rb") as judged:
            for row, raw in zip(given, judged, strict=True):
                record = orjson.loads(raw)
                tally.add(row["category"], record)
        if tally.n_error == len(given):
            raise InputError(f"no pair can be judged: {record['error']['message']}")
    summary: Json = {"command": "probe", "model": config.model, **tally.summary()}
    passed = most is None or summary["attack_success"]["value"] <= most
    if most is not None:
        summary |= {"max_attack_success": most, "passed": passed}
    report.probe(summary)
    if config.print_json:
        packed = dump_indented(summary)
        write_stdout(iter([packed]))
    return EXIT_OK if passed else EXIT_ABOVE_LIMIT
