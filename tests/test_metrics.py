"""The figures against scikit-learn, against brute force, and against their own identities."""

from __future__ import annotations

import itertools
import random
import tracemalloc
import warnings
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binomtest, kendalltau, spearmanr
from scipy.stats import t as student_t
from sklearn.metrics import cohen_kappa_score, precision_recall_fscore_support

from jlm_cli import metrics
from jlm_cli.intervals import cells_of, cells_of_counts, gain_interval, student, wilson
from jlm_cli.measuring.columns import PairTally, about_of, judged_of, longest_answer, tally_of
from jlm_cli.measuring.comparing import sign_test
from jlm_cli.measuring.standings import Mean, RankTally, against_gold
from jlm_cli.measuring.strengths import bradley_terry
from jlm_cli.measuring.summary import details_of, failures, summary_of
from jlm_cli.metrics import OBJECTIVE, agreement, figures
from jlm_cli.records import VERDICTS

VERDICT = st.sampled_from(VERDICTS)
PAIRS = st.lists(st.tuples(VERDICT, VERDICT), min_size=1, max_size=60)
TRIPLES = st.lists(st.tuples(VERDICT, VERDICT, VERDICT), min_size=1, max_size=60)
OTHER = {"1": "2", "2": "1", "tie": "tie"}


def table(pairs: list[tuple[Any, Any]]) -> np.ndarray[Any, Any]:
    counts = np.zeros((3, 3))
    for row, column in pairs:
        counts[VERDICTS.index(row), VERDICTS.index(column)] += 1
    return counts


@settings(max_examples=150, deadline=None)
@given(PAIRS)
def test_class_metrics_equal_scikit_learn(pairs: list[tuple[str, str]]) -> None:
    gold, verdict = zip(*pairs, strict=True)
    counts = table(pairs)
    wanted = precision_recall_fscore_support(gold, verdict, average="macro", zero_division=0)
    found = [metrics.precision(counts), metrics.recall(counts), metrics.f1(counts)]
    assert [float(value) for value in found] == pytest.approx(list(wanted[:3]))
    equal = sum(a == b for a, b in pairs) / len(pairs)
    assert float(metrics.agreement(counts)) == pytest.approx(equal)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        kappa = cohen_kappa_score(gold, verdict)
    ours = float(metrics.kappa(counts))
    assert (np.isnan(ours) and np.isnan(kappa)) or ours == pytest.approx(kappa)


@settings(max_examples=150, deadline=None)
@given(PAIRS)
def test_reliability_identities(pairs: list[tuple[str, str]]) -> None:
    moves = table(pairs)
    total = metrics.consistency(moves) + metrics.bias_first(moves) + metrics.bias_second(moves)
    assert float(total) == pytest.approx(1)
    # the same judgments, had every input been given in the other order
    mirrored = table([(OTHER[r], OTHER[v]) for v, r in pairs])
    assert float(metrics.bias_first(mirrored)) == pytest.approx(float(metrics.bias_first(moves)))
    # the judgments of a judge with the mirrored preference
    renamed = table([(OTHER[v], OTHER[r]) for v, r in pairs])
    assert float(metrics.bias_first(renamed)) == pytest.approx(float(metrics.bias_second(moves)))
    assert float(metrics.consistency(renamed)) == pytest.approx(float(metrics.consistency(moves)))


@pytest.mark.parametrize(
    ("given_", "swapped", "bias"),
    [
        ("1", "2", "first"),
        ("1", "tie", "first"),
        ("tie", "2", "first"),
        ("2", "1", "second"),
        ("2", "tie", "second"),
        ("tie", "1", "second"),
    ],
)
def test_every_move_counts_once(given_: str, swapped: str, bias: str) -> None:
    moves = table([(given_, swapped)])
    first, second = float(metrics.bias_first(moves)), float(metrics.bias_second(moves))
    assert (first, second) == ((1, 0) if bias == "first" else (0, 1))
    assert float(metrics.bias_toward_first(moves)) == (1 if bias == "first" else -1)


def summary_of_triples(triples: list[tuple[str, str, str]]) -> dict[str, Any]:
    rows = [
        {"verdict": verdict, "swapped": {"verdict": swapped}, "gold": gold}
        for gold, verdict, swapped in triples
    ]
    return summary_of(tally_of(rows).columns(), swap=True)


@settings(max_examples=60, deadline=None)
@given(TRIPLES)
def test_summary_equals_brute_force(triples: list[tuple[str, str, str]]) -> None:
    found, n = summary_of_triples(triples), len(triples)
    same = sum(v == g for g, v, _ in triples) / n
    assert found["objective"]["agreement"]["value"] == pytest.approx(same, abs=1e-6)
    stays = sum(v == r for _, v, r in triples) / n
    assert found["reliability"]["consistency"]["value"] == pytest.approx(stays, abs=1e-6)
    rank = {"1": 1, "tie": 0, "2": -1}  # how far a verdict is for the answer given first
    first = sum(rank[v] > rank[r] for _, v, r in triples) / n
    assert found["reliability"]["bias_first"]["value"] == pytest.approx(first, abs=1e-6)
    final = [(g, v if v == r else "tie") for g, v, r in triples]
    right = sum(g == v for g, v in final) / n
    assert found["combined"]["accuracy"]["value"] == pytest.approx(right, abs=1e-6)
    classes = [c for c in VERDICTS if any(c in pair for pair in final)]
    f1 = []
    for name in classes:
        hits = sum(g == v == name for g, v in final)
        said = sum(v == name for _, v in final) + sum(g == name for g, _ in final)
        f1.append(2 * hits / said)
    assert found["combined"]["f1"]["value"] == pytest.approx(sum(f1) / len(f1), abs=1e-6)


@settings(max_examples=40, deadline=None)
@given(TRIPLES)
def test_renaming_the_answers_changes_no_agreement(triples: list[tuple[str, str, str]]) -> None:
    found = summary_of_triples(triples)
    # every input with its answers exchanged: what was the swapped order is now the given one
    turned = summary_of_triples([(OTHER[g], OTHER[v], OTHER[r]) for g, v, r in triples])
    for name in OBJECTIVE:
        ours, theirs = found["objective"][name]["value"], turned["objective"][name]["value"]
        assert ours == theirs or ours == pytest.approx(theirs)
    one, other = found["reliability"], turned["reliability"]
    assert one["bias_first"]["value"] == other["bias_second"]["value"]
    assert one["bias_second"]["value"] == other["bias_first"]["value"]
    assert one["consistency"]["value"] == other["consistency"]["value"]


@settings(max_examples=40, deadline=None)
@given(TRIPLES)
def test_exchanging_the_orders_exchanges_the_biases(triples: list[tuple[str, str, str]]) -> None:
    one = summary_of_triples(triples)["reliability"]
    other = summary_of_triples([(g, r, v) for g, v, r in triples])["reliability"]
    assert one["bias_first"]["value"] == other["bias_second"]["value"]
    assert one["bias_second"]["value"] == other["bias_first"]["value"]
    assert one["consistency"]["value"] == other["consistency"]["value"]


def test_intervals_are_seeded_and_hold_the_value() -> None:
    counts = table([("1", "1")] * 60 + [("2", "1")] * 25 + [("tie", "2")] * 15)
    found = figures(OBJECTIVE, cells_of_counts(counts))
    assert found == figures(OBJECTIVE, cells_of_counts(counts))
    low, high = found["agreement"]["ci95"]
    assert found["agreement"]["value"] == 0.6
    assert low < 0.6 < high and high - low == pytest.approx(0.192, abs=0.03)


def test_no_rows_give_no_numbers_and_one_row_no_interval() -> None:
    found = figures(OBJECTIVE, cells_of_counts(np.zeros((3, 3))))
    assert found["f1"] == {"value": None, "ci95": [None, None]}
    assert summary_of(PairTally().columns(), swap=True) == {"verdicts": {"1": 0, "2": 0, "tie": 0}}
    one = figures(OBJECTIVE, cells_of_counts(table([("1", "1")])))
    assert one["agreement"] == {"value": 1.0, "ci95": [None, None]}


def bootstrap_by_rows(
    hits: np.ndarray[Any, Any], clusters: np.ndarray[Any, Any]
) -> tuple[float, float]:
    """The plain way: draw questions, take all their rows."""
    draw, names = np.random.default_rng(7), np.unique(clusters)
    rows = {name: hits[clusters == name] for name in names}
    means = [
        np.concatenate([rows[name] for name in draw.choice(names, len(names))]).mean()
        for _ in range(1000)
    ]
    low, high = np.percentile(means, [2.5, 97.5])
    return float(low), float(high)


@pytest.mark.parametrize("each", [1, 13], ids=["alone", "13 rows a question"])
def test_clustered_intervals_equal_those_of_drawing_rows(each: int) -> None:
    draw = np.random.default_rng(0)
    clusters = np.repeat(np.arange(40), each)
    ease = np.repeat(draw.random(40), each)  # some questions are hard: their rows go together
    verdict = (draw.random(len(clusters)) > ease).astype(int)
    gold = np.zeros(len(clusters), int)
    found = figures({"agreement": agreement}, cells_of((3, 3), [gold, verdict], clusters))
    low, high = found["agreement"]["ci95"]
    wanted = bootstrap_by_rows((verdict == 0).astype(float), clusters)
    assert (low, high) == pytest.approx(wanted, abs=0.03)
    alone = figures({"agreement": agreement}, cells_of((3, 3), [gold, verdict], None))
    if each == 1:
        assert alone == found
    else:
        narrow = np.diff(alone["agreement"]["ci95"])[0]
        assert high - low > 2 * narrow


@pytest.mark.parametrize("questions", [3, 5, 10, 30])
def test_intervals_of_few_questions_cover_the_truth(questions: int) -> None:
    """Eight rows each, some questions easy and some hard; a bootstrap covers 73 to 94 %."""
    draw, held = np.random.default_rng(questions), 0
    clusters = np.repeat(np.arange(questions), 8)
    for _ in range(300):
        right = draw.random(8 * questions) < np.repeat(draw.beta(2.1, 0.9, questions), 8)
        verdict = np.where(right, 0, 1)
        cells = cells_of((3, 3), [np.zeros_like(verdict), verdict], clusters)
        low, high = metrics.figure(agreement, cells)["ci95"]
        held += low <= 0.7 <= high
    assert held >= 276  # 92 %


def test_a_share_of_the_same_rows_has_the_same_interval_in_any_table() -> None:
    draw = np.random.default_rng(0)
    gold, verdict, clusters = draw.integers(0, 3, 90), draw.integers(0, 4, 90), np.arange(90) // 4
    with_failed = cells_of((3, 4), [gold, verdict], clusters).map(lambda cells: cells[..., :3])
    judged = verdict < 3
    alone = cells_of((3, 3), [gold[judged], verdict[judged]], clusters[judged])
    hits = cells_of((2,), [(gold == verdict)[judged]], clusters[judged])
    assert metrics.figure(agreement, with_failed) == metrics.figure(agreement, alone)
    assert metrics.figure(agreement, alone) == metrics.figure(metrics.hit_rate, hits)


def test_a_gain_has_newcombes_interval() -> None:
    """Newcombe 1998, table II, method 10: of 50 pairs 36, 12, 2 and 0; and where no two differ."""
    first, other = (np.repeat(hits, [36, 12, 2]).astype(float) for hits in ([1, 0, 1], [1, 1, 0]))
    alone, once = np.arange(50), np.ones(50)
    assert gain_interval(first, other, alone, once) == pytest.approx((0.0569, 0.3404), abs=5e-5)
    low, high = gain_interval(first, first, alone, once)
    assert low == pytest.approx(-high) and 0 < high < 0.2
    assert np.isnan(gain_interval(first[:1], other[:1], alone[:1], once[:1])).all()


@pytest.mark.parametrize("each", [1, 6])
@pytest.mark.parametrize("questions", [20, 100])
def test_intervals_of_a_gain_cover_the_truth(questions: int, each: int) -> None:
    """Two good judges that often err together, on questions of which some are hard; a bootstrap
    covers 72 % of 20 rows."""
    draw, held = np.random.default_rng(questions + each), 0
    clusters = np.repeat(np.arange(questions), each)
    for _ in range(300):
        hard = np.repeat(draw.beta(0.3, 5.4, questions), each)
        both = draw.random(len(hard)) < hard / 2
        ours, theirs = (both | (draw.random(len(hard)) < rate * hard) for rate in (0.5, 0.3))
        gold = np.zeros(len(hard), int)
        cells = cells_of((3, 3, 3), [gold, ours * 1, theirs * 1], clusters)
        low, high = _gain(cells)["ci95"]
        truth = 0.2 * (0.3 / 5.7) - 0.2 * (0.3 * 1.3 / (5.7 * 6.7)) / 2  # mean, mean of squares
        held += low <= truth <= high
    assert held >= 276  # 92 %


def _gain(cells: Any) -> Any:
    return metrics.figure_of_gain(
        lambda cells: agreement(cells.sum(-1)), lambda cells: agreement(cells.sum(-2)), cells
    )


def test_a_class_of_few_questions_leaves_a_mean_without_an_interval() -> None:
    """However many rows they are: a resample draws questions."""
    verdict = np.repeat([0, 1, 2], [400, 400, 100])
    few, many = np.arange(900) // 10, np.concatenate([np.arange(800) // 10, 80 + np.arange(100)])
    for clusters, there in ((few, False), (many, True)):
        moved = np.where(np.arange(900) % 7, verdict, 0)
        cells = cells_of((3, 3), [verdict, moved], clusters)
        assert (metrics.figure(metrics.f1, cells)["ci95"][0] is not None) == there
        assert metrics.figure(agreement, cells)["ci95"][0] is not None


def test_student_equals_scipy() -> None:
    for freedom in (1, 2, 3, 4, 7, 20, 300):
        assert student(freedom) == pytest.approx(student_t.ppf(0.975, freedom), rel=2e-3)


def test_bootstrap_covers_the_truth() -> None:
    """Of intervals from many draws of one population about 95 % hold its agreement."""
    draw, truth, held = random.Random(0), 0.7, 0
    for _ in range(200):
        hits = sum(draw.random() < truth for _ in range(150))
        cells = cells_of_counts(table([("1", "1")] * hits + [("1", "2")] * (150 - hits)))
        low, high = figures({"agreement": agreement}, cells)["agreement"]["ci95"]
        held += low <= truth <= high
    assert 180 <= held <= 199


def test_longest_answer_ties_within_three_characters() -> None:
    lengths = np.array([[4, 1], [5, 1], [1, 5]])
    assert longest_answer(lengths).tolist() == [2, 0, 1]
    assert longest_answer(lengths, 0).tolist() == [0, 0, 1]


def record(verdict: str, gold: Any, swapped: str, answers: list[str]) -> dict[str, Any]:
    combined = verdict if verdict == swapped else "tie"
    return {
        "verdict": verdict,
        "gold": gold,
        "flags": ["truncated:answers[0]"],
        "swapped": {"verdict": swapped},
        "combined": {"verdict": combined},
        "sample": {"question": str(answers), "answers": answers, "models": ["a", "b"]},
    }


ERROR = {"error": {"code": "bad-json", "message": "…"}}


def test_summary_of_records() -> None:
    records = [
        record("1", "1", "1", ["long answer", "no"]),
        record("1", [3, 7], "2", ["long answer", "no!"]),
        record("2", None, "2", ["a", "b"]),
        ERROR,
    ]
    tally = tally_of(records)
    found = summary_of(tally.columns(), swap=True)
    assert (tally.n_judged, tally.n_error, dict(tally.errors)) == (3, 1, {"bad-json": 1})
    assert dict(tally.flags) == {"truncated": 3}
    assert found["verdicts"] == {"1": 2, "2": 1, "tie": 0}
    assert found["objective"]["agreement"]["value"] == 0.5
    assert found["objective"]["n"] == 2
    assert found["objective"]["confusion"]["2"] == {"1": 1, "2": 0, "tie": 0}
    assert found["reliability"]["consistency"]["value"] == pytest.approx(2 / 3, abs=1e-6)
    assert found["reliability"]["bias_first"]["value"] == pytest.approx(1 / 3, abs=1e-6)
    assert found["combined"]["accuracy"]["value"] == 0.5
    assert found["win_rate"]["a"]["value"] == 0.5
    assert found["baselines"]["longest_answer"]["agreement"]["value"] == 0.5
    assert set(found["baselines"]) == {"longest_answer", "first_answer", "majority"}


def test_failures_three_ways() -> None:
    """Six rows with gold: two right, one wrong, three failed (one where gold is a tie)."""
    rows: list[dict[str, Any]] = [
        {"verdict": "1", "gold": "1"},
        {"verdict": "tie", "gold": "tie"},
        {"verdict": "2", "gold": "1"},
        {**ERROR, "gold": "1"},
        {**ERROR, "gold": "2"},
        {**ERROR, "gold": "tie"},
    ]
    columns = tally_of(rows).columns()
    found = failures(columns, columns.verdict)
    assert (found["n"], found["coverage"]["value"]) == (3, 0.5)
    gold = ["1", "tie", "1", "1", "2", "tie"]
    seen = {"excluded": ["1", "tie", "2"], "wrong": ["1", "tie", "2", "x", "x", "x"]}
    seen["tie"] = ["1", "tie", "2", "tie", "tie", "tie"]
    for way, verdicts in seen.items():
        right = [one == other for one, other in zip(gold, verdicts, strict=False)]
        assert found[way]["accuracy"]["value"] == pytest.approx(sum(right) / len(right), abs=1e-6)
        labels = [c for c in VERDICTS if c in verdicts or c in gold[: len(verdicts)]]
        wanted = precision_recall_fscore_support(
            gold[: len(verdicts)], verdicts, labels=labels, average="macro", zero_division=0
        )
        values = [found[way][name]["value"] for name in ("precision", "recall", "f1")]
        assert values == pytest.approx(list(wanted[:3]), abs=1e-6)


def test_failures_whose_gold_is_not_known() -> None:
    """As in jlm's own error records: they count against coverage, and are seen no other way."""
    rows: list[dict[str, Any]] = [{"verdict": "1", "gold": gold} for gold in ("1", "1", "2")]
    columns = tally_of([*rows, ERROR, ERROR]).columns()
    found = failures(columns, columns.verdict)
    assert (found["n"], found["n_without_gold"], found["coverage"]["value"]) == (2, 2, 0.6)
    assert found["excluded"]["accuracy"]["value"] == pytest.approx(2 / 3, abs=1e-6)
    assert not found.keys() & {"wrong", "tie"}


def with_p(verdict: str, p: float, gold: str) -> dict[str, Any]:
    rest = {name: (1 - p) / 2 for name in VERDICTS if name != verdict}
    return {"verdict": verdict, "p": {**rest, verdict: p}, "gold": gold}


def test_calibration_and_sweep_equal_brute_force() -> None:
    draw = random.Random(3)
    rows = [with_p(draw.choice("12"), draw.uniform(0.34, 1), draw.choice("12")) for _ in range(300)]
    sure = [row["p"][row["verdict"]] for row in rows]
    right = [row["verdict"] == row["gold"] for row in rows]
    found = details_of(tally_of(rows).columns(), abstain=0.62)
    error = 0.0
    for low in range(10):
        inside = [n for n, p in enumerate(sure) if low <= p * 10 < low + 1]
        if inside:
            gap = np.mean([sure[n] for n in inside]) - np.mean([right[n] for n in inside])
            error += abs(float(gap)) * len(inside) / len(rows)
    assert found["calibration"]["error"]["value"] == pytest.approx(error, abs=1e-4)
    over = float(np.mean(sure) - np.mean(right))
    assert found["calibration"]["overconfidence"]["value"] == pytest.approx(over, abs=1e-4)
    for step in found["sweep"]:
        kept = [hit for hit, p in zip(right, sure, strict=True) if p >= step["threshold"]]
        assert step["coverage"]["value"] == pytest.approx(len(kept) / 300, abs=1e-6)
        assert step["accuracy"]["value"] == pytest.approx(np.mean(kept), abs=1e-6)
    kept = [hit for hit, p in zip(right, sure, strict=True) if p >= 0.62]
    assert found["abstain"]["coverage"] == pytest.approx(len(kept) / 300, abs=1e-6)
    agreement_left = found["abstain"]["no_verdict"]["agreement"]["value"]
    assert agreement_left == pytest.approx(np.mean(kept), abs=1e-6)
    assert found["abstain"]["tie"]["confusion"]["1"]["tie"] > 0


def test_length_bias_is_told_from_position_bias() -> None:
    """A judge that always takes the longer answer, which is good half of the time."""
    draw, tally = random.Random(0), PairTally()
    for n in range(400):
        answers = ["long " * 20, "short"][:: draw.choice([1, -1])]
        longer = "1" if len(answers[0]) > len(answers[1]) else "2"
        about = about_of({"question": str(n), "answers": answers, "gold": draw.choice("12")})
        tally.append(judged_of({"verdict": longer}), about)
    found = details_of(tally.columns(), None)["effects"]
    assert found["length"]["judge"]["value"] == 1
    assert found["length"]["gold"]["value"] == pytest.approx(0.5, abs=0.06)
    assert found["length"]["effect"]["value"] > 1.4
    low, high = found["position"]["effect"]["ci95"]
    assert low < 0 < high


@pytest.mark.parametrize(("one", "other"), [(0, 0), (3, 0), (5, 5), (12, 30), (254, 123)])
def test_mcnemar_equals_scipy(one: int, other: int) -> None:
    wanted = binomtest(one, one + other).pvalue if one + other else 1.0
    assert sign_test(np.array([1] * one + [-1] * other + [0] * 3)) == pytest.approx(wanted)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(-6, 6), min_size=1, max_size=9))
def test_questions_change_sides_as_a_whole(steps: list[int]) -> None:
    sums = [
        sum(sign * abs(step) for sign, step in zip(signs, steps, strict=True))
        for signs in itertools.product((1, -1), repeat=len(steps))
    ]
    wanted = np.mean([abs(one) >= abs(sum(steps)) for one in sums])
    assert sign_test(np.array(steps)) == pytest.approx(wanted, abs=1e-9)


def judged_pairs(verdicts: str, **more: Any) -> PairTally:
    """Pairs with gold 1, in whose records stand such facts."""
    return tally_of(
        {"verdict": verdict, "gold": "1", "sample": {"question": f"Q{n}"}, **more}
        for n, verdict in enumerate(verdicts)
    )


def test_no_interval_of_overconfidence_where_nothing_goes_wrong() -> None:
    """Ten verdicts that are right say little of how often they are; nor is a p above 1 NaN."""
    for verdicts, there in (("1" * 10, False), ("1" * 9 + "2", True)):
        sure = {"p": {"1": 0.9, "2": 0.09, "tie": 0.01}}
        found = details_of(judged_pairs(verdicts, **sure).columns(), None)["calibration"]
        assert (found["overconfidence"]["ci95"][0] is not None) == there
    over = {"p": {"1": 1.000001, "2": 0.0, "tie": 0.0}}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = details_of(judged_pairs("1" * 10, **over).columns(), None)["calibration"]
    assert found["by_chance"] == 0


def test_groups_are_the_same_in_any_order_of_rows() -> None:
    """Of more groups than are shown, all of one size, those with the first names are."""
    rows = [
        {"verdict": "1", "gold": "1", "sample": {"question": f"Q{n}", "category": f"c{n:03}"}}
        for n in range(230)
    ]
    for order in (rows, rows[::-1]):
        found = details_of(tally_of(order).columns(), None)["by"]["category"]
        assert list(found)[:2] == ["c000", "c001"] and "(30 smaller ones)" in found


def test_errors_of_scores_are_not_below_zero() -> None:
    """Gold may be on a scale of its own."""
    found = against_gold(np.array([1.0, 2.0, 90.0, 3.0]), np.array([1.0, 2.0, 5.0, 3.0]), None)
    assert found["mean_absolute_error"]["ci95"][0] == 0
    assert found["mean_absolute_error"]["ci95"][1] > 21.25


def test_no_interval_is_a_point() -> None:
    """Three of three right is no certainty, and what never varied says nothing about kappa."""
    found = figures(OBJECTIVE, cells_of_counts(table([("1", "1")] * 2 + [("2", "2")])))
    assert found["agreement"]["ci95"] == pytest.approx([0.4385, 1], abs=1e-4)  # Wilson's
    assert found["kappa"] == {"value": 1.0, "ci95": [None, None]}
    clustered = [np.zeros(30, int), np.zeros(30, int)]
    cells = cells_of((3, 3), clustered, np.repeat(np.arange(3), 10))
    assert metrics.figure(agreement, cells)["ci95"] == pytest.approx([0.4385, 1], abs=1e-4)


def test_a_part_of_the_cells_has_no_interval_where_nothing_varies() -> None:
    """Ten right rows of one question are no ten things."""
    right = np.array([1] * 10 + [0, 1] * 10)
    clusters = np.array([0] * 10 + [*range(1, 21)])
    cells = cells_of((2, 2), [np.array([0] * 10 + [1] * 20), right], clusters)
    part = metrics.figure(metrics.hit_rate, cells.map(metrics.row_at(0)))
    assert part == {"value": 1.0, "ci95": [None, None]}


def test_delta_bias_holds_its_value_and_reaches_zero() -> None:
    """Of a judge without a bias most intervals hold 0; all hold what was measured."""
    draw, held = np.random.default_rng(0), 0
    for _ in range(100):
        codes = [draw.integers(0, 3, 300), draw.integers(0, 3, 300)]
        found = metrics.size_of(
            metrics.figure(metrics.bias_toward_first, cells_of((3, 3), codes, None))
        )
        low, high = found["ci95"]
        assert low <= found["value"] <= high
        held += low == 0
    assert 88 <= held <= 99


@pytest.mark.parametrize("kinds", [3, 40, 400], ids="{} values".format)
def test_grades_against_gold_equal_scipy(kinds: int) -> None:
    draw = np.random.default_rng(kinds)
    gold = draw.integers(0, kinds, 400).astype(float)
    score = np.round(gold + draw.normal(0, kinds, 400))
    found = against_gold(gold, score, None)
    assert found["spearman"]["value"] == pytest.approx(spearmanr(gold, score).statistic, abs=1e-6)
    assert found["kendall"]["value"] == pytest.approx(kendalltau(gold, score).statistic, abs=1e-6)
    assert found["mean_absolute_error"]["value"] == pytest.approx(abs(gold - score).mean())
    for name in ("spearman", "kendall", "mean_absolute_error"):
        low, high = found[name]["ci95"]
        assert low < found[name]["value"] < high


def test_grades_of_many_values_stay_small() -> None:
    """4,000 gold scores, none twice: by the table of all of them this took 128 GB."""
    draw, size = np.random.default_rng(0), 4000
    gold = draw.random(size)
    tracemalloc.start()
    found = against_gold(gold, gold + draw.random(size), draw.integers(0, 500, size))
    most = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert found["spearman"]["value"] > 0.6 and most < 600e6


def wins_of(pairs: list[tuple[int, int, float]], models: int) -> np.ndarray[Any, Any]:
    wins = np.zeros((models, models))
    for first, second, won in pairs:
        wins[first, second] += won
    return wins


def test_bradley_terry_is_the_most_likely() -> None:
    """No step from it makes the wins more likely, also along a chain of models."""
    chain = [(n, n + 1, 30.0) for n in range(19)] + [(n + 1, n, 20.0) for n in range(19)]
    wins = wins_of(chain, 20)
    met = wins + wins.T > 0
    strength = bradley_terry(met)(wins)
    apart = np.log((30 + 0.5) / (20 + 0.5))  # of neighbours, each pair by itself
    assert -np.diff(strength) == pytest.approx(np.full(19, apart))
    assert strength.mean() == pytest.approx(0)
    many = np.stack([wins, wins.T])
    assert bradley_terry(met)(many)[1] == pytest.approx(-strength)


@pytest.mark.filterwarnings("error")
def test_a_model_that_met_itself_alone_has_no_rate() -> None:
    tally = RankTally()
    for n in range(4):
        models = ["a", "b"] if n % 2 else ["c", "c"]
        sample = {"models": models, "question": str(n)}
        row = {"method": "listwise", "ranking": [1, 2], "expected": [5, 4], "flags": []}
        tally.add({**row, "sample": sample})
    board = tally.summary()["leaderboard"]
    assert board["c"]["win_rate"]["value"] is None and board["a"]["win_rate"]["value"] == 1
    assert tally.summary()["leaderboard_groups"] == [["a", "b"], ["c"]]


def test_bradley_terry_of_models_that_never_met() -> None:
    wins = wins_of([(0, 1, 3.0), (2, 3, 1.0)], 5)
    strength = bradley_terry(wins + wins.T > 0)(wins)
    assert strength == pytest.approx([np.log(7) / 2, -np.log(7) / 2, *np.log([3, 1 / 3]) / 2, 0])


def test_calibration_puts_float32_into_the_bin_it_names() -> None:
    rows = [with_p("1", 0.6, "1" if n % 5 else "2") for n in range(50)]  # 80 % right
    rows += [with_p("1", 0.7, "1" if n % 2 else "2") for n in range(50)]
    found = details_of(tally_of(rows).columns(), None)["calibration"]
    assert [one["from"] for one in found["curve"]] == [0.6, 0.7]
    assert found["error"] == {"value": pytest.approx(0.2, abs=1e-6), "ci95": [None, None]}
    chance = np.sqrt(2 / np.pi) * (np.sqrt(50 * 0.24) + np.sqrt(50 * 0.21)) / 100
    assert found["by_chance"] == pytest.approx(chance, abs=1e-6)


def test_gold_of_ties_alone_has_no_first_answer() -> None:
    rows = [{"verdict": "1", "gold": "tie"}, {"verdict": "2", "gold": "tie"}] * 3
    found = details_of(tally_of(rows).columns(), None)["effects"]["position"]
    assert (found["gold"]["value"], found["effect"]["value"], found["n"]) == (None, None, 6)


def test_a_model_against_itself_is_no_game() -> None:
    rows = [
        {"verdict": "1", "sample": {"question": str(n), "models": models}}
        for n, models in enumerate([["a", "a"], ["a", "b"], ["b", "a"]])
    ]
    assert summary_of(tally_of(rows).columns(), False)["win_rate"]["a"]["n"] == 2


def test_small_groups_are_put_together() -> None:
    rows = [
        {"verdict": "1", "gold": "1", "sample": {"question": str(n), "category": f"c{n // 2}"}}
        for n in range(410)
    ]
    found = details_of(tally_of(rows).columns(), None)["by"]["category"]
    assert len(found) == 201 and found["(5 smaller ones)"]["n"] == 10


def test_a_mean_has_students_interval_over_questions() -> None:
    draw = np.random.default_rng(0)
    values, alone, alike, twice = draw.normal(5, 2, 6), Mean(), Mean(), Mean()
    for n, value in enumerate(values):
        alone.add(value, n + 1)
        alike.add(8.0, n + 1)
        for _ in range(2):
            twice.add(value, n + 1)
    wanted = student_t.interval(0.95, 5, values.mean(), values.std(ddof=1) / np.sqrt(6))
    assert alone.json()["ci95"] == pytest.approx(wanted, rel=1e-3)
    assert twice.json()["ci95"] == alone.json()["ci95"] and twice.json()["n"] == 12
    assert alike.json() == {"value": 8.0, "ci95": [None, None], "n": 6}
    between = Mean()
    for n in range(20):
        between.add(3.0, n + 1)
        between.add(7.0, n + 1)
    assert between.json() == {"value": 5.0, "ci95": [None, None], "n": 40}
    large = Mean()
    for n, value in enumerate((1e8, 1e8 + 1, 1e8 + 2, 1e8)):
        large.add(value, n + 1)
    low, high = large.json()["ci95"]
    assert high - low == pytest.approx(2 * 3.182446 * 0.957427 / 2, rel=2e-3)


def test_a_leaderboard_does_not_depend_on_the_order_of_rows() -> None:
    draw = random.Random(0)
    records: list[dict[str, Any]] = []
    for n in range(40):
        scores = [draw.randint(1, 10) for _ in range(3)]
        ranking = draw.sample(range(1, 4), 3)
        sample = {"question": f"Q{n}", "models": ["a", "b", "c"]}
        records.append(
            {"method": "listwise", "flags": [], "ranking": ranking, "expected": scores}
            | {"sample": sample}
        )
    boards = []
    for rows in (records, records[::-1]):
        tally = RankTally()
        for record in rows:
            tally.add(record)
        boards.append(tally.summary()["leaderboard"])
    assert boards[0] == boards[1]


def test_a_leaderboard_of_many_models_needs_no_table_of_them_for_each_ranking() -> None:
    """3,000 rankings of two out of 300 models each: 2 GB would be needed."""
    tally = RankTally()
    for n in range(3000):
        models = [f"m{n % 300}", f"m{(7 * n + 1 + n // 300) % 300}"]
        sample = {"models": models, "question": str(n)}
        row = {"method": "listwise", "ranking": [1, 2], "expected": [5, 4], "flags": []}
        tally.add({**row, "sample": sample})
    tracemalloc.start()
    try:
        wins = tally._wins(sorted(tally.scores))
        wins.of(wins.times)
        assert tracemalloc.get_traced_memory()[1] < 50_000_000
    finally:
        tracemalloc.stop()


def test_ties_do_not_make_a_win_rate_surer() -> None:
    """Wins, losses and ties; a model and its only rival have mirrored intervals."""
    of = {
        outcomes: metrics.figure(metrics.win_rate, cells_of_counts(np.array(outcomes, float)))
        for outcomes in ((10, 0, 0), (9, 0, 1), (9, 1, 0), (5, 4, 3), (4, 5, 3))
    }
    lows = [of[outcomes]["ci95"][0] for outcomes in ((10, 0, 0), (9, 0, 1), (9, 1, 0))]
    assert lows == sorted(lows, reverse=True)
    one, other = of[5, 4, 3]["ci95"], of[4, 5, 3]["ci95"]
    assert one == pytest.approx([1 - end for end in other[::-1]], abs=2e-6)


def ranked(*orders: str) -> RankTally:
    """Rankings of models named by letters, best first."""
    tally = RankTally()
    for n, order in enumerate(orders):
        names = sorted(order)
        ranking = [names.index(name) + 1 for name in order]
        row = {"method": "listwise", "ranking": ranking, "expected": [5] * len(order), "flags": []}
        tally.add({**row, "sample": {"models": names, "question": str(n)}})
    return tally


def test_a_leaderboard_s_win_rates_are_shares() -> None:
    """As those of pairs are, also of a model that always wins; its strength varies with what was
    drawn alone and has no interval."""
    board = ranked(*["ba"] * 6, *["ab"] * 5).summary()["leaderboard"]
    assert board["b"]["win_rate"]["ci95"] == pytest.approx(wilson(6 / 11, 11), abs=1e-6)
    assert board["b"]["bradley_terry"]["ci95"][0] is not None
    board = ranked(*["cd"] * 6, *["ab", "ba"] * 4).summary()["leaderboard"]
    assert board["c"]["win_rate"]["ci95"] == pytest.approx(wilson(1, 6), abs=1e-6)
    assert board["c"]["bradley_terry"]["ci95"] == [None, None]
    assert board["a"]["bradley_terry"]["ci95"][0] is not None
    assert ranked("ab").summary()["leaderboard"]["a"]["win_rate"]["ci95"] == [None, None]


def test_intervals_of_means_end_with_the_scale() -> None:
    few, others = Mean(), Mean()
    for n, value in enumerate((2.0, 9.0)):
        few.add(value, n + 1)
        others.add(10 * value, n + 1)  # of another scale
    assert few.json()["ci95"] == [0, 10]
    low, high = others.json()["ci95"]
    assert low < 0 and high > 90
