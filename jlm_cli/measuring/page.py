"""The report: one HTML file that needs no network, and shows hostile text as text.

Everything from outside goes through `markupsafe`, which escapes it; the page's one script is
named by its hash in the content security policy, so that no other runs.
"""

from __future__ import annotations

import base64
import hashlib
import importlib.resources
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from markupsafe import Markup

from jlm_cli import __version__
from jlm_cli.measuring import plots
from jlm_cli.measuring.comparing import Aligned
from jlm_cli.measuring.grids import Grid, cell_text
from jlm_cli.measuring.judgments import EMPTY, joined, judgments_of, text_of
from jlm_cli.measuring.predictions import Predictions
from jlm_cli.records import Json


def page_of(
    result: Json, grids: Sequence[Grid], judge: Predictions | None, aligned: Aligned | None
) -> str:
    """The whole page. `judge` are the predictions whose judgments are shown."""
    script = _resource("page.js")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policy = f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{digest}'"
    judgments = EMPTY if judge is None else judgments_of(judge, aligned)
    drawn = _plots(result, judge)
    parts = [name for name, part in (("Judgments", judgments), ("Plots", drawn)) if part]
    names = ", ".join(result["judges"])
    return str(
        Markup(_resource("page.html")).format(
            policy=policy,
            title=text_of(f"{names}: judgments"),
            style=Markup(_resource("page.css")),
            names=text_of(names),
            about=_about(result),
            cards=_headline(result, grids[0]),
            judgments=judgments,
            jump=joined(Markup('<a href="#{}">{}</a>').format(p.lower(), p) for p in parts),
            plots=drawn,
            tables=joined(_table(grid.transposed() if grid.is_wide else grid) for grid in grids),
            script=Markup(script),
            version=__version__,
        )
    )


def _resource(name: str) -> str:
    return (importlib.resources.files("jlm_cli.measuring") / name).read_text(encoding="utf-8")


def _about(result: Json) -> str:
    parts = [f"Protocol {result['protocol']}"]
    for name, summary in result["judges"].items():
        of = f"{text_of(name)}: " if len(result["judges"]) > 1 else ""
        failed = summary.get("n_error", 0)
        judged = f"{of}{summary.get('n_judged', 0):,} judged"
        parts.append(judged + (f", {failed:,} failed" if failed else ""))
    first = next(iter(result["judges"].values()))
    if gold := first.get("gold", {}).get("n"):
        parts.append(f"gold for {gold:,}")
    return " · ".join(parts)


@dataclass(frozen=True)
class Card:
    """A headline figure: where it is found in a summary, and the baseline beside it."""

    name: str
    path: tuple[str, str]
    note: str
    baseline: str | None = None


_CARDS = (
    Card("Agreement with gold", ("objective", "agreement"), "share of equal verdicts", "agreement"),
    Card("Macro F1", ("objective", "f1"), "mean over the classes", "f1"),
    Card("Cohen’s kappa", ("objective", "kappa"), "agreement beyond chance", "kappa"),
    Card("Swap consistency", ("reliability", "consistency"), "verdicts that stay under a swap"),
    Card("Delta bias", ("reliability", "delta_bias"), "toward 1st against toward 2nd; best is 0"),
    Card("Both orders", ("combined", "accuracy"), "accuracy, a conflict is a tie", "agreement"),
    Card("Calibration error", ("calibration", "error"), "p against accuracy; best is 0"),
    Card("Coverage", ("failures", "coverage"), "rows that got a verdict"),
    Card(
        "Consistency", ("ranking", "consistency"), "rankings equal to those of pairs", "consistency"
    ),
    Card("Spearman’s ρ", ("objective", "spearman"), "order of grades against gold"),
    Card("Kendall’s τ", ("objective", "kendall"), "pairs of grades against gold"),
    Card("Mean error", ("objective", "mean_absolute_error"), "points, against gold"),
    Card("Accuracy", ("rewardbench", "accuracy"), "chosen over rejected", "agreement"),
)


def _headline(result: Json, grid: Grid) -> Markup:
    """One judge's figures with what the longest answer would score; several judges as a table."""
    if len(result["judges"]) > 1:
        return _table(grid.transposed())
    (summary,) = result["judges"].values()
    cards = joined(
        _card(card, summary) for card in _CARDS if card.path[1] in summary.get(card.path[0], {})
    )
    return Markup('<div class="cards">{}</div>').format(cards)


def _card(card: Card, summary: Json) -> Markup:
    figure = summary[card.path[0]][card.path[1]]
    value = "–" if figure["value"] is None else f"{figure['value']:.3f}"
    low, high = figure["ci95"]
    interval = f"{low:.3f} to {high:.3f}" if low is not None else "no interval"
    baseline = EMPTY
    for name, other in summary.get("baselines", {}).items():
        if card.baseline and other[card.baseline]["value"] is not None:
            weak = figure["value"] is not None and other[card.baseline]["value"] >= figure["value"]
            baseline = Markup('<p class="baseline{}">{}: {:.3f}</p>').format(
                " weak" if weak else "", name.replace("_", " "), other[card.baseline]["value"]
            )
            break
    return Markup(
        '<div class="card"><h4>{}</h4><p class="value">{}</p><p class="interval">{}</p>'
        '<p class="note">{}</p>{}</div>'
    ).format(card.name, value, interval, card.note, baseline)


_PLOTS = """<section id="plots" aria-labelledby="h-plots">
<h2 id="h-plots">Plots</h2>
<div class="plots">
{}
</div>
</section>"""


def _plots(result: Json, judge: Predictions | None) -> Markup:
    figures = joined(
        Markup(
            '<figure><div role="img" aria-label="{}">{}</div><figcaption>{}</figcaption></figure>'
        ).format(caption, Markup(svg), caption)
        for caption, svg in _each_plot(result, judge)
    )
    return Markup(_PLOTS).format(figures) if figures else EMPTY


def _each_plot(result: Json, judge: Predictions | None) -> Iterator[tuple[str, str]]:
    """Captions and SVGs, for the first judge where it is not about all."""
    judges = result["judges"]
    first = next(iter(judges.values()))
    if "confusion" in first.get("objective", {}):
        rows = {
            name: one["objective"]["agreement"]
            for name, one in judges.items()
            if "objective" in one
        }
        n_judges = len(rows)
        rows |= {
            name.replace("_", " "): one["agreement"] for name, one in first["baselines"].items()
        }
        draw = plots.rates(rows, "agreement with gold", n_judges)
        yield "Agreement with gold, beside judges that read nothing", plots.drawn(draw)
        confusion = plots.confusion(first["objective"]["confusion"])
        yield "Confusion matrix: how often each verdict met each gold", plots.drawn(confusion)
    if first.get("reliability", {}).get("n"):
        draw = plots.position_bias(first["reliability"])
        yield (
            "Position bias: what becomes of verdicts when the answers change places",
            (plots.drawn(draw)),
        )
    if judge is not None and plots.on_scale(judge.columns).any():
        draw = plots.score_pairs(judge.columns)
        yield "Score pairs: how often each was given", plots.drawn(draw, height=4)
    if "calibration" in first:
        draw = plots.calibration(first["calibration"]["curve"])
        yield (
            "Calibration: on the dotted line p says how often the verdict is right",
            (plots.drawn(draw)),
        )
    if "sweep" in first:
        draw = plots.coverage(first["sweep"])
        yield (
            "Coverage and accuracy when verdicts below a confidence are taken back",
            (plots.drawn(draw)),
        )
    if first.get("win_rate"):
        rates = first["win_rate"]
        best = sorted(rates, key=lambda name: -(rates[name]["value"] or 0))
        draw = plots.rates({name: rates[name] for name in best}, "win rate, ties half")
        yield "Leaderboard", plots.drawn(draw, height=1.2 + 0.3 * min(len(best), 25))


def _table(grid: Grid) -> Markup:
    head = joined(
        Markup("<th scope=col>{}</th>").format(text_of(name)) for name in ("", *grid.columns)
    )
    rows = joined(
        Markup("<tr><th scope=row>{}</th>{}</tr>").format(
            text_of(name),
            joined(Markup("<td>{}</td>").format(text_of(cell_text(one))) for one in cells),
        )
        for name, cells in grid.rows
    )
    return Markup(
        '<details class="grid"{}><summary>{}</summary><div class="wide" tabindex="0"'
        ' role="region" aria-label="{}"><table><thead><tr>{}</tr></thead><tbody>{}</tbody>'
        "</table></div></details>"
    ).format(
        Markup(" open") if len(grid.rows) <= 10 else EMPTY,
        text_of(grid.title),
        text_of(grid.title),
        head,
        rows,
    )
