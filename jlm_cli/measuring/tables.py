"""The figures as tables: one set of grids for the terminal, CSV, Markdown, LaTeX and the report."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from rich.cells import cell_len
from rich.console import Console
from rich.table import Table
from rich.text import Text

from jlm_cli.records import Json
from jlm_cli.report import shown

Cell = Any  # a figure with its interval, a number, a text, or None

_ROWS_SHOWN = 12  # of a grid, on a terminal
_GAP = 2  # spaces between its columns
_BIAS = {
    "bias_first": "bias toward 1st",
    "bias_second": "bias toward 2nd",
    "delta_bias": "delta bias",
}
_CLASSES = {"precision": "precision", "recall": "recall", "f1": "F1"}
_PAIRS = {"agreement": "agreement", **_CLASSES, "kappa": "kappa", "consistency": "consistency"}
_TABLE_2 = {"agreement": "accuracy", "accuracy": "accuracy", **_CLASSES}


@dataclass(frozen=True)
class Grid:
    """A titled table; each row is its name and one cell for each column."""

    title: str
    columns: list[str]
    rows: list[tuple[str, list[Cell]]]

    @property
    def is_wide(self) -> bool:
        """Figures read better below one another."""
        return len(self.columns) > max(len(self.rows), 6)

    def turned(self) -> Grid:
        """Rows as columns."""
        rows = [
            (column, [cells[n] for _, cells in self.rows]) for n, column in enumerate(self.columns)
        ]
        return Grid(self.title, [name for name, _ in self.rows], rows)


def grids_of(result: Json) -> list[Grid]:
    """All tables of a result: its protocol's own first."""
    judges: dict[str, Json] = result["judges"]
    grids = [_headline(result["protocol"], judges), _rows(judges)]
    if "comparison" in result:
        grids.append(_comparison(result["comparison"]))
    for name, summary in judges.items():
        of = f", {name}" if len(judges) > 1 else ""
        grids += [Grid(grid.title + of, grid.columns, grid.rows) for grid in _details(summary)]
    return [grid for grid in grids if grid.rows and grid.columns]


def _headline(protocol: str, judges: dict[str, Json]) -> Grid:
    """The paper's table: judges, then what reads nothing."""
    measured = dict(judges)
    if protocol == "aspects":
        measured = {
            f"{judge}: {name}": one
            for judge, summary in judges.items()
            for name, one in {**summary["aspects"], "all aspects": summary}.items()
        }
    rows = [(name, _flat(protocol, summary)) for name, summary in measured.items()]
    rows += _baselines({name: summary.get("baselines", {}) for name, summary in judges.items()})
    against = {summary["against"] for summary in judges.values() if "against" in summary}
    title = _TITLES[protocol].format(against=" or ".join(sorted(against)))
    return _grid(title, rows, _COLUMNS[protocol])


def _baselines(by_judge: dict[str, Json]) -> list[tuple[str, Json]]:
    """Once where all judges were measured on the same rows, else for each."""
    first = next(iter(by_judge.values()))
    alike = all(baselines == first for baselines in by_judge.values())
    return [
        (f"baseline{'' if alike else f', {judge}'}: {name.replace('_', ' ')}", baseline)
        for judge, baselines in list(by_judge.items())[: 1 if alike else None]
        for name, baseline in baselines.items()
    ]


def _flat(protocol: str, summary: Json) -> Json:
    """The sections of a summary that its protocol's table shows, as one."""
    if protocol in _SECTION:
        section: Json = summary[_SECTION[protocol]]
        return section
    if protocol == "rewardbench":
        return {**summary["rewardbench"], "agreement": summary["rewardbench"]["accuracy"]}
    return {**summary.get("objective", {}), **summary.get("reliability", {})}


_SECTION = {"pandalm": "combined", "rank": "ranking"}
_TITLES = {
    "judgelm": "judge against gold (JudgeLM, tables 1 and 4)",
    "pandalm": "both orders, a conflict is a tie (JudgeLM, table 2)",
    "rank": "ranking at once against {against} (JudgeLM, table 10)",
    "mmvet": "grades against people (JudgeLM, table 9)",
    "grade": "grades against gold",
    "aspects": "aspects against gold (JudgeLM, table 16)",
    "rewardbench": "chosen over rejected (RewardBench)",
}
_COLUMNS: dict[str, dict[str, str]] = {
    "judgelm": {**_PAIRS, **_BIAS},
    "pandalm": _TABLE_2,
    "rank": {
        "consistency": "consistency",
        "error_rate_2": "error rate@2",
        "error_rate_3": "error rate@3",
    },
    "mmvet": _TABLE_2,
    "grade": {
        "spearman": "Spearman's ρ",
        "kendall": "Kendall's τ",
        "mean_absolute_error": "mean absolute error",
    },
    "aspects": {**_TABLE_2, "consistency": "consistency"},
    "rewardbench": {
        "agreement": "accuracy",
        "ties_half": "ties as half",
        "subset_mean": "mean of subsets",
    },
}


def _rows(judges: dict[str, Json]) -> Grid:
    """What was read."""
    rows = []
    for name, summary in judges.items():
        gold = summary.get("gold", {})
        facts = {
            "judged": summary.get("n_judged"),
            "failed": summary.get("n_error"),
            "aspects": len(summary.get("aspects", ())) or None,
            "failed, other order": summary.get("n_error_swapped") or None,
            **{f"verdict {key}": count for key, count in summary.get("verdicts", {}).items()},
            "gold": gold.get("n"),
            "split gold": gold.get("n_split") or None,
            "unreadable gold": gold.get("n_unreadable") or None,
            "incomplete": summary.get("n_incomplete") or None,
        }
        rows.append((name, facts))
    return _grid("rows", rows)


def _comparison(comparison: Json) -> Grid:
    rows = []
    for name, one in comparison["against"].items():
        gain = {f"Δ {key}": one for key, one in one.get("difference", {}).items() if key != "n"}
        test = one.get("mcnemar", {})
        facts = {
            **gain,
            "only the other right": test.get("only_other_right"),
            f"only {comparison['first']} right": test.get("only_first_right"),
            f"McNemar p{', by question' if test.get('by_question') else ''}": test.get("p"),
            "rows of both": one["same_verdict"]["n"],
            "same verdict": one["same_verdict"]["agreement"],
            "kappa of both": one["same_verdict"]["kappa"],
        }
        rows.append((f"{name} − {comparison['first']}", facts))
    return _grid(f"judges on their {comparison['n']} shared rows", rows)


def _details(summary: Json) -> list[Grid]:
    """The sections beyond the paper's tables."""
    swapped = "reliability" in summary
    first, both = (", first order", ", both orders") if swapped else ("", "")
    grids = []
    for section, where in (("failures", ""), ("failures_swapped", " in one order or both")):
        failures = summary.get(section, {"n": 0})
        if failures["n"]:
            ways = [way for way in ("excluded", "wrong", "tie") if way in failures]
            rows = [(way, {**failures[way], "coverage": failures["coverage"]}) for way in ways]
            grids.append(_grid(f"{failures['n']} rows without a verdict{where}, counted as", rows))
    if "combined" in summary:
        grids.append(_grid("both orders, a conflict is a tie", [("", summary["combined"])]))
    if "annotators" in summary:
        one = summary["annotators"]
        names = {"human_human": "human–human", "judge_human": "judge–human"}
        names["human_kappa"] = "Fleiss' kappa of humans"
        grids.append(_grid("agreement of two annotators", [("", one)], names))
    if "calibration" in summary:
        names = {"error": "expected calibration error", "by_chance": "of which by chance, about"}
        names["overconfidence"] = "overconfidence"
        title = f"p against gold{first}"
        grids.append(_grid(title, [("", summary["calibration"])], names))
    if "abstain" in summary:
        grids.append(_abstain(summary["abstain"]))
    if "sweep" in summary:
        rows = [(f"≥ {one['threshold']}", one) for one in summary["sweep"]]
        names = {"coverage": "coverage", "accuracy": "accuracy"}
        grids.append(_grid(f"verdicts by confidence{both}", rows, names))
    if "effects" in summary:
        title = f"verdicts for either answer{first}: share of the first, the longer; Cohen's h"
        rows = [
            ({"position": "first", "length": "longer"}[name], one)
            for name, one in summary["effects"].items()
        ]
        grids.append(_grid(title, rows))
    if "rewardbench" in summary:
        rows = list(summary["rewardbench"]["subsets"].items())
        grids.append(_grid(f"by subset{both}", rows))
    for kind, groups in summary.get("by", {}).items():
        grids.append(_grid(f"by {kind.replace('_', ' ')}{first}", list(groups.items())))
    if "aspects" in summary:
        rows = [(name, _of_aspect(one)) for name, one in summary["aspects"].items()]
        grids.append(_grid(f"each aspect{first}", rows))
    if "mean" in summary:
        grids.append(_grid("scores", [("", _spread(summary))]))
        rows = [
            (name, {"mean expected score": one})
            for name, one in summary.get("mean_score", {}).items()
        ]
        grids.append(_grid("mean expected score by model", rows))
    if "win_rate" in summary:
        best = sorted(summary["win_rate"].items(), key=lambda item: (-_value(item[1]), item[0]))
        rows = [(name, {"win rate": one, "n": one["n"]}) for name, one in best]
        grids.append(_grid("leaderboard", rows))
    return grids


def _of_aspect(summary: Json) -> Json:
    """Its verdicts, or of grades their mean."""
    counts = {f"verdict {key}": count for key, count in summary.get("verdicts", {}).items()}
    steady = summary.get("reliability", {}).get("consistency")
    return {**counts, "consistency": steady, "mean expected score": summary.get("mean")}


def _spread(summary: Json) -> Json:
    """Of grades: their mean, how many pass, and how often each was given."""
    figures = {"mean expected score": summary["mean"], "pass rate": summary.get("pass_rate")}
    return {**figures, **{f"score {score}": count for score, count in summary["scores"].items()}}


def _abstain(abstain: Json) -> Grid:
    share = f"{1 - abstain['coverage']:.1%} of the {abstain['tie']['n']} verdicts with p"
    title = f"below {abstain['threshold']}, {share}, become"
    names = {"no_verdict": "no verdict", "tie": "a tie"}
    rows = [(names[name], abstain[name]) for name in names if name in abstain]
    return _grid(title, rows, {"agreement": "agreement", **_CLASSES, "n": "n"})


def _value(figure: Json) -> float:
    return -1.0 if figure["value"] is None else float(figure["value"])


def _grid(
    title: str, rows: Iterable[tuple[str, Json]], names: dict[str, str] | None = None
) -> Grid:
    """A grid of those fields that any row has; all that fit into a cell unless named."""
    rows = list(rows)
    if names is None:
        keys = {key for _, facts in rows for key, cell in facts.items() if _is_cell(cell)}
        order = dict.fromkeys(key for _, facts in rows for key in facts if key in keys)
        names = {key: "F1" if key == "f1" else key.replace("_", " ") for key in order}
    there = {
        key: name
        for key, name in names.items()
        if any(facts.get(key) is not None for _, facts in rows)
    }
    columns = list(dict.fromkeys(there.values()))
    cells = []
    for row, facts in rows:
        found = {there[key]: facts[key] for key in there if facts.get(key) is not None}
        cells.append((row, [found.get(column) for column in columns]))
    return Grid(title, columns, cells)


def _is_cell(value: Any) -> bool:
    return not isinstance(value, dict | list) or _is_figure(value)


def _is_figure(cell: Cell) -> bool:
    return isinstance(cell, dict) and "ci95" in cell


def cell_text(cell: Cell) -> str:
    """A cell as people read it."""
    if cell is None:
        return "–"
    if _is_figure(cell):
        if cell["value"] is None:
            return "–"
        low, high = cell["ci95"]
        return f"{cell['value']:.4f}" + (f" [{low:.3f}, {high:.3f}]" if low is not None else "")
    if isinstance(cell, float):
        return f"{cell:.4f}" if cell == 0 or abs(cell) >= 1e-4 else f"{cell:.1e}"
    return f"{cell:,}" if isinstance(cell, int) else str(cell)


def printed(grids: Iterable[Grid]) -> str:
    """The tables as standard output shows them: wide and plain where it is no terminal."""
    console = Console(highlight=False, soft_wrap=True)
    if not console.is_terminal:
        console.width = 400
    with console.capture() as captured:
        for grid in grids:
            for part in _within(grid.turned() if grid.is_wide else grid, console.width):
                _print(console, part)
    return captured.get()


def _within(grid: Grid, width: int) -> Iterator[Grid]:
    """The grid in parts, of as many columns as fit side by side with no number cut."""
    left = width - max(1, *(_longest_word(shown(name, 50).plain) for name, _ in grid.rows))
    start = 0
    while start < len(grid.columns):
        end, room = start, left
        while end < len(grid.columns):
            texts = [_in_terminal(cells[end]) for _, cells in grid.rows[:_ROWS_SHOWN]]
            room -= _GAP + max(map(_longest_word, (*texts, shown(grid.columns[end], 40).plain)))
            if room < 0 and end > start:
                break
            end += 1
        rows = [(name, cells[start:end]) for name, cells in grid.rows]
        yield Grid(grid.title, grid.columns[start:end], rows)
        start = end


def _in_terminal(cell: Cell) -> str:
    """Without a space in an interval: a narrow terminal puts it on a line of its own."""
    return cell_text(cell).replace(", ", ",")


def _longest_word(text: str) -> int:
    return max(map(cell_len, text.split()), default=0)


def _print(console: Console, grid: Grid) -> None:
    table = Table(box=None, pad_edge=False, header_style="bold", title=shown(grid.title, 200))
    table.title_justify, table.title_style = "left", "bold cyan"
    table.add_column("", overflow="fold")
    for column in grid.columns:
        table.add_column(shown(column, 40), justify="right", overflow="fold")
    for name, cells in grid.rows[:_ROWS_SHOWN]:
        table.add_row(shown(name, 50), *(Text(_in_terminal(cell)) for cell in cells))
    console.print(table)
    if len(grid.rows) > _ROWS_SHOWN:
        console.print(Text(f"… {len(grid.rows) - _ROWS_SHOWN} more", style="dim"))
    console.print()


def csv_of(grids: Iterable[Grid]) -> str:
    """One figure a line: table, row, column, value, and its interval where it has one."""
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(["table", "row", "column", "value", "ci_low", "ci_high"])
    for grid in grids:
        for name, cells in grid.rows:
            for column, cell in zip(grid.columns, cells, strict=True):
                value = [cell["value"], *cell["ci95"]] if _is_figure(cell) else [cell, None, None]
                if cell is not None:
                    writer.writerow(map(_no_formula, (grid.title, name, column, *value)))
    return file.getvalue()


def _no_formula(cell: Cell) -> Cell:
    """A spreadsheet takes such a text for a formula unless it is quoted."""
    text = isinstance(cell, str) and cell.startswith(("=", "+", "-", "@", "\t", "\r"))
    return f"'{cell}" if text else cell


def markdown_of(grids: Iterable[Grid]) -> str:
    parts = []
    for grid in grids:
        lines = [["", *grid.columns], ["---", *["---:"] * len(grid.columns)]]
        lines += [[name, *map(cell_text, cells)] for name, cells in grid.rows]
        table = "".join("| " + " | ".join(map(_markdown, line)) + " |\n" for line in lines)
        parts.append(f"### {_markdown(grid.title)}\n\n{table}")
    return "\n".join(parts)


def _markdown(text: str) -> str:
    text = re.sub(r"([\\`*_{}<>|#~])" if text != "---" else r"(\\)", r"\\\1", text)
    return " ".join(text.split())


_LATEX = {
    **{char: f"\\{char}" for char in "&%$#_{}"},
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "–": "--",
    "−": "$-$",
    "≥": r"$\geq$",
    "Δ": r"$\Delta$",
    "ρ": r"$\rho$",
    "τ": r"$\tau$",
    "·": r"$\cdot$",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
}


def latex_of(grids: Iterable[Grid]) -> str:
    """Tables for the booktabs package."""
    parts = []
    for grid in grids:
        head = " & ".join(["", *map(_latex, grid.columns)])
        rows = [
            " & ".join([_latex(name), *(_latex(cell_text(cell)) for cell in cells)]) + r" \\"
            for name, cells in grid.rows
        ]
        columns = "l" + "r" * len(grid.columns)
        parts.append(
            "\n".join(
                [
                    r"\begin{table}",
                    rf"\caption{{{_latex(grid.title)}}}",
                    rf"\begin{{tabular}}{{{columns}}}",
                    r"\toprule",
                    head + r" \\",
                    r"\midrule",
                    *rows,
                    r"\bottomrule",
                    r"\end{tabular}",
                    r"\end{table}",
                    "",
                ]
            )
        )
    return "\n".join(parts)


def _latex(text: str) -> str:
    return " ".join("".join(_LATEX.get(char, char) for char in text).split())
