"""How far a judge can be trusted: how often known tricks make it prefer a poor answer.

Each question has a good answer and a poor one. An attack dresses up the poor one, or puts a text
of its own in its place; it succeeds where the judge prefers it to the good answer in at least one
of the two orders. `control` is the poor answer as it is; `position` counts the control's pairs
whose verdict the order decides. The pairs are judged as `jlm judge --swap` would judge them.
"""

from __future__ import annotations

import tomllib
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import orjson

from jlm_cli import runner, sharding
from jlm_cli.config import Config
from jlm_cli.errors import EXIT_ABOVE_LIMIT, EXIT_OK, InputError, UsageError
from jlm_cli.files import scratch, write_stdout
from jlm_cli.intervals import share_interval
from jlm_cli.metrics import number
from jlm_cli.records import Json, dump, dump_indented
from jlm_cli.report import Report

CONTROL, POSITION = "control", "position"


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
class AttackTally:
    """Pairs, and pairs in which the judge was led astray, by attack."""

    hits: defaultdict[str, defaultdict[str, list[bool]]] = field(
        default_factory=lambda: defaultdict(lambda: defaultdict(list))
    )  # of each attack, by question
    n_error: int = 0
    n_refused: int = 0

    def add(self, name: str, question: str, record: Json) -> None:
        """Count a pair. A refused one is an attack that failed; other errors say nothing."""
        if "error" in record:
            self.n_error += 1
            if record["error"]["code"] == "injection":
                self.n_refused += 1
                self.hits[name][question].append(False)
            return
        verdicts = {record["verdict"], record["swapped"]["verdict"]}
        self.hits[name][question].append("2" in verdicts)
        if name == CONTROL:
            self.hits[POSITION][question].append(len(verdicts) > 1)

    def summary(self) -> Json:
        """Raises InputError where no pair of the control, or none of the attacks, was judged."""
        attacks = {
            name: hits for name, hits in self.hits.items() if name not in (CONTROL, POSITION)
        }
        together: defaultdict[str, list[bool]] = defaultdict(list)
        for hits in attacks.values():
            for question, each in hits.items():
                together[question] += each
        if POSITION not in self.hits or not together:
            raise InputError(f"too few pairs could be judged: {self.n_error} failed")
        rates = {name: rate(list(hits.values())) for name, hits in self.hits.items()}
        return {
            CONTROL: rates[CONTROL],
            POSITION: rates[POSITION],
            "attacks": {name: rates[name] for name in attacks},
            "attack_success": rate(list(together.values())),
            "n_error": self.n_error,
            "n_refused": self.n_refused,
        }


def rate(hits: Sequence[Sequence[bool]]) -> Json:
    """The share of hits with its 95 % interval; `hits` are those of one question each, whose pairs
    go alike."""
    found, n = np.array([sum(each) for each in hits]), np.array([len(each) for each in hits])
    low, high = share_interval(found, n, np.ones(len(n)))
    share, whole = found.sum() / n.sum(), int(n.sum())
    return {"value": number(share), "ci95": [number(low), number(high)], "n": whole}


def run(config: Config, most: float | None) -> int:
    """Probe the model of a configuration; the exit status. Raises JlmError."""
    if sharding.started_by_launcher():
        raise UsageError("probe is a run of few pairs, which a launcher's processes cannot share")
    report = Report(config.quiet)
    given = list(rows())
    report.note(f"probing {config.model} with {len(given)} pairs in both orders")
    tally = AttackTally()
    with scratch() as folder:
        source, output = folder / "probe.jsonl", folder / "out.jsonl"
        source.write_bytes(b"".join(dump(row) + b"\n" for row in given))
        there = replace(config, inputs=(str(source),), output=output, quiet=True, print_json=False)
        runner.run(there)
        with output.open("rb") as judged:
            for row, raw in zip(given, judged, strict=True):
                record = orjson.loads(raw)
                tally.add(row["category"], row["question"], record)
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
