"""The paper's tables as protocols: which records a protocol reads, and the figures it gives.

Here those of verdicts on pairs, which were read before: a new one is one function and one line in
PAIRS. Each gives a summary.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from jlm_cli.config import MetricsConfig
from jlm_cli.errors import InputError
from jlm_cli.intervals import Cells, Codes, Counts, cells_of
from jlm_cli.measuring.columns import NONE, TIE
from jlm_cli.measuring.predictions import Predictions
from jlm_cli.measuring.summary import baselines, details_of, gold_of, summary_of
from jlm_cli.metrics import figure, figure_of_classes, hit_rate, hit_rate_with_ties, ratio
from jlm_cli.records import Json


def judgelm(found: Predictions, config: MetricsConfig) -> Json:
    """Tables 1, 4-6 and 11-15: agreement with gold, consistency under a swap, position bias."""
    columns = found.columns
    counts: Json = {
        "n_input": len(columns),
        "n_blank": found.source.n_blank,
        "n_judged": found.tally.n_judged,
        "n_error": found.tally.n_error,
        "errors": dict(sorted(found.tally.errors.items())),
        "n_error_swapped": found.tally.n_error_swapped,
        "flags": dict(sorted(found.tally.flags.items())),
    }
    joined = {
        name: {"only_there": side.unknown, "only_in_predictions": found.missing(name)}
        for name, side in found.sides.items()
    }
    unreadable = np.flatnonzero(columns.gold > NONE)
    gold = {**gold_of(columns), "without_verdict": [found.label(int(row)) for row in unreadable]}
    summary = summary_of(columns, columns.both_orders, config.tie_within)
    details = details_of(columns, config.abstain)
    remarks = [_NO_P] if config.abstain is not None and "abstain" not in details else []
    if found.tally.n_alike and not found.tally.n_reversed:
        remarks.append(f"{config.reversed} {_NOT_REVERSED}")
    said = {"remarks": remarks} if remarks else {}
    return {**counts, **said, "gold": gold, "joined": joined, **summary, **details}


_NO_P = "--abstain has nothing to go by: no verdict has both p and gold"
_NOT_REVERSED = "says it holds the answers in the same order: is it of the other one?"


def pandalm(found: Predictions, config: MetricsConfig) -> Json:
    """Table 2: both orders are judged, a conflict is a tie, gold is the annotators' majority."""
    if not found.columns.both_orders:
        raise InputError(
            f"{found.name}: protocol pandalm needs both orders; judge with --swap, or give "
            "--reversed"
        )
    summary = judgelm(found, config)
    if "combined" not in summary:
        raise InputError(f"{found.name}: protocol pandalm needs gold; give --gold")
    rows = (found.columns.final != NONE) & (found.columns.gold < NONE)
    return {**summary, "baselines": baselines(found.columns, rows, config.tie_within)}


def rewardbench(found: Predictions, config: MetricsConfig) -> Json:
    """Accuracy by subset: the chosen answer must win, a tie is wrong.

    `subset_mean` weighs all subsets alike; `ties_half` gives ties half a point.
    """
    columns = found.columns
    rows = (columns.final != NONE) & (columns.gold < TIE)
    if not (rows & (columns.category >= 0)).any():
        raise InputError(
            f"{found.name}: protocol rewardbench needs gold 1 or 2, and subsets (category)"
        )
    codes, subset = np.unique(columns.category[rows], return_inverse=True)
    names = [_NO_SUBSET if code < 0 else columns.category_names[code] for code in codes]
    outcome = np.where(columns.final == columns.gold, 1, np.where(columns.final == TIE, 2, 0))
    places = np.flatnonzero(rows)
    cells = cells_of((len(codes), 3), [subset, outcome[rows]], columns.clusters_of(places))
    n_questions = np.zeros(len(codes))
    each, whole = {}, cells_of((3,), [outcome[rows]], columns.clusters_of(places))
    for name, n in sorted((name, n) for n, name in enumerate(names)):
        some = places[subset == n]
        alone = cells_of((3,), [outcome[some]], columns.clusters_of(some))
        n_questions[n] = alone.questions.times.sum()
        each[name] = {"accuracy": figure(hit_rate, alone), "n": alone.n}
    overall = {
        "accuracy": figure(hit_rate, whole),
        "ties_half": figure(hit_rate_with_ties, whole),
        "subset_mean": _mean_of_subsets(cells, codes >= 0, n_questions),
        "n": whole.n,
        "subsets": each,
    }
    summary = judgelm(found, config)
    if n_ties := int((columns.gold == TIE).sum()):
        remark = f"{n_ties} rows whose gold is a tie are not measured: one answer must be chosen"
        summary.setdefault("remarks", []).append(remark)
    same = {"baselines": baselines(columns, rows, config.tie_within)}
    return {**summary, **same, "rewardbench": overall}


_NO_SUBSET = "(no subset)"


def _mean_of_subsets(cells: Cells, named: Codes, n_questions: Counts) -> Json:
    """Of [..., subset, (wrong, right, tie)], all alike; rows without a subset are none."""

    def measure(counts: Counts) -> Counts:
        rates = hit_rate(counts)[..., named]
        return ratio(np.nan_to_num(rates).sum(-1), np.isfinite(rates).sum(-1))

    return figure_of_classes(measure, cells, n_questions[named])


# the verdicts that a protocol measures, for judges side by side
VERDICTS_OF = {"judgelm": "verdict", "pandalm": "final", "rewardbench": "final"}
PAIRS: dict[str, Callable[[Predictions, MetricsConfig], Json]] = {
    "judgelm": judgelm,
    "pandalm": pandalm,
    "rewardbench": rewardbench,
}
