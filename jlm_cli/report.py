"""What a person sees: notes, a bar and tables on standard error; and the exit status."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias

from rich.table import Table
from rich.text import Text
from tqdm import tqdm

from jlm_cli.devices import Compute
from jlm_cli.errors import EXIT_ERROR_RECORDS, EXIT_OK
from jlm_cli.records import Json
from jlm_cli.terminal import Logged, Stderr, shown

_ROWS_SHOWN = 12
_MODELS_SHOWN = 40
_LEAST_SHOWN = 12  # characters of a question
_LEAST_CELL = 5  # of any other cell
_GAP = 2  # spaces between columns
_SHOWN_AFTER = 1  # second
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


@dataclass
class Report:
    """Speaks to a person on standard error, and knows how the run ended."""

    quiet: bool = False

    def __post_init__(self) -> None:
        self._console = Stderr(stderr=True, highlight=False)

    def note(self, text: str) -> None:
        if self.quiet:
            return
        on_terminal = sys.stderr.isatty()  # where a bar has to make way
        with tqdm.external_write_mode(file=sys.stderr) if on_terminal else nullcontext():
            self._console.print(Text("jlm: ").append_text(shown(text, 400)), soft_wrap=True)

    def preflight(self, facts: Json) -> None:
        """One line before a run: what is ahead, and what is odd about it."""
        odd = [f"{facts[name]:,} {name.replace('_', ' ')}" for name in _ODD if facts[name]]
        odd += [f"{count:,} {code}" for code, count in facts["errors"].items()]
        size = f"{facts['tokens']:,} tokens, longest prompt {facts['tokens_longest_prompt']:,}"
        rows, batches = facts["rows"], facts["batches"]
        head = f"{rows:,} row{'s' * (rows != 1)} of schema {facts['schema']}: {size}"
        self.note("; ".join([f"{head}, {batches:,} batch{'es' * (batches != 1)}", *odd]))
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

    def bar(self, total: int, done: int = 0, what: str = "") -> tqdm[Any]:
        """A progress bar over rows, some of them done; in a log a line now and then, so that it is
        seen to go on. One that says `what` is done stays away from what takes no second."""
        if sys.stderr.isatty():
            return tqdm(
                desc=what or None,
                total=total,
                initial=done,
                delay=_SHOWN_AFTER if what else 0,
                unit="row",
                disable=self.quiet,
                dynamic_ncols=True,
                leave=False,
            )
        return Logged(
            desc=what or "rows",
            total=total,
            initial=done,
            unit=" rows",
            disable=self.quiet,
            leave=False,
            delay=_LOGGED_EACH,
            mininterval=_LOGGED_EACH,
            maxinterval=_LOGGED_EACH,
            bar_format="jlm: {n_fmt} of {total_fmt} {desc}; {rate_fmt}, {remaining} to go{postfix}",
        )

    def records(self, records: Sequence[Json]) -> None:
        """The first judgments, one a line."""
        if self.quiet or not records:
            return
        self._console.print(_first_judgments(records[:_ROWS_SHOWN], self._console.width))
        if len(records) > _ROWS_SHOWN:
            self._console.print(Text("…", style="dim"))

    def summary(self, summary: Json, tally: Counted, output: str, untrained: bool) -> None:
        """The figures of the run."""
        if self.quiet:
            return
        table = Table(box=None, pad_edge=False, show_header=False)
        speed = f"{summary['seconds']:.1f} s, {summary['items_per_second']:.2f} rows/s"
        for rows in (_counts(summary), _figures(summary), _by_model(summary), _odd(tally)):
            for name, text in rows:
                table.add_row(name, text)
        table.add_row("time", speed)
        table.add_row("output", shown(output, 200))
        self._console.print(table)
        if board := summary.get("leaderboard"):
            self._console.print(_leaderboard(board, self._console.width))
            if len(board) > _MODELS_SHOWN:
                more = f"… {len(board) - _MODELS_SHOWN} more: jlm metrics --protocol rank --csv"
                self._console.print(Text(more, style="dim"))
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


def _first_judgments(records: Sequence[Json], width: int) -> Table:
    """Ids and questions have their room; cells are cut where they do not fit beside them."""
    judged = [record for record in records if "error" not in record]
    columns = _COLUMNS[_kind_of(judged[0])] if judged else {}
    columns = {name: cell for name, cell in columns.items() if any(map(cell, judged))}
    ids = [shown(f"line {r['line']}" if r["id"] is None else r["id"], 16) for r in records]
    table = Table(box=None, pad_edge=False, header_style="bold", expand=True)
    table.add_column("id", no_wrap=True)
    table.add_column("question", no_wrap=True, ratio=1)
    widths = [max(len(name), *(len(cell(r)) for r in judged)) for name, cell in columns.items()]
    room = width - max(map(len, ids)) - _LEAST_SHOWN - _GAP * (1 + len(columns))
    cut = columns and sum(widths) > room
    most = max(room // len(columns), _LEAST_CELL) if cut else None
    for name in columns:
        table.add_column(name, no_wrap=True, max_width=most)
    for row_id, record in zip(ids, records, strict=True):
        if "error" in record:
            told = record["error"]["message"]  # its place stands before it already
            message = shown(told.partition(f":{record['line']}: ")[2] or told, 200)
            table.add_row(row_id, Text.assemble(("error: ", "red"), message))
            continue
        question = shown(record["sample"]["question"], 200)
        table.add_row(row_id, question, *(Text(cell(record)) for cell in columns.values()))
    return table


Line: TypeAlias = tuple[str | Text, str]  # of a run's figures: a name and what there is to say


def _counts(summary: Json) -> Iterator[Line]:
    n_error = summary["n_error"]
    yield "rows", f"{summary['n_judged']:,} judged, {n_error:,} error{'s' * (n_error != 1)}"
    for name in ("verdicts", "scores", "labels", "methods"):
        if counts := summary.get(name):
            told = ", ".join(f"{key}: {count}" for key, count in counts.items())
            yield name + _first_order(summary), told


def _figures(summary: Json) -> Iterator[Line]:
    first = _first_order(summary)
    for section in ("mean", "pass_rate", "objective", "reliability", "stability", "compare"):
        found = summary.get(section, {})
        names = _COMPARED if section == "compare" else _NAMES
        for name, value in ({section: found} if "ci95" in found else found).items():
            if isinstance(value, dict) and "ci95" in value:
                order = first if name == "agreement" else ""
                yield names.get(name, name.replace("_", " ")) + order, _figure(value)
    for name, found in summary.get("aspects", {}).items():
        said = [f"{key}: {count}" for key, count in found.get("verdicts", {}).items()]
        said += [f"mean {_figure(found['mean'])}"] if "mean" in found else []
        yield shown(f"aspect {name}{first}", 40), ", ".join(said)
    if "combined" in summary:
        yield "accuracy, both orders", _figure(summary["combined"]["accuracy"])
    for name, value in summary.get("baselines", {}).items():
        said_of = Text(f"baseline {name.replace('_', ' ')}", style="dim")
        yield said_of, _figure(value["agreement"])


def _first_order(summary: Json) -> str:
    """Behind a name, of what is said of the first of two orders."""
    return ", first order" if "reliability" in summary else ""


def _by_model(summary: Json) -> Iterator[Line]:
    for kind, what in (("win_rate", "win rate"), ("mean_score", "mean expected score")):
        models = list(summary.get(kind, {}).items())
        for name, value in models[:_MODELS_SHOWN]:
            yield Text(f"{what} ").append_text(_of_model(name, 40)), _figure(value)
        if len(models) > _MODELS_SHOWN:
            yield Text(f"… {len(models) - _MODELS_SHOWN} more models", style="dim"), ""
    for place, above in enumerate(summary.get("position_bias", ()), start=1):
        yield f"above its mean at place {place}", _figure(above)


def _odd(tally: Counted) -> Iterator[Line]:
    for code, count in sorted(tally.errors.items()):
        yield Text(f"error {code}", style="red"), f"{count:,}"
    for flag, count in sorted(tally.flags.items()):
        yield Text(f"flag {flag}", style="yellow"), f"{count:,}"


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


def _leaderboard(board: Json, width: int) -> Table:
    """One line a model, if the terminal is not too narrow for its figures."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    shares = ("mean expected score", "win rate", "Bradley-Terry strength")
    rows = {
        name: [
            _figure(row[key]).replace("  ", " ").replace(", ", ",")
            for key in ("mean_score", "win_rate", "bradley_terry")
        ]
        for name, row in list(board.items())[:_MODELS_SHOWN]
    }
    widths = [max(map(len, cells)) for cells in zip(*rows.values(), strict=True)]
    table.add_column("model", no_wrap=True)
    for name, most in zip(shares, widths, strict=True):
        table.add_column(name, overflow="fold", max_width=max(most, len("strength")))
    left = width - sum(widths) - _GAP * len(widths)
    for name, cells in rows.items():
        table.add_row(_of_model(name, max(min(left, _NAME), _LEAST_SHOWN)), *cells)
    return table


def _of_model(name: str, most: int) -> Text:
    """A name whose end tells it from others of its family."""
    safe = shown(name, 200).plain
    return Text(safe if len(safe) <= most else f"{safe[: most // 2 - 1]}…{safe[-(most // 2) :]}")


_NAME = 60  # characters of a model's, where there is room


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


def _figure(figure: Json) -> str:
    if figure["value"] is None:
        return "–"
    low, high = figure["ci95"]
    if low is None or high is None:
        return f"{figure['value']:.3f}"
    return f"{figure['value']:.3f}  [{low:.3f}, {high:.3f}]"


def exit_status(tally: Counted) -> int:
    return EXIT_ERROR_RECORDS if tally.n_error else EXIT_OK
