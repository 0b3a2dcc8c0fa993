"""The summary of a run: which figures it has, in the shape that files and tables share.

`summary_of` gives what every summary holds, `details_of` what `jlm metrics` adds. Sections that
the input cannot fill are left out. Fractions, not percent; each figure with its interval.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np

from jlm_cli.config import TIE_WITHIN
from jlm_cli.intervals import Cells, Codes, Counts, Metric, cells_of
from jlm_cli.measuring.columns import (
    NONE,
    OTHER,
    SPLIT,
    TIE,
    UNREADABLE,
    Columns,
    confidence,
    longest_answer,
)
from jlm_cli.metrics import (
    COMBINED,
    OBJECTIVE,
    PREFERENCE,
    RELIABILITY,
    agreement,
    bias_toward_first,
    consistency,
    f1,
    figure,
    figures,
    hit_rate,
    human_agreement,
    human_kappa,
    judge_human_agreement,
    number,
    overconfidence,
    ratio,
    row_at,
    rows_from,
    size_of,
    win_rate,
)
from jlm_cli.records import VERDICTS, Json

N_BINS = 10  # of the reliability curve
STEPS = 20  # thresholds of the sweep, from 0 on
LENGTH_BUCKETS = (3, 50, 200, 500, 1000)  # characters between the answers, upper ends
MOST_GROUPS = 200  # of one kind; the smallest of more are put together
_ROUNDING = 1e-6  # of confidences
_BETWEEN = " · "  # the names of two models


def summary_of(columns: Columns, swap: bool, tie_within: int = TIE_WITHIN) -> Json:
    """The measured part of every summary."""
    judged = columns.verdict != NONE
    said = np.bincount(columns.verdict[judged], minlength=3)
    parts: Json = {"verdicts": dict(zip(VERDICTS, said.tolist(), strict=True))}
    measured = judged & (columns.gold < NONE)
    if measured.any():
        parts["objective"] = objective(_confusion(columns, columns.verdict, measured))
    if swap and judged.any():
        both = judged & (columns.swapped != NONE)
        moves = _cells(columns, both, (columns.verdict, 3), (columns.swapped, 3))
        delta = size_of(figure(bias_toward_first, moves))
        parts["reliability"] = {**figures(RELIABILITY, moves), "delta_bias": delta, "n": moves.n}
        if measured.any():
            final = both & measured
            cells = _confusion(columns, columns.final, final)
            parts["combined"] = {**figures(COMBINED, cells), "n": cells.n}
    if (columns.models >= 0).any():
        parts["win_rate"] = win_rates(columns)
    if measured.any():
        parts["baselines"] = baselines(columns, measured, tie_within)
    return parts


def details_of(columns: Columns, abstain: float | None) -> Json:
    """What else can be known of one judge."""
    measured = (columns.verdict != NONE) & (columns.gold < NONE)
    parts: Json = {}
    if (columns.gold < NONE).any():
        parts["failures"] = failures(columns, columns.verdict)
        if columns.both_orders:
            parts["failures_swapped"] = failures(columns, columns.final)
    if ((columns.votes.sum(1) > 1) & (columns.verdict != NONE)).any():
        parts["annotators"] = annotators(columns)
    with_p = measured & np.isfinite(columns.p).all(1)
    if with_p.any():
        parts["calibration"] = calibration(columns, with_p)
    sure = (columns.gold < NONE) & np.isfinite(confidence(columns.final, columns.final_p))
    if sure.any():
        parts["sweep"] = sweep(columns, sure)
        if abstain is not None:
            parts["abstain"] = abstained(columns, sure, abstain)
    parts["effects"] = effects(columns)
    parts["by"] = groups(columns)
    return {name: value for name, value in parts.items() if value}


def objective(confusion: Cells, names: tuple[str, ...] = VERDICTS) -> Json:
    """Agreement with gold, as in Table 1 of the paper, with kappa and the confusion matrix."""
    rows = {
        gold: {verdict: int(confusion.counts[i, j]) for j, verdict in enumerate(names)}
        for i, gold in enumerate(names)
    }
    return {**figures(OBJECTIVE, confusion), "n": confusion.n, "confusion": rows}


def baselines(columns: Columns, measured: Codes, tie_within: int) -> Json:
    """What judges that read nothing score on the same rows."""

    def always(place: int) -> Json:
        return objective(_confusion(columns, np.full(len(columns), place), measured))

    gold = np.bincount(columns.gold[measured], minlength=3)
    found = {"first_answer": always(0), "majority": always(int(gold.argmax()))}
    known = measured & (columns.lengths >= 0).all(1)
    if not known.any():
        return found
    longest = longest_answer(columns.lengths, tie_within)
    return {"longest_answer": objective(_confusion(columns, longest, known)), **found}


def win_rates(columns: Columns) -> Json:
    """By model, over the verdicts of both orders where there are two. A model against itself
    wins nothing."""
    apart = (columns.models >= 0).all(1) & (columns.models[:, 0] != columns.models[:, 1])
    rows = np.flatnonzero((columns.final != NONE) & apart)
    verdict = columns.final[rows]
    outcome = np.concatenate([verdict, np.where(verdict == TIE, TIE, 1 - verdict)])
    model = np.concatenate([columns.models[rows, 0], columns.models[rows, 1]])
    rows = np.concatenate([rows, rows])
    rates = {}
    for code, members in _members(model):
        cells = cells_of((3,), [outcome[members]], columns.clusters_of(rows[members]))
        rates[columns.model_names[code]] = {**figure(win_rate, cells), "n": cells.n}
    return {name: rates[name] for name in sorted(rates)}


def failures(columns: Columns, verdict: Codes) -> Json:
    """Rows without a verdict, seen three ways: left out, as wrong, and as a tie (which is how the
    official code counts them). An error record holds no gold: where no other file has it, those
    rows are left out alone."""
    failed = verdict == NONE
    unknown = failed & (columns.gold == NONE) & (columns.gold_known == 0)
    covered = _cells(columns, (columns.gold < NONE) | unknown, (np.where(failed, 0, 1), 2))
    cells = _cells(columns, columns.gold < NONE, (columns.gold, 3), (verdict, 4))

    def as_tie(counts: Counts) -> Counts:
        counts = counts.copy()
        counts[..., TIE] += counts[..., NONE]
        return counts[..., :NONE]

    found = {
        "n": int(covered.counts[0]),
        "n_without_gold": int(unknown.sum()),
        "coverage": figure(hit_rate, covered),
        "excluded": figures(COMBINED, cells.map(lambda counts: counts[..., :NONE])),
    }
    if unknown.any():
        return found
    tie = figures(COMBINED, cells.map(as_tie))
    return {**found, "wrong": figures(COMBINED, cells), "tie": tie}


def annotators(columns: Columns) -> Json:
    """How far people agree with each other, beside how far the judge agrees with one of them."""
    rows = np.flatnonzero((columns.votes.sum(1) > 1) & (columns.verdict != NONE))
    patterns, pattern = np.unique(columns.votes[rows], axis=0, return_inverse=True)
    votes = patterns.astype(np.float64)
    codes = [pattern.ravel(), columns.verdict[rows]]
    cells = cells_of((len(votes), 3), codes, columns.clusters_of(rows))
    return {
        "human_human": figure(human_agreement(votes), cells),
        "judge_human": figure(judge_human_agreement(votes), cells),
        "human_kappa": figure(human_kappa(votes), cells),
        "n": cells.n,
        "n_split": int((columns.gold == SPLIT).sum()),
    }


def calibration(columns: Columns, rows: Codes) -> Json:
    """Whether the probability of a verdict says how often it is right, for the order as given.

    The expected calibration error has no interval, as it is never far below what chance makes of a
    few rows; `by_chance` is what a judge that is perfectly calibrated would show on average.
    """
    sure = confidence(columns.verdict, columns.p)[rows].astype(np.float64).clip(0, 1)
    right = (columns.verdict == columns.gold)[rows].astype(np.int64)
    place = _step_of(sure, N_BINS)
    cells = cells_of((N_BINS, 2), [place, right], columns.clusters_of(np.flatnonzero(rows)))
    sums = np.zeros((N_BINS, 2))
    np.add.at(sums, (place, right), sure)
    mean = ratio(sums, cells.counts, 0.0)
    gaps = np.abs(sums.sum(1) - cells.counts[:, 1]).sum()
    spread = np.zeros(N_BINS)
    np.add.at(spread, place, sure * (1 - sure))
    # the mean size of a normal number; of very few surprises that of one
    chance = np.minimum(np.sqrt(2 / np.pi * spread), 2 * spread).sum()
    curve = [
        {
            "from": number(n / N_BINS),
            "to": number((n + 1) / N_BINS),
            "n": int(cells.counts[n].sum()),
            "confidence": number(sums[n].sum() / cells.counts[n].sum()),
            "accuracy": figure(hit_rate, cells.map(row_at(n))),
        }
        for n in range(N_BINS)
        if cells.counts[n].any()
    ]
    return {
        "error": {"value": number(gaps / cells.n), "ci95": [None, None]},
        "by_chance": number(chance / cells.n),
        "overconfidence": _overconfidence(mean, cells),
        "n": cells.n,
        "curve": curve,
    }


def _overconfidence(mean: Counts, cells: Cells) -> Json:
    """Without an interval where all verdicts are right, or all wrong: resamples would tell how
    confidence varies alone."""
    found = figure(overconfidence(mean), cells)
    return found if cells.counts.sum(0).all() else {**found, "ci95": [None, None]}


def sweep(columns: Columns, rows: Codes) -> list[Json]:
    """Accuracy and coverage of the final verdicts that reach each confidence."""
    sure = confidence(columns.final, columns.final_p)[rows].astype(np.float64)
    right = (columns.final == columns.gold)[rows]
    step = _step_of(sure, STEPS)
    cells = cells_of((STEPS, 2), [step, right], columns.clusters_of(np.flatnonzero(rows)))

    def reaching(n: int) -> Metric:
        """[..., step, outcome] → [..., (below the n-th step, from there on)]"""
        return lambda counts: np.stack(
            [counts[..., :n, :].sum((-2, -1)), counts[..., n:, :].sum((-2, -1))], axis=-1
        )

    return [
        {
            "threshold": number(n / STEPS),
            "coverage": figure(hit_rate, cells.map(reaching(n))),
            "accuracy": figure(hit_rate, cells.map(rows_from(n))),
        }
        for n in range(STEPS)
        if cells.counts[n:].any() and (n == 0 or cells.counts[n - 1].any())
    ]


def _step_of(sure: Codes, steps: int) -> Codes:
    """The last of the steps from 0 to 1 that each confidence reaches, float32 rounding aside."""
    step: Codes = np.minimum(np.floor((sure + _ROUNDING) * steps), steps - 1).astype(np.int64)
    return step


def abstained(columns: Columns, rows: Codes, threshold: float) -> Json:
    """The final verdicts when those below `threshold` are taken back, or made ties."""
    sure = confidence(columns.final, columns.final_p)
    kept = rows & (sure + _ROUNDING >= threshold)
    as_tie = np.where(kept, columns.final, TIE)
    parts: Json = {"threshold": threshold, "coverage": number(kept.sum() / rows.sum())}
    if kept.any():
        parts["no_verdict"] = objective(_confusion(columns, columns.final, kept))
    return {**parts, "tie": objective(_confusion(columns, as_tie, rows))}


def effects(columns: Columns) -> Json:
    """How much more often than gold the judge takes the answer shown first, and the longer one:
    shares of the verdicts for either answer, and Cohen's h between judge and gold."""
    rows = columns.verdict != NONE
    if (rows & (columns.gold < NONE)).any():  # judge and gold on the same rows
        rows = rows & (columns.gold < NONE)
    if not rows.any():
        return {}
    gold = np.minimum(columns.gold, NONE)
    found = {"position": _preference(_cells(columns, rows, (gold, 4), (columns.verdict, 3)))}
    known = rows & (columns.lengths >= 0).all(1)
    longest = longest_answer(columns.lengths, 0)
    known &= longest != TIE
    if known.any():
        verdict = np.where(longest == 0, columns.verdict, OTHER[columns.verdict])
        gold = np.where(longest == 0, gold, OTHER[gold])
        found["length"] = _preference(_cells(columns, known, (gold, 4), (verdict, 3)))
    return found


def _preference(cells: Cells) -> Json:
    """`n` are the verdicts for either answer, of which the judge's are shares."""
    return {**figures(PREFERENCE, cells), "n": int(cells.counts[:, :TIE].sum())}


def groups(columns: Columns) -> Json:
    """Figures by category, by difference in length, by pair of models."""
    found: Json = {}
    names = columns.category_names
    if by := _by_group(columns, columns.category, lambda code: names[code]):
        found["category"] = by
    known = (columns.lengths >= 0).all(1)
    ahead = np.abs(columns.lengths[:, 0].astype(np.int64) - columns.lengths[:, 1])
    bucket = np.where(known, np.searchsorted(LENGTH_BUCKETS, ahead), -1)
    if by := _by_group(columns, bucket, _bucket_name):
        buckets = map(_bucket_name, range(len(LENGTH_BUCKETS) + 1))
        found["length_difference"] = {name: by[name] for name in buckets if name in by}
    n_models, models = len(columns.model_names.names), np.sort(columns.models, axis=1)
    pairs = np.where(models[:, 0] >= 0, models[:, 0].astype(np.int64) * n_models + models[:, 1], -1)
    if by := _by_group(
        columns,
        pairs,
        lambda code: _pair_name(
            columns.model_names[code // n_models], columns.model_names[code % n_models]
        ),
    ):
        found["models"] = by
    return found


def _pair_name(*models: str) -> str:
    """Names that hold the dot between them are quoted, so that no two pairs are called alike."""
    quoted = any(_BETWEEN in name for name in models)
    return _BETWEEN.join(sorted(map(repr, models) if quoted else models))


def _bucket_name(bucket: int) -> str:
    if bucket == len(LENGTH_BUCKETS):
        return f"> {LENGTH_BUCKETS[-1]}"
    low = 0 if bucket == 0 else LENGTH_BUCKETS[bucket - 1] + 1
    return f"{low}–{LENGTH_BUCKETS[bucket]}"


def _by_group(columns: Columns, codes: Codes, name: Callable[[int], str]) -> Json:
    rows = np.flatnonzero((codes >= 0) & (columns.verdict != NONE))
    members = sorted(_members(codes[rows]), key=lambda pair: (-len(pair[1]), name(pair[0])))
    found = {name(code): _group(columns, rows[places]) for code, places in members[:MOST_GROUPS]}
    if smaller := [places for _, places in members[MOST_GROUPS:]]:
        found[f"({len(smaller)} smaller ones)"] = _group(columns, rows[np.concatenate(smaller)])
    return found if len(found) > 1 else {}


def _group(columns: Columns, rows: Codes) -> Json:
    parts: Json = {"n": len(rows)}
    measured = rows[columns.gold[rows] < NONE]
    if len(measured):
        cells = _confusion(columns, columns.verdict, measured)
        parts |= {"n_gold": len(measured)} if len(measured) < len(rows) else {}
        parts |= figures({"agreement": agreement, "f1": f1}, cells)
    both = rows[columns.swapped[rows] != NONE]
    if len(both):
        moves = _cells(columns, both, (columns.verdict, 3), (columns.swapped, 3))
        parts["consistency"] = figure(consistency, moves)
    return parts


def gold_of(columns: Columns) -> Json:
    """How much gold there is, and of which kind."""
    kinds = np.bincount(columns.gold, minlength=6)
    split = columns.verdict[columns.gold == SPLIT]
    return {
        "n": int(kinds[:NONE].sum()),
        "n_split": int(kinds[SPLIT]),
        "split": dict(
            zip((*VERDICTS, "none"), np.bincount(split, minlength=4).tolist(), strict=True)
        ),
        "n_unreadable": int(kinds[UNREADABLE]),
    }


def _members(codes: Codes) -> Iterator[tuple[int, Codes]]:
    """Each code with the places where it stands."""
    order = np.argsort(codes, kind="stable")
    names, starts = np.unique(codes[order], return_index=True)
    for name, places in zip(names, np.split(order, starts[1:]), strict=False):
        yield int(name), places


def _confusion(columns: Columns, verdict: Codes, rows: Codes) -> Cells:
    return _cells(columns, rows, (columns.gold, 3), (verdict, 3))


def _cells(columns: Columns, rows: Codes, *axes: tuple[Codes, int]) -> Cells:
    """Cells of some rows (a mask, or places); each axis as codes with how many there are."""
    shape = tuple(size for _, size in axes)
    return cells_of(shape, [codes[rows] for codes, _ in axes], columns.clusters_of(rows))
