"""Which tables a result has: its protocol's own, as in the paper, and those beyond."""

from __future__ import annotations

from collections.abc import Iterator

from jlm_cli.measuring.grids import Grid, grid_of
from jlm_cli.records import Json

_BIAS = {
    "bias_first": "bias toward 1st",
    "bias_second": "bias toward 2nd",
    "delta_bias": "delta bias",
}
_CLASSES = {"precision": "precision", "recall": "recall", "f1": "F1"}
_PAIRS = {"agreement": "agreement", **_CLASSES, "kappa": "kappa", "consistency": "consistency"}
_TABLE_2 = {"agreement": "accuracy", "accuracy": "accuracy", **_CLASSES}


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
    return grid_of(title, rows, _COLUMNS[protocol])


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
        section: Json = summary.get(_SECTION[protocol], {})
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
    return grid_of("rows", rows)


def _comparison(comparison: Json) -> Grid:
    rows = []
    for name, one in comparison["against"].items():
        gain = {
            f"Δ {_PAIRS[key]}": one for key, one in one.get("difference", {}).items() if key != "n"
        }
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
    return grid_of(f"judges on their {comparison['n']} shared rows", rows)


def _details(summary: Json) -> Iterator[Grid]:
    """The sections beyond the paper's tables."""
    yield from _failures(summary)
    yield from _verdicts(summary)
    yield from _parts(summary)
    yield from _scores(summary)
    yield from _standings(summary)


def _orders(summary: Json) -> tuple[str, str]:
    """Behind a title, where there are two orders: that it is about the first, or about both."""
    return (", first order", ", both orders") if "reliability" in summary else ("", "")


def _failures(summary: Json) -> Iterator[Grid]:
    for section, where in (("failures", ""), ("failures_swapped", " in one order or both")):
        failures = summary.get(section, {"n": 0})
        if n := failures["n"]:
            ways = [way for way in ("excluded", "wrong", "tie") if way in failures]
            rows = [(way, {**failures[way], "coverage": failures["coverage"]}) for way in ways]
            yield grid_of(f"{n} row{'s' * (n != 1)} without a verdict{where}, counted as", rows)


def _verdicts(summary: Json) -> Iterator[Grid]:
    """Whether they are right, and how sure of that the judge is."""
    first, both = _orders(summary)
    if "combined" in summary:
        yield grid_of("both orders, a conflict is a tie", [("", summary["combined"])])
    if "annotators" in summary:
        names = {"human_human": "human–human", "judge_human": "judge–human"}
        names["human_kappa"] = "Fleiss' kappa of humans"
        yield grid_of("agreement of two annotators", [("", summary["annotators"])], names)
    if "calibration" in summary:
        names = {
            "error": "expected calibration error",
            "by_chance": "a perfectly calibrated judge, about",
            "overconfidence": "overconfidence",
        }
        yield grid_of(f"p against gold{first}", [("", summary["calibration"])], names)
    if "abstain" in summary:
        yield _abstain(summary["abstain"])
    if "sweep" in summary:
        rows = [(f"≥ {one['threshold']}", one) for one in summary["sweep"]]
        names = {"coverage": "coverage", "accuracy": "accuracy"}
        yield grid_of(f"verdicts by confidence{both}", rows, names)
    if "effects" in summary:
        title = f"verdicts for either answer{first}: share of the first, the longer; Cohen's h"
        names = {"position": "first", "length": "longer"}
        yield grid_of(title, [(names[name], one) for name, one in summary["effects"].items()])


def _parts(summary: Json) -> Iterator[Grid]:
    """By subset, category, length, models, and by aspect."""
    first, both = _orders(summary)
    if "rewardbench" in summary:
        yield grid_of(f"by subset{both}", summary["rewardbench"]["subsets"].items())
    for kind, groups in summary.get("by", {}).items():
        yield grid_of(f"by {kind.replace('_', ' ')}{first}", groups.items())
    if "aspects" in summary:
        rows = [(name, _of_aspect(one)) for name, one in summary["aspects"].items()]
        yield grid_of(f"each aspect{first}", rows)


def _scores(summary: Json) -> Iterator[Grid]:
    """Of grades."""
    if "mean" in summary:
        yield grid_of("scores", [("", _spread(summary))])
        means = summary.get("mean_score", {}).items()
        rows = [(name, {"mean expected score": one}) for name, one in means]
        yield grid_of("mean expected score by model", rows)


def _standings(summary: Json) -> Iterator[Grid]:
    """Of models, by rankings or by pairs."""
    if "leaderboard" in summary:
        names = {"mean_score": "mean expected score", "win_rate": "win rate"}
        names["bradley_terry"] = "Bradley-Terry strength"
        yield grid_of("leaderboard", summary["leaderboard"].items(), names)
    if "position_bias" in summary:
        places = enumerate(summary["position_bias"], start=1)
        rows = [(f"place {n}", {"above its mean": one}) for n, one in places]
        yield grid_of("answers by the place they were shown at", rows)
        yield grid_of("orders of one list", [("", {"stability": summary["stability"]})])
    if "win_rate" in summary:
        best = sorted(summary["win_rate"].items(), key=lambda item: (-_value(item[1]), item[0]))
        rows = [(name, {"win rate": one, "n": one["n"]}) for name, one in best]
        yield grid_of("leaderboard", rows)


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
    return grid_of(title, rows, {"agreement": "agreement", **_CLASSES, "n": "n"})


def _value(figure: Json) -> float:
    return -1.0 if figure["value"] is None else float(figure["value"])
