"""What a person sees: notes, a bar and tables on standard error; and the exit status."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

from rich.table import Table
from rich.text import Text
from tqdm import tqdm

from jlm_cli.devices import Compute
from jlm_cli.errors import EXIT_ERROR_RECORDS, EXIT_OK
from jlm_cli.records import Json
from jlm_cli.run_tables import Counted, figures_table, leaderboard, probe_table
from jlm_cli.terminal import Logged, Stderr, shown
from jlm_cli.wording import first_judgments

_ROWS_SHOWN = 12
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
            self._console.print(probe_table(summary))
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
        self._console.print(first_judgments(records[:_ROWS_SHOWN], self._console.width))
        if len(records) > _ROWS_SHOWN:
            self._console.print(Text("…", style="dim"))
        failed = [record["error"] for record in records if "error" in record]
        for error in {one["code"]: one for one in reversed(failed)}.values():
            self.note(f"{error['code']}: {error['message']}")  # whole, of the first of each kind

    def summary(self, summary: Json, tally: Counted, output: str, untrained: bool) -> None:
        """The figures of the run."""
        if self.quiet:
            return
        self._console.print(figures_table(summary, tally, output))
        for part in leaderboard(summary.get("leaderboard") or {}, self._console.width):
            self._console.print(part)
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


def exit_status(tally: Counted) -> int:
    return EXIT_ERROR_RECORDS if tally.n_error else EXIT_OK
