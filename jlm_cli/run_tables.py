"""The figures of a run as tables for a terminal."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Protocol, TypeAlias

from rich.table import Table
from rich.text import Text

from jlm_cli.records import Json
from jlm_cli.terminal import GAP, shown

_LEAST_NAME = 12  # characters of a model's name
_LONGEST_NAME = 60  # where there is room
_MODELS_SHOWN = 40
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


Line: TypeAlias = tuple[str | Text, str]  # of a run's figures: a name and what there is to say


def figures_table(summary: Json, tally: Counted, output: str) -> Table:
    """What came of a run, a figure on each line."""
    table = Table(box=None, pad_edge=False, show_header=False)
    for rows in (_counts(summary), _figures(summary), _by_model(summary), _odd(tally)):
        for name, text in rows:
            table.add_row(name, text)
    speed = f"{summary['seconds']:.1f} s, {summary['items_per_second']:.2f} rows/s"
    table.add_row("time", speed)
    table.add_row("output", shown(output, 200))
    return table


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
                order = first if section == "objective" else ""
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
            yield (
                Text(f"… {len(models) - _MODELS_SHOWN} more models in the summary", style="dim"),
                "",
            )
    for place, above in enumerate(summary.get("position_bias", ()), start=1):
        yield f"above its mean at place {place}", _figure(above)


def _odd(tally: Counted) -> Iterator[Line]:
    for code, count in sorted(tally.errors.items()):
        yield Text(f"error {code}", style="red"), f"{count:,}"
    for flag, count in sorted(tally.flags.items()):
        yield Text(f"flag {flag}", style="yellow"), f"{count:,}"


def probe_table(summary: Json) -> Table:
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


def leaderboard(board: Json, width: int) -> Iterator[Table | Text]:
    """One line a model, if the terminal is not too narrow for its figures."""
    if not board:
        return
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
    left = width - sum(widths) - GAP * len(widths)
    for name, cells in rows.items():
        table.add_row(_of_model(name, max(min(left, _LONGEST_NAME), _LEAST_NAME)), *cells)
    yield table
    if len(board) > _MODELS_SHOWN:
        yield Text(f"… {len(board) - _MODELS_SHOWN} more models in the summary", style="dim")


def _of_model(name: str, most: int) -> Text:
    """A name whose end tells it from others of its family."""
    safe = shown(name, 200).plain
    return Text(safe if len(safe) <= most else f"{safe[: most // 2 - 1]}…{safe[-(most // 2) :]}")


def _figure(figure: Json) -> str:
    if figure["value"] is None:
        return "–"
    low, high = figure["ci95"]
    if low is None or high is None:
        return f"{figure['value']:.3f}"
    return f"{figure['value']:.3f}  [{low:.3f}, {high:.3f}]"
