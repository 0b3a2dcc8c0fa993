"""How well a model judges, and what each part of a recipe brings.

    python benchmarks/judge_quality.py figures -m MODEL --pandalm test.jsonl --reviews held.jsonl
    python benchmarks/judge_quality.py checks -m MODEL --scored scored.jsonl.gz --work DIR
    python benchmarks/judge_quality.py hold-out reviews.jsonl -o held.jsonl --questions 30
    python benchmarks/judge_quality.py ablations -m BASE --train t.jsonl --validation v.jsonl -o DIR

`figures` judges the PandaLM test set and held-out teacher reviews in both orders, beside the
baselines that read nothing. `checks` takes rated answers to validation questions and counts how
often a grade falls when the answer is spoiled, how often `rank` puts gibberish last, and how often
free greedy decoding gives a valid score line. `hold-out` takes whole questions out of a review
file; give the result to `jlm data --hold-out` and to `figures --reviews`. `ablations` trains one
judge for each row of the paper's Tables 5 and 6 (and with `--scales` of Table 4; with `--template
pandalm` of Tables 12 and 13) by `jlm train` and judges the same validation rows with and without
their reference.
Everything that was trained or judged already stays; the same command goes on.
"""

from __future__ import annotations

import argparse
import random
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson

from jlm_cli.errors import RowError
from jlm_cli.reading.recognition import recognise
from jlm_cli.reading.source import open_source
from jlm_cli.records import read_score_line
from jlm_cli.scoreline import SCORES
from jlm_cli.training.bad_answers import Good, spoil
from jlm_cli.training.data import for_validation
from jlm_cli.training.gathering import Answered, DataConfig, Gathered, read_source
from jlm_cli.training.lessons import Lesson, Teaching, question_key, read_lesson

Json = dict[str, Any]


@dataclass(frozen=True)
class Variant:
    """One row of a table: how its judge is trained. `drop` is the share of samples shown without
    their reference, 1 for training without references."""

    name: str
    table: str
    swap: float
    drop: float
    rows: int | None = None


TABLES_5_AND_6 = (
    Variant("baseline, without reference", "5, 6", swap=0.0, drop=1.0),
    Variant("+ swap augmentation", "5", swap=0.5, drop=1.0),
    Variant("with reference", "6", swap=0.0, drop=0.0),
    Variant("reference drop", "6", swap=0.0, drop=0.5),
)


def jlm(*words: str | Path) -> None:
    """A real command, in a process of its own."""
    subprocess.run([sys.executable, "-m", "jlm_cli", *map(str, words)], check=True)


def judged(model: str, rows: Path, output: Path, *more: str) -> Json:
    """The summary of judging a file in both orders."""
    metrics = output.with_name(f"{output.stem}.metrics.json")
    if not metrics.exists():
        jlm("judge", rows, "-m", model, "--swap", "-q", "--compact", "-o", output, *more)
    return orjson.loads(metrics.read_bytes())  # type: ignore[no-any-return]


def figures_of(summary: Json) -> Json:
    """Single order, both orders with a conflict as a tie, reliability, and the baselines."""
    kept = ("n_judged", "n_error", "objective", "combined", "reliability", "baselines")
    return {name: summary[name] for name in kept if name in summary}


def value(figures: Json, *path: str) -> str:
    found: Any = figures
    for name in path:
        found = found.get(name, {})
    return f"{found['value']:.4f}" if found and found.get("value") is not None else "–"


def print_figures(name: str, figures: Json) -> None:
    print(f"\n{name}: {figures['n_judged']} judged, {figures['n_error']} errors")
    lines = [
        ("agreement, single order", "objective", "agreement"),
        ("macro F1, single order", "objective", "f1"),
        ("accuracy, conflict = tie", "combined", "accuracy"),
        ("macro F1, conflict = tie", "combined", "f1"),
        ("swap consistency", "reliability", "consistency"),
        ("bias toward 1st", "reliability", "bias_first"),
        ("bias toward 2nd", "reliability", "bias_second"),
    ]
    for label, *path in lines:
        print(f"  {label:34} {value(figures, *path)}")
    for baseline in figures.get("baselines", {}):
        agreement = value(figures, "baselines", baseline, "agreement")
        f1 = value(figures, "baselines", baseline, "f1")
        print(f"  {'baseline ' + baseline.replace('_', ' '):34} {agreement}, F1 {f1}")


def figures(options: argparse.Namespace) -> None:
    options.work.mkdir(parents=True, exist_ok=True)
    results: Json = {"model": options.model}
    for name in ("pandalm", "reviews"):
        rows = getattr(options, name)
        if rows is not None:
            summary = judged(options.model, rows, options.work / f"{name}.jsonl")
            results[name] = figures_of(summary)
            print_figures(name, results[name])
    write(options.output, results)


def checks(options: argparse.Namespace) -> None:
    options.work.mkdir(parents=True, exist_ok=True)
    draw = random.Random(0)
    asked = [one for one in validation_answers(options.scored) if len(one.answers) >= 3]
    draw.shuffle(asked)
    results = {
        "model": options.model,
        "grades_fall": grades_fall(options, asked, draw),
        "gibberish_last": gibberish_last(options, asked, draw),
        "valid_free_lines": valid_free_lines(options, asked),
    }
    print(orjson.dumps(results, option=orjson.OPT_INDENT_2).decode())
    write(options.output, results)


def validation_answers(scored: Path) -> list[Answered]:
    """Questions that `jlm data` keeps for validation by default, with answers that are short."""
    config = DataConfig(inputs=(str(scored),), output=Path(), longest=900)
    gathered = Gathered()
    with open_source(str(scored)) as source:
        read_source(source, config, gathered)
    return [
        one
        for one in gathered.answered
        if for_validation(question_key(one.question), config.validation)
    ]


_CASES = 100


def grades_fall(
    options: argparse.Namespace, asked: Sequence[Answered], draw: random.Random
) -> Json:
    """Each of 100 answers as it is, and spoiled, graded without a reference."""
    cases = []
    for n in range(_CASES):
        one = asked[n % len(asked)]
        answer = draw.choice(one.answers).text
        other = draw.choice(asked[(n + 1) % len(asked)].answers).text
        cases.append((one.question, answer, spoil(Good(answer, one.question, other, draw))))
    rows = [
        {"id": f"{n}-{side}", "question": question, "answer": text}
        for n, (question, answer, bad) in enumerate(cases)
        for side, text in (("sound", answer), ("spoiled", bad.text))
    ]
    records = said(options, "grade", "grades", rows, "--no-reference")
    falls = [sound["expected"] > bad["expected"] for sound, bad in pairs_of(records)]
    lower = [sound["score"] > bad["score"] for sound, bad in pairs_of(records)]
    by_kind: dict[str, list[bool]] = {}
    for (_, _, bad), fell in zip(cases, falls, strict=True):
        by_kind.setdefault(bad.kind, []).append(fell)
    kinds = {kind: f"{sum(some)} of {len(some)}" for kind, some in sorted(by_kind.items())}
    return {"expected": sum(falls), "score": sum(lower), "of": _CASES, "by_kind": kinds}


def pairs_of(records: Sequence[Json]) -> list[tuple[Json, Json]]:
    return list(zip(records[::2], records[1::2], strict=True))


def gibberish_last(
    options: argparse.Namespace, asked: Sequence[Answered], draw: random.Random
) -> Json:
    """Three real answers and one of random letters, at any place."""
    rows, places = [], []
    for n in range(_CASES):
        one = asked[n % len(asked)]
        answers = [answer.text for answer in draw.sample(one.answers, 3)]
        letters = ["".join(draw.choices("abcdefghijklmnopqrstuvwxyz", k=6)) for _ in range(25)]
        places.append(draw.randrange(4))
        answers.insert(places[-1], " ".join(letters))
        rows.append({"id": n, "question": one.question, "answers": answers})
    records = said(options, "rank", "ranks", rows)
    last = [
        record["expected"][place] == min(record["expected"])
        and sorted(record["expected"])[0] < sorted(record["expected"])[1]
        for record, place in zip(records, places, strict=True)
    ]
    alone = [r["ranking"][-1] == place + 1 for r, place in zip(records, places, strict=True)]
    return {"expected": sum(last), "ranking": sum(alone), "of": _CASES}


def said(
    options: argparse.Namespace, command: str, name: str, rows: Sequence[Json], *more: str
) -> list[Json]:
    given, output = options.work / f"{name}.jsonl", options.work / f"{name}.out.jsonl"
    given.write_bytes(b"".join(orjson.dumps(row) + b"\n" for row in rows))
    jlm(command, given, "-m", options.model, "-q", "--overwrite", "-o", output, *more)
    return [orjson.loads(line) for line in output.read_bytes().splitlines()]


def valid_free_lines(options: argparse.Namespace, asked: Sequence[Answered]) -> Json:
    """What `generate` writes for 200 pairs, up to its first newline."""
    import torch

    from jlm_cli import loading, preflight
    from jlm_cli.config import Config
    from jlm_cli.report import Report

    rows = [
        {"id": n, "question": one.question, "answers": [a.text for a in one.answers[at : at + 2]]}
        for n, (one, at) in enumerate((one, at) for at in (0, 1) for one in asked)
    ][: 2 * _CASES]
    given = options.work / "free.jsonl"
    given.write_bytes(b"".join(orjson.dumps(row) + b"\n" for row in rows))
    run = preflight.open_run(
        Config(inputs=(str(given),), output=None, model=options.model), Report(quiet=True)
    )
    model: Any = loading.load_model(run.files, run.compute.dtype, run.compute.device)
    valid = 0
    for found in run.encoder.encode([run.rows.sample(row) for row in range(len(rows))]):
        assert isinstance(found, list)
        ids = torch.tensor([found[0].ids], device=model.device)
        seen = torch.ones_like(ids)
        out = model.generate(ids, attention_mask=seen, do_sample=False, max_new_tokens=8)
        text = run.lines.vocabulary.decode(out[0, ids.shape[1] :].tolist())
        scores = read_score_line(text) if "\n" in text else None
        valid += scores is not None and len(scores) == 2 and set(scores) <= set(map(float, SCORES))
    return {"valid": valid, "of": len(rows)}


def hold_out(options: argparse.Namespace) -> None:
    """The questions that come first in the order of their own words' checksums."""
    import zlib

    with open_source(str(options.reviews)) as source:
        rows = [orjson.loads(raw) for raw in source]
    keys = {question_key(row["question_body"]) for row in rows}
    first = sorted(keys, key=lambda key: zlib.crc32(key.encode()))[: options.questions]
    held = [row for row in rows if question_key(row["question_body"]) in first]
    options.output.write_bytes(b"".join(orjson.dumps(row) + b"\n" for row in held))
    print(f"{options.output}: {len(held)} reviews of {len(first)} of {len(keys)} questions")


def lessons_in(path: Path) -> Iterator[Lesson]:
    with open_source(str(path)) as source:
        schema = recognise(source, "auto", ())
        for index, raw in enumerate(source):
            try:
                lesson = read_lesson(raw, schema, source.line(index))
            except RowError:
                continue
            if len(lesson.sample.answers) == 2:
                yield lesson


def validation_files(path: Path, folder: Path) -> dict[str, Path]:
    """The same pairs without and with their reference, each with the judgment made of it."""
    lessons = list(lessons_in(path))
    files = {"without reference": folder / "val.jsonl", "with reference": folder / "val-ref.jsonl"}
    without = [_row(one, one.plain, None) for one in lessons if one.plain]
    shown = [
        _row(one, one.with_reference, one.sample.reference) for one in lessons if one.with_reference
    ]
    for file, rows in zip(files.values(), (without, shown), strict=True):
        file.write_bytes(b"".join(orjson.dumps(row) + b"\n" for row in rows))
    return {name: file for name, file in files.items() if file.stat().st_size}


def _row(lesson: Lesson, teaching: Teaching | None, reference: str | None) -> Json:
    assert teaching is not None
    row = {
        "id": lesson.sample.id,
        "question": lesson.sample.question,
        "answers": list(lesson.sample.answers),
        "gold": [float(score) for score in teaching.scores],
    }
    return row if reference is None else {**row, "reference": reference}


def ablations(options: argparse.Namespace) -> None:
    folder: Path = options.output
    folder.mkdir(parents=True, exist_ok=True)
    scales = (Variant(f"{n} samples", "4", 0.0, 1.0, n) for n in options.scales or ())
    variants = (*TABLES_5_AND_6, *scales)
    validation = validation_files(options.validation, folder)
    template = [] if options.template is None else ["--template", options.template]
    results = []
    for number, variant in enumerate(variants):
        model = folder / f"model-{number}"
        if not model.exists():
            data = _first_rows(options.train, variant.rows or options.rows, folder, number)
            words = ["--swap-share", str(variant.swap), "--reference-drop", str(variant.drop)]
            words += [*template, *options.more]
            jlm("train", data, "-m", options.model, "-o", model, *words)
        for shown, rows in validation.items():
            output = folder / f"judged-{number}-{rows.stem}.jsonl"
            found = figures_of(judged(str(model), rows, output, *template))
            results.append({"variant": variant.name, "table": variant.table, "val": shown, **found})
    print_tables(results)
    write(folder / "ablations.json", {"base": options.model, "results": results})


def _first_rows(path: Path, n: int | None, folder: Path, number: int) -> Path:
    if n is None:
        return path
    short = folder / f"train-{number}.jsonl"
    with path.open("rb") as file:
        short.write_bytes(b"".join(line for _, line in zip(range(n), file, strict=False)))
    return short


def print_tables(results: Sequence[Json]) -> None:
    head = ("table", "trained", "judged", "agreement", "consistency", "1st", "2nd", "delta")
    print("\n| " + " | ".join(head) + " |\n" + "|---" * len(head) + "|")
    for one in results:
        cells = [one["table"], one["variant"], one["val"], value(one, "objective", "agreement")]
        reliability = ("consistency", "bias_first", "bias_second", "delta_bias")
        cells += [value(one, "reliability", name) for name in reliability]
        print("| " + " | ".join(cells) + " |")


def write(path: Path | None, results: Json) -> None:
    if path is not None:
        path.write_bytes(orjson.dumps(results, option=orjson.OPT_INDENT_2) + b"\n")


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    commands = top.add_subparsers(required=True)
    one = commands.add_parser("figures")
    one.add_argument("-m", "--model", required=True)
    one.add_argument("--pandalm", type=Path)
    one.add_argument("--reviews", type=Path)
    one.add_argument("--work", type=Path, required=True, help="where judgments are kept")
    one.add_argument("-o", "--output", type=Path)
    one.set_defaults(run=figures)
    one = commands.add_parser("checks")
    one.add_argument("-m", "--model", required=True)
    one.add_argument("--scored", type=Path, required=True, help="rated answers")
    one.add_argument("--work", type=Path, required=True, help="where judgments are kept")
    one.add_argument("-o", "--output", type=Path)
    one.set_defaults(run=checks)
    one = commands.add_parser("hold-out")
    one.add_argument("reviews", type=Path)
    one.add_argument("-o", "--output", type=Path, required=True)
    one.add_argument("--questions", type=int, default=30)
    one.set_defaults(run=hold_out)
    one = commands.add_parser("ablations")
    one.add_argument("-m", "--model", default="tiny-base")
    one.add_argument("--train", type=Path, required=True)
    one.add_argument("--validation", type=Path, required=True)
    one.add_argument("-o", "--output", type=Path, required=True)
    one.add_argument("--rows", type=int, help="training rows; the paper takes 3,500")
    one.add_argument("--scales", type=int, nargs="*", help="training rows, for Table 4")
    one.add_argument("--template", help="pandalm for Tables 12 and 13")
    one.add_argument("more", nargs="*", help="options for jlm train, behind --")
    one.set_defaults(run=ablations)
    return top


if __name__ == "__main__":
    options = parser().parse_args()
    options.run(options)
