"""A judgment in words: one line of a table, or the answer to a question from the command line."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from rich.table import Table
from rich.text import Text

from jlm_cli.records import Json
from jlm_cli.terminal import GAP, shown

_LEAST_SHOWN = 12  # characters of a question
_LEAST_CELL = 5  # of any other cell


def first_judgments(records: Sequence[Json], width: int) -> Table:
    """Where the terminal is too narrow for all, questions are left out; then cells are cut."""
    judged = [record for record in records if "error" not in record]
    columns = _COLUMNS[_kind_of(judged[0])] if judged else {}
    columns = {name: cell for name, cell in columns.items() if any(map(cell, judged))}
    ids = [shown(f"line {r['line']}" if r["id"] is None else r["id"], 16) for r in records]
    table = Table(box=None, pad_edge=False, header_style="bold", expand=True)
    table.add_column("id", no_wrap=True)
    widths = [max(len(name), *(len(cell(r)) for r in judged)) for name, cell in columns.items()]
    room = width - max(map(len, ids)) - GAP * len(columns) - sum(widths)
    asks = room >= GAP + _LEAST_SHOWN or len(judged) < len(records)  # what failed is told there
    if asks:
        table.add_column("question", no_wrap=True, ratio=1)
        room -= GAP + _LEAST_SHOWN
    most = (
        max((sum(widths) + room) // len(columns), _LEAST_CELL) if room < 0 < len(columns) else None
    )
    for name in columns:
        table.add_column(name, no_wrap=True, max_width=most)
    for row_id, record in zip(ids, records, strict=True):
        if "error" in record:
            told = record["error"]["message"]  # its place stands before it already
            message = shown(told.partition(f":{record['line']}: ")[2] or told, 200)
            table.add_row(row_id, Text.assemble(("error: ", "red"), message))
            continue
        question = [shown(record["sample"]["question"], 200)] if asks else []
        table.add_row(row_id, *question, *(Text(cell(record)) for cell in columns.values()))
    return table


def _kind_of(record: Json) -> str:
    return "both" if "swapped" in record else str(record["mode"])


_ANSWERS = {"1": "answer 1", "2": "answer 2", "tie": "tie"}


def _scores(judgment: Json) -> str:
    scores = judgment["scores"]
    return "–" if scores is None else " ".join(f"{round(score, 2):g}" for score in scores)


def _final(record: Json) -> str:
    verdict = record.get("combined", record)
    if not record.get("consistent", True):
        return "tie (conflict)"
    return f"{_ANSWERS[verdict['verdict']]}"


def _share(record: Json) -> str:
    """The probability of the verdict; a conflict is none that the judge gave."""
    if not record.get("consistent", True):
        return "–"
    verdict = record.get("combined", record)
    return f"{verdict['p'][verdict['verdict']]:.2f}"


def _likelier(record: Json) -> str:
    """Another verdict that is likelier than the one of the likeliest score line, where there is."""
    verdict = record.get("combined", record)
    p: Json = verdict["p"]
    most = max(p, key=p.__getitem__)
    likelier = record.get("consistent", True) and p[most] > p[verdict["verdict"]]
    return f"; {_ANSWERS[most]} {p[most]:.2f}" if likelier else ""


def _ranked_by(record: Json) -> str:
    """The scores that a ranking follows: a single list's own, else the expected ones."""
    single = record["method"] == "listwise" and "stability" not in record
    return f"scores {_scores(record)}" if single else f"expected scores {_expected(record)}"


def _both_scores(record: Json) -> str:
    other = f", swapped {_scores(record['swapped'])}" if "swapped" in record else ""
    return _scores(record) + other


def _order(record: Json) -> str:
    """Answer numbers, best first: 2 > 1 = 3."""
    places = [entry if isinstance(entry, list) else [entry] for entry in record["ranking"]]
    return " > ".join(" = ".join(map(str, place)) for place in places)


def _expected(record: Json) -> str:
    expected = record["expected"]
    values = expected if isinstance(expected, list) else [expected]
    return " ".join(f"{value:.1f}" for value in values)


def _mark(record: Json) -> str:
    if "pass" in record:
        return "pass" if record["pass"] else "fail"
    return str(record.get("label", ""))


Cell = Callable[[Json], str]
_PAIR: dict[str, Cell] = {"scores": _scores, "verdict": _final, "p": _share}
_COLUMNS: dict[str, dict[str, Cell]] = {
    "judge": _PAIR,
    "both": {"scores": _scores, "swapped": lambda record: _scores(record["swapped"]), **_PAIR},
    "grade": {
        "score": lambda record: f"{record['score']:g}",
        "expected": _expected,
        "mark": _mark,
    },
    "rank": {"scores": _scores, "expected": _expected, "ranking": _order},
}


def spoken(record: Json) -> str:
    """One judgment in words, for a question from the command line."""
    if record["mode"] == "grade":
        head = f"score {record['score']:g} (expected {_expected(record)}) {_mark(record)}"
    elif record["mode"] == "rank":
        pairs = f"; by pairs {_order(record['pairwise'])}" if "pairwise" in record else ""
        head = f"ranking {_order(record)} ({_ranked_by(record)}){pairs}"
    else:
        p = f"p {_share(record)}{_likelier(record)}"
        head = f"{_final(record)} (scores {_both_scores(record)}, {p})"
    aspects = [
        f"{name}: {_scores(said) if 'scores' in said else format(said['score'], 'g')}"
        for name, said in record.get("aspects", {}).items()
    ]
    flags = [f"flags: {', '.join(record['flags'])}"] if record["flags"] else []
    lines = [head.strip(), *aspects, *flags]
    if record.get("reason"):
        lines += ["", *map(str, (shown(line, 10_000) for line in record["reason"].splitlines()))]
    return "\n".join(lines) + "\n"
