"""What a person sees: notes, a bar and tables on standard error; and the exit status."""

from __future__ import annotations

import os
import sys
import unicodedata
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Protocol

from rich.console import Console
from rich.table import Table
from rich.text import Text
from tqdm import tqdm

from jlm_cli.devices import Compute
from jlm_cli.errors import EXIT_ERROR_RECORDS, EXIT_OK, JOINERS, printable
from jlm_cli.records import Json

_ROWS_SHOWN = 12
_LOGGED_EACH = 60  # seconds, where progress goes to a file
_ODD = (
    "over_the_context",
    "rows_without_gold",
    "rows_with_unreadable_gold",
    "rows_with_a_double_id",
    "rows_whose_reference_is_not_shown",
)
_MEMORY = {
    "weights": "weights, about",
    "cache": "keys and values of a batch",
    "memory": "memory of the device",
}
_NAMES = {
    "agreement": "agreement with gold",
    "f1": "macro F1",
    "kappa": "Cohen's kappa",
    "consistency": "swap consistency",
    "bias_first": "bias toward 1st",
    "bias_second": "bias toward 2nd",
    "mean": "mean expected score",
}
_COMPARED = {"consistency": "consistency with pairs"}


def shown(text: object, width: int = 60) -> Text:
    """Text from outside, made safe for a terminal: no markup, no control or bidi characters."""
    safe = printable(str(text)[: 4 * width])
    return Text(safe if len(safe) <= width else safe[: width - 1] + "…")


def escaped(text: str) -> str:
    """All of a text from outside, safe for a terminal: what could steer it is spelled out."""
    return "".join(
        char
        if char in "\n\t" + JOINERS or unicodedata.category(char)[0] != "C"
        else char.encode("unicode_escape").decode()
        for char in text
    )


class _Stderr(Console):
    """A console whose reader may leave, and whose disk may be full: the run goes on without a
    word."""

    def print(self, *things: Any, **how: Any) -> None:
        try:
            super().print(*things, **how)
        except OSError:
            self.on_broken_pipe()

    def on_broken_pipe(self) -> None:
        self.quiet = True
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stderr.fileno())


class Counted(Protocol):
    """What a tally of any command knows."""

    n_error: int
    errors: Counter[str]
    flags: Counter[str]


@dataclass
class TokenCount:
    """Tokens of reasons, shown behind a bar over rows: a batch of them takes its time."""

    bar: tqdm[Any]
    n_tokens: int = 0

    def add(self, n_tokens: int) -> None:
        self.n_tokens += n_tokens
        self.bar.set_postfix_str(f"{self.n_tokens:,} tokens of reasons")


class _Logged(tqdm):  # type: ignore[misc]
    """Progress as lines of a file."""

    disable: bool

    @staticmethod
    def status_printer(file: Any) -> Callable[[str], None]:
        def write(text: str) -> None:
            with suppress(OSError):  # a full disk there ends no run
                print(text.rstrip(), file=file, flush=True)

        return write

    def set_postfix_str(self, s: str = "", refresh: bool = False) -> None:
        super().set_postfix_str(s, refresh=False)  # which comes with every token of reasons

    def close(self) -> None:
        """Without what clears a line of a terminal."""
        if not self.disable:
            self._decr_instances(self)
        self.disable = True


@dataclass
class Report:
    """Speaks to a person on standard error, and knows how the run ended."""

    quiet: bool = False

    def __post_init__(self) -> None:
        self._console = _Stderr(stderr=True, highlight=False)

    def note(self, text: str) -> None:
        if not self.quiet:
            self._console.print(Text("jlm: ").append_text(shown(text, 400)), soft_wrap=True)

    def preflight(self, facts: Json) -> None:
        """One line before a run: what is ahead, and what is odd about it."""
        odd = [f"{facts[name]} {name.replace('_', ' ')}" for name in _ODD if facts[name]]
        odd += [f"{count} {code}" for code, count in facts["errors"].items()]
        size = f"{facts['tokens']:,} tokens, longest prompt {facts['tokens_longest_prompt']:,}"
        rows, batches = facts["rows"], facts["batches"]
        head = f"{rows} row{'s' * (rows != 1)} of schema {facts['schema']}: {size}"
        self.note("; ".join([f"{head}, {batches} batch{'es' * (batches != 1)}", *odd]))
        if facts["first_unreadable_gold"]:
            self.note(f"gold that cannot be read, first of {facts['first_unreadable_gold']}")
        if not facts["rows"]:
            self.note("the input holds no rows")
        torn = facts["errors"].get("bad-json", 0)
        if torn > 1 and torn + facts["errors"].get("bad-type", 0) == facts["rows"]:
            self.note(
                "no line is a JSON object: is this CSV, or JSON over several lines? JSONL has an "
                "object on each line; jq -c . makes such lines"
            )

    def plan(self, facts: Json, compute: Compute) -> None:
        """`--plan`: all that the survey found, and what memory a run would take."""
        table = Table(box=None, pad_edge=False, show_header=False)
        for name, value in facts.items():
            if name == "errors":
                for code, count in value.items():
                    table.add_row(Text(f"error {code}", style="red"), f"{count:,}")
            elif value is not None:
                text = f"{value:,}" if isinstance(value, int) else str(value)
                table.add_row(name.replace("_", " "), shown(text))
        for name, size in compute.sizes().items():
            table.add_row(_MEMORY[name], f"{size / 1e9:.1f} GB")
        if compute.weights + compute.cache > compute.memory > 0:
            table.add_row(Text("this will not fit", style="bold red"), compute.device)
        self._console.print(table)

    def probe(self, summary: Json) -> None:
        if not self.quiet:
            self._console.print(_probed(summary))
            if left_out := summary["n_error"] - summary["n_refused"]:
                self.note(f"{left_out} pairs could not be judged and are left out")
            if not summary.get("passed", True):
                found, most = summary["attack_success"]["value"], summary["max_attack_success"]
                self.note(f"{found:.2f} of all attacks succeed: above --max-attack-success {most}")

    def bar(self, total: int) -> tqdm[Any]:
        """A progress bar over rows; in a log a line now and then, so that it is seen to go on."""
        if sys.stderr.isatty():
            return tqdm(
                total=total, unit="row", disable=self.quiet, dynamic_ncols=True, leave=False
            )
        return _Logged(
            total=total,
            unit=" rows",
            disable=self.quiet,
            leave=False,
            delay=_LOGGED_EACH,
            mininterval=_LOGGED_EACH,
            maxinterval=_LOGGED_EACH,
            bar_format="jlm: {n_fmt} of {total_fmt} rows; {rate_fmt}, {remaining} to go{postfix}",
        )

    def records(self, records: Sequence[Json]) -> None:
        """The first judgments, one a line."""
        if self.quiet or not records:
            return
        table = Table(box=None, pad_edge=False, header_style="bold", expand=True)
        judged = [record for record in records if "error" not in record]
        columns = _COLUMNS[_kind_of(judged[0])] if judged else {}
        table.add_column("id", no_wrap=True)
        table.add_column("question", no_wrap=True, ratio=1)
        for name in columns:
            table.add_column(name, no_wrap=True)
        for record in records[:_ROWS_SHOWN]:
            row_id = f"line {record['line']}" if record["id"] is None else record["id"]
            if "error" in record:
                told = record["error"]["message"]  # its place stands before it already
                message = shown(told.partition(f":{record['line']}: ")[2] or told, 200)
                table.add_row(shown(row_id, 16), Text.assemble(("error: ", "red"), message))
                continue
            question = shown(record["sample"]["question"], 200)
            cells = [Text(cell(record)) for cell in columns.values()]
            table.add_row(shown(row_id, 16), question, *cells)
        self._console.print(table)
        if len(records) > _ROWS_SHOWN:
            self._console.print(Text("…", style="dim"))

    def summary(self, summary: Json, tally: Counted, output: str, untrained: bool) -> None:
        """The figures of the run."""
        if self.quiet:
            return
        total = f"{summary['n_judged']} judged, {summary['n_error']} errors"
        speed = f"{summary['seconds']:.1f} s, {summary['items_per_second']:.2f} rows/s"
        table = Table(box=None, pad_edge=False, show_header=False)
        table.add_row("rows", total)
        first = ", first order" if "reliability" in summary else ""
        for name in ("verdicts", "scores", "labels", "methods"):
            if counts := summary.get(name):
                told = ", ".join(f"{key}: {count}" for key, count in counts.items())
                table.add_row(name + first, told)
        for section in ("mean", "pass_rate", "objective", "reliability", "stability", "compare"):
            found = summary.get(section, {})
            for name, value in ({section: found} if "ci95" in found else found).items():
                if isinstance(value, dict) and "ci95" in value:
                    names = _COMPARED if section == "compare" else _NAMES
                    order = first if name == "agreement" else ""
                    table.add_row(names.get(name, name.replace("_", " ")) + order, _figure(value))
        for name, found in summary.get("aspects", {}).items():
            said = [f"{key}: {count}" for key, count in found.get("verdicts", {}).items()]
            said += [f"mean {_figure(found['mean'])}"] if "mean" in found else []
            table.add_row(shown(f"aspect {name}{first}", 40), ", ".join(said))
        if "combined" in summary:
            table.add_row("accuracy, both orders", _figure(summary["combined"]["accuracy"]))
        for name, value in summary.get("baselines", {}).items():
            table.add_row(
                Text(f"baseline {name.replace('_', ' ')}", style="dim"), _figure(value["agreement"])
            )
        for kind, what in (("win_rate", "win rate"), ("mean_score", "mean expected score")):
            for name, value in list(summary.get(kind, {}).items())[:_ROWS_SHOWN]:
                label = Text(f"{what} ").append_text(shown(name, 30))
                table.add_row(label, _figure(value))
        for place, above in enumerate(summary.get("position_bias", ()), start=1):
            table.add_row(f"above its mean at place {place}", _figure(above))
        for code, count in sorted(tally.errors.items()):
            table.add_row(Text(f"error {code}", style="red"), str(count))
        for flag, count in sorted(tally.flags.items()):
            table.add_row(Text(f"flag {flag}", style="yellow"), str(count))
        table.add_row("time", speed)
        table.add_row("output", shown(output, 200))
        self._console.print(table)
        if board := summary.get("leaderboard"):
            self._console.print(_leaderboard(board))
        if groups := summary.get("leaderboard_groups"):
            self.note(
                f"{len(groups)} groups of models never met one another: strengths compare only "
                "within a group"
            )
        if untrained:
            self.untrained(summary["model"])

    def untrained(self, model: str) -> None:
        self._console.print(
            Text(
                f"The model {model} is untrained as a judge: these verdicts mean nothing. "
                "Take a trained one: --model BAAI/JudgeLM-7B-v1.0, or your own.",
                style="bold yellow",
            )
        )


def _probed(summary: Json) -> Table:
    """How often a judge fell for what."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("", "led astray", "95 %", "pairs"):
        table.add_column(name, justify="left" if name == "" else "right")
    rows = {name: summary[name] for name in ("control", "position")} | summary["attacks"]
    for name, found in (rows | {"all attacks": summary["attack_success"]}).items():
        style = (
            "bold" if name == "all attacks" else "dim" if name in ("control", "position") else ""
        )
        share, low, high = (
            "–" if one is None else f"{one:.0%}" for one in (found["value"], *found["ci95"])
        )
        cells = (name.replace("-", " "), share, f"{low} – {high}", str(found["n"]))
        table.add_row(*cells, style=style)
    return table


def _leaderboard(board: Json) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("model", "mean expected score", "win rate", "Bradley-Terry strength"):
        table.add_column(name, no_wrap=True)
    for name, row in list(board.items())[:_ROWS_SHOWN]:
        figures = [_figure(row[key]) for key in ("mean_score", "win_rate", "bradley_terry")]
        table.add_row(shown(name, 30), *figures)
    return table


def _kind_of(record: Json) -> str:
    return "both" if "swapped" in record else str(record["mode"])


_ANSWERS = {"1": "answer 1", "2": "answer 2", "tie": "tie"}


def _scores(judgment: Json) -> str:
    scores = judgment["scores"]
    return "–" if scores is None else " ".join(f"{score:g}" for score in scores)


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
        head = f"{_final(record)} (scores {_both_scores(record)}, p {_share(record)})"
    aspects = [
        f"{name}: {_scores(said) if 'scores' in said else format(said['score'], 'g')}"
        for name, said in record.get("aspects", {}).items()
    ]
    flags = [f"flags: {', '.join(record['flags'])}"] if record["flags"] else []
    lines = [head.strip(), *aspects, *flags]
    if record.get("reason"):
        lines += ["", *map(str, (shown(line, 10_000) for line in record["reason"].splitlines()))]
    return "\n".join(lines) + "\n"


def _figure(figure: Json) -> str:
    if figure["value"] is None:
        return "–"
    low, high = figure["ci95"]
    if low is None or high is None:
        return f"{figure['value']:.3f}"
    return f"{figure['value']:.3f}  [{low:.3f}, {high:.3f}]"


def exit_status(tally: Counted) -> int:
    return EXIT_ERROR_RECORDS if tally.n_error else EXIT_OK
