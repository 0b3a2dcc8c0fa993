"""The report: one HTML file that needs no network, and shows hostile text as text.

Everything from outside goes through `markupsafe`, which escapes it; the page's one script is
named by its hash in the content security policy, so that no other runs.
"""

from __future__ import annotations

import base64
import hashlib
import importlib.resources
import itertools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from markupsafe import Markup

from jlm_cli import __version__
from jlm_cli.intervals import Codes
from jlm_cli.measuring import plots
from jlm_cli.measuring.columns import NONE, SPLIT, Columns
from jlm_cli.measuring.comparing import Aligned
from jlm_cli.measuring.grids import Grid, cell_text
from jlm_cli.measuring.predictions import Predictions
from jlm_cli.measuring.suspicion import LOW_CONFIDENCE, POINTS, Suspicion, suspicion_of
from jlm_cli.records import VERDICTS, Json
from jlm_cli.report import escaped

ROWS = 500  # judgments that a page holds
TEXT = 6000  # characters of one text that it shows
_BRIEF = 160  # characters of a question in the table

_EMPTY = Markup()


def page_of(
    result: Json, grids: Sequence[Grid], judge: Predictions | None, aligned: Aligned | None
) -> str:
    """The whole page. `judge` are the predictions whose judgments are shown."""
    script = _resource("page.js")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policy = f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{digest}'"
    judgments = _EMPTY if judge is None else _judgments(judge, aligned)
    drawn = _plots(result, judge)
    parts = [name for name, part in (("Judgments", judgments), ("Plots", drawn)) if part]
    names = ", ".join(result["judges"])
    return str(
        Markup(_resource("page.html")).format(
            policy=policy,
            title=_text(f"{names}: judgments"),
            style=Markup(_resource("page.css")),
            names=_text(names),
            about=_about(result),
            cards=_headline(result, grids[0]),
            judgments=judgments,
            jump=_join(Markup('<a href="#{}">{}</a>').format(p.lower(), p) for p in parts),
            plots=drawn,
            tables=_join(_table(grid.transposed() if grid.is_wide else grid) for grid in grids),
            script=Markup(script),
            version=__version__,
        )
    )


def _resource(name: str) -> str:
    return (importlib.resources.files("jlm_cli.measuring") / name).read_text(encoding="utf-8")


def _join(parts: Iterable[Markup]) -> Markup:
    return Markup("\n").join(parts)


def _text(value: object) -> str:
    """Text from outside, to be escaped where it is put in; long ones are cut."""
    text = str(value)
    cut = f" … (cut; {len(text):,} characters in all)" if len(text) > TEXT else ""
    return escaped(text[:TEXT]) + cut


def _about(result: Json) -> str:
    parts = [f"Protocol {result['protocol']}"]
    for name, summary in result["judges"].items():
        of = f"{_text(name)}: " if len(result["judges"]) > 1 else ""
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
    cards = _join(
        _card(card, summary) for card in _CARDS if card.path[1] in summary.get(card.path[0], {})
    )
    return Markup('<div class="cards">{}</div>').format(cards)


def _card(card: Card, summary: Json) -> Markup:
    figure = summary[card.path[0]][card.path[1]]
    value = "–" if figure["value"] is None else f"{figure['value']:.3f}"
    low, high = figure["ci95"]
    interval = f"{low:.3f} to {high:.3f}" if low is not None else "no interval"
    baseline = _EMPTY
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
    figures = _join(
        Markup(
            '<figure><div role="img" aria-label="{}">{}</div><figcaption>{}</figcaption></figure>'
        ).format(caption, Markup(svg), caption)
        for caption, svg in _each_plot(result, judge)
    )
    return Markup(_PLOTS).format(figures) if figures else _EMPTY


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
    head = _join(
        Markup("<th scope=col>{}</th>").format(_text(name)) for name in ("", *grid.columns)
    )
    rows = _join(
        Markup("<tr><th scope=row>{}</th>{}</tr>").format(
            _text(name), _join(Markup("<td>{}</td>").format(_text(cell_text(one))) for one in cells)
        )
        for name, cells in grid.rows
    )
    return Markup(
        '<details class="grid"{}><summary>{}</summary><div class="wide" tabindex="0"'
        ' role="region" aria-label="{}"><table><thead><tr>{}</tr></thead><tbody>{}</tbody>'
        "</table></div></details>"
    ).format(
        Markup(" open") if len(grid.rows) <= 10 else _EMPTY,
        _text(grid.title),
        _text(grid.title),
        head,
        rows,
    )


def _judgments(judge: Predictions, aligned: Aligned | None) -> Markup:
    suspicion = suspicion_of(judge.columns, _differ(judge, aligned))
    order = suspicion.order()[:ROWS]
    rows = _join(
        _judgment(place, int(row), judge, suspicion) for place, row in enumerate(order, start=1)
    )
    n = len(judge.columns)
    which = (
        f"All {n:,} judgments"
        if n <= ROWS
        else f"The {ROWS} most suspicious of the {n:,} judgments"
    )
    there = [name for name, mask in suspicion.reasons.items() if mask.any()]
    boxes = _join(
        Markup(
            '<label><input type="checkbox" name="why" value="{}"> {} <small>{}</small></label>'
        ).format(name, name, f"{int(suspicion.reasons[name].sum()):,}")
        for name in there
    )
    points = ", ".join(f"{name} {POINTS[name]:g}" for name in there)
    return _JUDGMENTS.format(
        which=which,
        file=_text(judge.name),
        boxes=boxes,
        rows=rows,
        points=points,
        low=f"{LOW_CONFIDENCE:g}",
    )


_JUDGMENTS = Markup("""<section id="judgments" aria-labelledby="h-judgments">
<h2 id="h-judgments">Judgments to look at first</h2>
<p>{which} of <bdi>{file}</bdi>, the oddest on top. Open a row to read its texts.</p>
<details class="order"><summary>How to read this</summary><p>Rows are ordered by points: {points},
and the judge’s own doubt, 1 − p of its verdict; below p = {low} it counts as low confidence. A
slash stands between the order as given and the swapped one, both in the input’s numbering; then
p is that of both orders together, where a conflict is a tie.</p></details>
<form id="controls" role="search" hidden>
<label class="search">Search <input id="search" type="search" placeholder="words in any text"
autocomplete="off" aria-keyshortcuts="/"></label>
<fieldset><legend>Only</legend>{boxes}</fieldset>
<output id="found" aria-live="polite"></output>
<p class="keys">Keys: <kbd>/</kbd> search · <kbd>j</kbd> <kbd>k</kbd> next, previous ·
<kbd>Enter</kbd> open</p>
</form>
<table id="rows">
<thead><tr>
<th scope="col" data-sort="rank" aria-sort="ascending">#</th>
<th scope="col" data-sort="id">id</th>
<th scope="col">why</th>
<th scope="col">question</th>
<th scope="col" data-sort="gap">scores</th>
<th scope="col" data-sort="verdict">verdict</th>
<th scope="col" data-sort="gold">gold</th>
<th scope="col" data-sort="p">p</th>
</tr></thead>
{rows}
</table>
<p><button id="more" type="button" hidden>Show more</button></p>
</section>
""")


def _differ(judge: Predictions, aligned: Aligned | None) -> Codes | None:
    if aligned is None:
        return None
    first, *others = aligned.judges
    differ = np.zeros(len(judge.columns), bool)
    for name, which in itertools.product(others, ("verdict", "final")):
        ours, theirs = aligned.column(first, which), aligned.column(name, which)
        differ[aligned.rows[first]] |= (ours != theirs) & (ours != NONE) & (theirs != NONE)
    return differ


_JUDGMENT = Markup("""<tbody class="judgment" data-rank="{rank}" data-id="{id}" data-gap="{gap}"
data-verdict="{verdict}" data-gold="{gold}" data-p="{p}" data-why="{why}">
<tr><td data-label="#">{rank}</td><th scope="row" data-label="id"><button type="button"
aria-expanded="false" aria-controls="more-{rank}"><bdi>{id}</bdi></button></th>
<td data-label="why">{badges}</td><td data-label="question" class="brief" dir="auto">{brief}</td>
<td data-label="scores" class="scores">{scores}</td><td data-label="verdict">{verdict}</td>
<td data-label="gold">{gold}</td><td data-label="p">{p}</td></tr>
<tr class="more" id="more-{rank}"><td colspan="8">{more}</td></tr>
</tbody>""")


def _judgment(rank: int, row: int, judge: Predictions, suspicion: Suspicion) -> Markup:
    columns, record = judge.columns, judge.record(row)
    why = suspicion.of(row)
    question = escaped(str(record["sample"].get("question") or ""))
    final = int(columns.final[row])
    p = columns.final_p[row][final] if final != NONE else np.nan
    scores = columns.scores[row]
    swapped = (record.get("swapped") or {}).get("scores")
    gap = abs(float(scores[0] - scores[1])) if np.isfinite(scores).all() else -1
    return _JUDGMENT.format(
        rank=rank,
        id=_text(judge.ids[row] if judge.ids[row] is not None else f"row {row + 1}"),
        gap=f"{gap:g}",
        verdict=_verdict(columns.verdict[row], columns.swapped[row]),
        gold=_place(columns.gold[row]),
        p=f"{p:.2f}" if np.isfinite(p) else "",
        why="|".join(why),
        badges=_join(
            Markup('<span class="badge {}">{}</span>').format(name.replace(" ", "-"), name)
            for name in why
        ),
        brief=question[:_BRIEF] + ("…" if len(question) > _BRIEF else ""),
        scores=_scores(scores) + (f" / {_scores(swapped)}" if swapped else ""),
        more=_more(record, columns, row),
    )


def _scores(scores: Any) -> str:
    numbers = [f"{score:g}" for score in scores if np.isfinite(score)]
    return " ".join(numbers)


def _verdict(given: Any, swapped: Any) -> str:
    if swapped in (NONE, given):
        return _place(given)
    return f"{_place(given)} / {_place(swapped)}"


def _place(place: Any) -> str:
    return VERDICTS[place] if place < NONE else "split" if place == SPLIT else "–"


def _more(record: Json, columns: Columns, row: int) -> Markup:
    """All texts of a judgment, and what the judge thought of them."""
    sample = record["sample"]
    parts = [_error(record["error"])] if isinstance(record.get("error"), dict) else []
    parts.append(_body("Question", sample.get("question")))
    parts.append(_body("Reference", sample.get("reference")))
    answers = sample.get("answers") if isinstance(sample.get("answers"), list) else []
    parts.append(
        Markup('<div class="answers">{}</div>').format(
            _join(_answer(n, answer, sample, record) for n, answer in enumerate(answers, start=1))
        )
    )
    parts.append(_probabilities("p", columns.p[row]))
    parts.append(_probabilities("p, swapped", columns.p_swapped[row]))
    if votes := int(columns.votes[row].sum()):
        cast = ", ".join(
            f"{name}: {n}" for name, n in zip(VERDICTS, columns.votes[row], strict=True)
        )
        parts.append(Markup("<p>{} annotators: {}</p>").format(votes, cast))
    flags = record.get("flags")
    if isinstance(flags, list) and flags:
        parts.append(Markup("<p>Flags: {}</p>").format(_text(", ".join(map(str, flags)))))
    swapped = record.get("swapped") or {}
    parts.append(_body("Judge wrote", record.get("pred_text") or record.get("text")))
    parts.append(_body("Reason", record.get("reason")))
    parts.append(_body("Judge wrote of the swapped order", swapped.get("text")))
    parts.append(_body("Reason, swapped order", swapped.get("reason")))
    return _join(part for part in parts if part)


def _error(error: Json) -> Markup:
    return Markup('<p class="error">{}: {}</p>').format(
        _text(error.get("code")), _text(error.get("message"))
    )


def _answer(number: int, answer: Any, sample: Json, record: Json) -> Markup:
    models, expected = sample.get("models"), record.get("expected")
    facts = [f"{len(str(answer)):,} characters"]
    if isinstance(models, list) and len(models) >= number:
        facts.insert(0, _text(models[number - 1]))
    if isinstance(expected, list) and len(expected) >= number:
        facts.append(f"expected score {expected[number - 1]:.2f}")
    return Markup(
        "<section><h4>Answer {} <small>{}</small></h4>"
        '<div class="text" dir="auto">{}</div></section>'
    ).format(number, " · ".join(facts), _text(answer))


def _body(title: str, text: Any) -> Markup:
    if not isinstance(text, str) or not text:
        return _EMPTY
    return Markup('<h4>{}</h4><div class="text" dir="auto">{}</div>').format(title, _text(text))


def _probabilities(title: str, p: Any) -> Markup:
    if not np.isfinite(p).all():
        return _EMPTY
    bars = _join(
        Markup('<span class="p{}" style="flex-grow:{}" title="{}">{}</span>').format(
            n, f"{max(share, 0.001):.3f}", f"{name}: {share:.3f}", f"{name} {share:.2f}"
        )
        for n, (name, share) in enumerate(zip(VERDICTS, p, strict=True))
    )
    return Markup('<div class="p"><span>{}</span><div>{}</div></div>').format(title, bars)
