"""The report's table of judgments, the oddest on top, with all texts of each."""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from typing import Any

import numpy as np
from markupsafe import Markup

from jlm_cli.intervals import Codes
from jlm_cli.measuring.columns import NONE, SPLIT, Columns
from jlm_cli.measuring.comparing import Aligned
from jlm_cli.measuring.predictions import Predictions
from jlm_cli.measuring.suspicion import LOW_CONFIDENCE, POINTS, Suspicion, suspicion_of
from jlm_cli.records import VERDICTS, Json
from jlm_cli.terminal import escaped

ROWS = 500  # judgments that a page holds
TEXT = 6000  # characters of one text that it shows
_BRIEF = 160  # characters of a question in the table

EMPTY = Markup()


def joined(parts: Iterable[Markup]) -> Markup:
    return Markup("\n").join(parts)


def text_of(value: object) -> str:
    """Text from outside, to be escaped where it is put in; long ones are cut."""
    text = str(value)
    cut = f" … (cut; {len(text):,} characters in all)" if len(text) > TEXT else ""
    return escaped(text[:TEXT]) + cut


def judgments_of(judge: Predictions, aligned: Aligned | None) -> Markup:
    suspicion = suspicion_of(judge.columns, _differ(judge, aligned))
    order = suspicion.order()[:ROWS]
    rows = joined(
        _judgment(place, int(row), judge, suspicion) for place, row in enumerate(order, start=1)
    )
    n = len(judge.columns)
    which = (
        f"All {n:,} judgments"
        if n <= ROWS
        else f"The {ROWS} most suspicious of the {n:,} judgments"
    )
    there = [name for name, mask in suspicion.reasons.items() if mask.any()]
    boxes = joined(
        Markup(
            '<label><input type="checkbox" name="why" value="{}"> {} <small>{}</small></label>'
        ).format(name, name, f"{int(suspicion.reasons[name].sum()):,}")
        for name in there
    )
    points = ", ".join(f"{name} {POINTS[name]:g}" for name in there)
    return _JUDGMENTS.format(
        which=which,
        file=text_of(judge.name),
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
        id=text_of(judge.ids[row] if judge.ids[row] is not None else f"row {row + 1}"),
        gap=f"{gap:g}",
        verdict=_verdict(columns.verdict[row], columns.swapped[row]),
        gold=_place(columns.gold[row]),
        p=f"{p:.2f}" if np.isfinite(p) else "",
        why="|".join(why),
        badges=joined(
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
            joined(_answer(n, answer, sample, record) for n, answer in enumerate(answers, start=1))
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
        parts.append(Markup("<p>Flags: {}</p>").format(text_of(", ".join(map(str, flags)))))
    swapped = record.get("swapped") or {}
    parts.append(_body("Judge wrote", record.get("pred_text") or record.get("text")))
    parts.append(_body("Reason", record.get("reason")))
    parts.append(_body("Judge wrote of the swapped order", swapped.get("text")))
    parts.append(_body("Reason, swapped order", swapped.get("reason")))
    return joined(part for part in parts if part)


def _error(error: Json) -> Markup:
    return Markup('<p class="error">{}: {}</p>').format(
        text_of(error.get("code")), text_of(error.get("message"))
    )


def _answer(number: int, answer: Any, sample: Json, record: Json) -> Markup:
    models, expected = sample.get("models"), record.get("expected")
    facts = [f"{len(str(answer)):,} characters"]
    if isinstance(models, list) and len(models) >= number:
        facts.insert(0, text_of(models[number - 1]))
    if isinstance(expected, list) and len(expected) >= number:
        facts.append(f"expected score {expected[number - 1]:.2f}")
    return Markup(
        "<section><h4>Answer {} <small>{}</small></h4>"
        '<div class="text" dir="auto">{}</div></section>'
    ).format(number, " · ".join(facts), text_of(answer))


def _body(title: str, text: Any) -> Markup:
    if not isinstance(text, str) or not text:
        return EMPTY
    return Markup('<h4>{}</h4><div class="text" dir="auto">{}</div>').format(title, text_of(text))


def _probabilities(title: str, p: Any) -> Markup:
    if not np.isfinite(p).all():
        return EMPTY
    bars = joined(
        Markup('<span class="p{}" style="flex-grow:{}" title="{}">{}</span>').format(
            n, f"{max(share, 0.001):.3f}", f"{name}: {share:.3f}", f"{name} {share:.2f}"
        )
        for n, (name, share) in enumerate(zip(VERDICTS, p, strict=True))
    )
    return Markup('<div class="p"><span>{}</span><div>{}</div></div>').format(title, bars)
