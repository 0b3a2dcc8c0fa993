"""The report's plots: matplotlib draws them, the page's style sheet colours them."""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Callable
from typing import Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from jlm_cli.intervals import Codes
from jlm_cli.measuring.columns import Columns
from jlm_cli.records import VERDICTS, Json
from jlm_cli.terminal import escaped

# stand-ins that the SVG is searched for; the page's custom properties take their place
INK, ACCENT, SECOND, FAINT, PAPER = (f"#01020{n}" for n in range(3, 8))
_PROPERTIES = {
    INK: "var(--ink)",
    ACCENT: "var(--accent)",
    SECOND: "var(--second)",
    FAINT: "var(--faint)",
    PAPER: "var(--paper)",
}
_STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "jlm",
    "font.family": "sans-serif",
    "font.size": 10,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": FAINT,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "xtick.color": INK,
    "ytick.color": INK,
    "grid.color": FAINT,
    "axes.axisbelow": True,
    "text.parse_math": False,
}
_MOST_MODELS = 25
_WIDTH = 5.2  # inches


def drawn(draw: Callable[[Any], None], height: float = 3.6) -> str:
    """One plot as an SVG element without sizes or colours of its own; the same bytes each time."""
    file = io.StringIO()
    with matplotlib.rc_context(_STYLE), warnings.catch_warnings():
        # text stays text: the reader's fonts may have what ours lack
        warnings.filterwarnings("ignore", r"Glyph \d+", UserWarning)
        figure = Figure(figsize=(_WIDTH, height), layout="constrained")
        draw(figure.subplots())
        figure.savefig(file, format="svg", transparent=True, metadata={"Date": None})
    text = file.getvalue()
    svg = text[text.index("<svg") :]
    svg = re.sub(r'<g id="[^"]*"', "<g", svg)  # one page holds many plots
    svg = re.sub(r"<(metadata|style)\b.*?</\1>", "", svg, flags=re.DOTALL)
    for colour, name in _PROPERTIES.items():
        svg = svg.replace(colour, name)
    return re.sub(r'<svg (.*?)width="[^"]*"', r"<svg \1", svg, count=1, flags=re.DOTALL)


def confusion(table: Json) -> Callable[[Any], None]:
    """Rows are gold, columns the verdicts."""
    names = list(table)
    counts = np.array([[table[row][column] for column in names] for row in names])

    def draw(axes: Any) -> None:
        _cells(axes, counts, counts / np.maximum(counts.sum(1, keepdims=True), 1))
        axes.set_xticks(range(len(names)), [_answer(name) for name in names])
        axes.set_yticks(range(len(names)), [_answer(name) for name in names])
        axes.set(xlabel="verdict", ylabel="gold")

    return draw


def on_scale(columns: Columns) -> Codes:
    """Which rows have scores from 0 to 10; predictions of others may have any."""
    inside: Codes = np.all((columns.scores >= 0) & (columns.scores <= 10), axis=1)
    return inside


def score_pairs(columns: Columns) -> Callable[[Any], None]:
    """How often each pair of scores was given, in whole points."""
    scores = columns.scores[on_scale(columns)]
    whole = np.floor(scores.astype(np.float64) + 0.5).astype(np.int64)
    counts = np.zeros((11, 11))
    np.add.at(counts, (whole[:, 1], whole[:, 0]), 1)

    def draw(axes: Any) -> None:
        _cells(axes, counts, np.sqrt(counts / max(counts.max(), 1)), text=len(scores) < 5000)
        axes.plot([-0.5, 10.5], [-0.5, 10.5], color=FAINT, linewidth=1, zorder=0.5)
        axes.set_xticks(range(11))
        axes.set_yticks(range(11))
        axes.set(xlabel="score of answer 1", ylabel="score of answer 2")

    return draw


def _cells(axes: Any, counts: Codes, shade: Codes, text: bool = True) -> None:
    for (row, column), count in np.ndenumerate(counts):
        if not count:
            continue
        strength = float(shade[row, column])
        place = (column - 0.5, row - 0.5)
        axes.add_patch(Rectangle(place, 1, 1, facecolor=ACCENT, alpha=0.06 + 0.74 * strength))
        if text:
            size = 10 if counts.shape[0] < 5 else 6.5
            axes.text(column, row, f"{int(count):,}", ha="center", va="center", fontsize=size)
    axes.set_xlim(-0.5, counts.shape[1] - 0.5)
    axes.set_ylim(counts.shape[0] - 0.5, -0.5)
    if counts.shape[0] > 4:
        axes.invert_yaxis()
    axes.set_aspect("equal" if counts.shape[0] > 4 else "auto")


def position_bias(reliability: Json) -> Callable[[Any], None]:
    """What a swap of the answers did to the verdicts."""
    names = {"bias_second": "moved toward 2nd", "bias_first": "moved toward 1st"}
    names["consistency"] = "stayed"

    def draw(axes: Any) -> None:
        for place, (name, label) in enumerate(names.items()):
            colour = ACCENT if name == "consistency" else SECOND
            figure = reliability[name]
            axes.barh(place, figure["value"], color=colour, alpha=0.75, height=0.6)
            _interval(axes, figure, place)
            axes.text(1.02, place, f"{figure['value']:.1%}", va="center")
            axes.text(0.01, place + 0.42, label, va="center", fontsize=9)
        axes.set_yticks([])
        axes.set_ylim(-0.5, len(names) - 0.3)
        axes.set_xlim(0, 1)
        axes.set_xlabel("share of verdicts when the answers change places")

    return draw


def _interval(axes: Any, figure: Json, place: float) -> None:
    low, high = figure["ci95"]
    if low is not None:
        axes.plot([low, high], [place, place], color=INK, linewidth=1.5)


def calibration(curve: list[Json]) -> Callable[[Any], None]:
    """Confidence against accuracy, and how many verdicts there are of each."""

    def draw(axes: Any) -> None:
        most = max(one["n"] for one in curve)
        for one in curve:
            width = one["to"] - one["from"]
            share = 0.25 * one["n"] / most
            axes.bar(one["from"] + width / 2, share, 0.9 * width, color=FAINT, alpha=0.6)
        axes.plot([0, 1], [0, 1], color=INK, linewidth=1, linestyle=":")
        _with_band(axes, [one["confidence"] for one in curve], [one["accuracy"] for one in curve])
        axes.set(
            xlim=(0, 1.02), ylim=(0, 1.02), xlabel="probability of the verdict", ylabel="accuracy"
        )
        axes.grid(alpha=0.4)

    return draw


def coverage(sweep: list[Json]) -> Callable[[Any], None]:
    """What accuracy is left for what share of verdicts, as the required confidence rises."""

    def draw(axes: Any) -> None:
        steps = [one for one in sweep if one["accuracy"]["value"] is not None]
        covered = [one["coverage"]["value"] for one in steps]
        _with_band(axes, covered, [one["accuracy"] for one in steps])
        last = 2.0
        for share, one in zip(covered, steps, strict=True):
            if last - share >= 0.12:  # room for a label
                last, at = share, (share, one["accuracy"]["value"])
                label = f"≥ {one['threshold']:g}"
                axes.annotate(label, at, (0, 7), textcoords="offset points", ha="center")
        axes.set(xlim=(0, 1.04), ylim=(0, 1.06), xlabel="coverage", ylabel="accuracy")
        axes.grid(alpha=0.4)

    return draw


def _with_band(axes: Any, x: list[float], figures: list[Json]) -> None:
    y = [figure["value"] for figure in figures]
    bands = [
        figure["ci95"] if figure["ci95"][0] is not None else [figure["value"]] * 2
        for figure in figures
    ]
    low, high = zip(*bands, strict=True)
    axes.fill_between(x, low, high, color=ACCENT, alpha=0.2, linewidth=0)
    axes.plot(x, y, color=ACCENT, marker="o", markersize=4)


def rates(figures: dict[str, Json], label: str, first: int | None = None) -> Callable[[Any], None]:
    """Named figures with their intervals, one below the other; those behind `first` are faint."""
    shown = list(figures.items())[:_MOST_MODELS]

    def draw(axes: Any) -> None:
        for place, (_, figure) in enumerate(shown):
            faint = first is not None and place >= first
            _interval(axes, figure, place)
            if figure["value"] is not None:
                axes.plot(figure["value"], place, "o", color=SECOND if faint else ACCENT)
        axes.set_yticks(range(len(shown)), [escaped(name)[:34] for name, _ in shown])
        axes.set_ylim(len(shown) - 0.5, -0.5)
        axes.set_xlim(0, 1)
        axes.set_xlabel(label)
        axes.grid(axis="x", alpha=0.4)

    return draw


def _answer(name: str) -> str:
    return f"answer {name}" if name in VERDICTS[:2] else name
