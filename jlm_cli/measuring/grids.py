"""A table of figures, and how it is written: on a terminal, as CSV, Markdown, LaTeX."""

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
from jlm_cli.terminal import shown

Cell = Any  # a figure with its interval, a number, a text, or None

_ROWS_SHOWN = 24  # of a grid, on a terminal
_GAP = 2  # spaces between its columns


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

    def transposed(self) -> Grid:
        """Rows as columns."""
        rows = [
            (column, [cells[n] for _, cells in self.rows]) for n, column in enumerate(self.columns)
        ]
        return Grid(self.title, [name for name, _ in self.rows], rows)


def grid_of(
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
            for part in _within(grid.transposed() if grid.is_wide else grid, console.width):
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
    text = re.sub(r"([\\`*_{}<>|#~]|!(?=\[)|\](?=\())", r"\\\1", text)
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
    plain = " ".join("".join(_LATEX.get(char, char) for char in text).split())
    return "{}" + plain if plain.startswith(("*", "[")) else plain  # options of the \\ before
