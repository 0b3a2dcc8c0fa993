"""From a Sample to token ids: fits the context, and keeps user text out of control tokens."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from jlm_cli.config import Config
from jlm_cli.errors import ModelError, RowError
from jlm_cli.injection import guard
from jlm_cli.modes import View, Views, arranged
from jlm_cli.prompts import Piece, Template
from jlm_cli.records import Sample, answer_number, field_names, field_of, with_field
from jlm_cli.scoreline import Grammar, LineTokens

if TYPE_CHECKING:
    from tokenizers import Encoding, Tokenizer


MOST_TOKENS = 1 << 20  # of a prompt, where a model names no limit of its own
_BREAKS = 4  # times that a text is broken up; new tokens have never come of it


@dataclass(frozen=True)
class ChatWrap:
    """What a model's chat template puts around a user's text: `lead` and `trail` directly before
    and behind it, to be spelled together with it, and ids from the nearest control token on.
    `tail` is the end of all."""

    before: tuple[int, ...]
    lead: str
    trail: str
    after: tuple[int, ...]
    tail: str


@dataclass(frozen=True)
class Vocabulary:
    """A model's tokenizer and what must be known about it.

    `bos` goes before every prompt; `ends` end a text, `line_ends` a score line; `special` are the
    ids no user text may become; `context` is the model's length limit in tokens (None: unknown).
    `wrap` gives the chat template around a system prompt, None for a model that has none.
    `within` spells what stands behind a control token, where a text that begins is spelled
    otherwise (sentencepiece marks its first word).
    """

    tokenizer: Tokenizer
    bos: tuple[int, ...]
    ends: tuple[int, ...]
    line_ends: tuple[int, ...]
    special: frozenset[int]
    context: int | None
    wrap: Callable[[str], ChatWrap] | None = None
    within: Tokenizer | None = None

    def behind_control(self) -> Vocabulary:
        """The same, for text that stands there."""
        return self if self.within is None else replace(self, tokenizer=self.within, within=None)

    def room(self, asked: int | None) -> int | None:
        """The most tokens of a prompt: as many as asked for, and no more than the model reads."""
        return min(filter(None, (asked, self.context)), default=None)

    def encode(self, texts: Sequence[str]) -> list[Encoding]:
        return self.tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)

    def locate(self, text: str) -> Encoding:
        """Like `encode`, with character offsets."""
        return self.tokenizer.encode(text, add_special_tokens=False)

    def decode(self, ids: Sequence[int]) -> str:
        return self.tokenizer.decode(list(ids), skip_special_tokens=True)

    def speller(self) -> Callable[[int], str]:
        """Takes the ids of a text one by one and gives the text that each adds, maybe none yet."""
        from tokenizers.decoders import DecodeStream

        stream = DecodeStream(skip_special_tokens=True)
        return lambda token: stream.step(self.tokenizer, token) or ""

    def neutralised(self, text: str) -> str:
        """The text, with what would become control tokens broken up."""
        for _ in range(_BREAKS):
            for start, end in reversed(self.special_in(self.locate(text))):
                text = _broken(text, start, end)
        return text

    def special_in(self, encoding: Encoding) -> list[tuple[int, int]]:
        """Where control tokens stem from, as (start, end) in the text."""
        placed = zip(encoding.ids, encoding.offsets, strict=True)
        return [place for token, place in placed if token in self.special]


@dataclass(frozen=True)
class Prompt:
    """Token ids of one view of a sample, with what was done to make them fit."""

    ids: tuple[int, ...]
    view: View
    flags: tuple[str, ...] = ()


@dataclass
class Lines:
    """The lines that may follow a view, in a model's tokens; made once for each kind."""

    vocabulary: Vocabulary
    _made: dict[tuple[Grammar, str, bool], LineTokens] = field(default_factory=dict)
    _wraps: dict[str, ChatWrap] = field(default_factory=dict)

    def of(self, template: Template, n_answers: int) -> LineTokens:
        """Raises ModelError where the tokenizer cannot spell them."""
        wrap = None if template.reason_first else self.wrap(template)
        tail = template.tail if wrap is None else wrap.tail
        spelling = self.spelling(template)
        key = template.grammar(n_answers), tail, spelling is self.vocabulary
        if key not in self._made:
            self._made[key] = LineTokens.build(
                key[0],
                tail,
                lambda text: list(spelling.locate(text).ids),
                self.vocabulary.line_ends,
            )
        return self._made[key]

    def spelling(self, template: Template) -> Vocabulary:
        """How its prompt is spelled, and what follows it. Raises ModelError."""
        wrap = self.wrap(template)
        behind_control = wrap is not None and wrap.before
        return self.vocabulary.behind_control() if behind_control else self.vocabulary

    def wrap(self, template: Template) -> ChatWrap | None:
        """The model's chat template, for a prompt that goes through it. Raises ModelError."""
        system = template.chat_system
        if system is None:
            return None
        if self.vocabulary.wrap is None:
            raise ModelError(f"--template {template.name}: this model has no chat template")
        if system not in self._wraps:
            self._wraps[system] = self.vocabulary.wrap(system)
        return self._wraps[system]


@dataclass(frozen=True)
class Draft:
    """A sample as it will be shown, in which views, and its flags so far."""

    sample: Sample
    views: list[View]
    flags: tuple[str, ...]


class Encoder:
    """Turns samples into prompts, one for each view that is judged."""

    def __init__(self, lines: Lines, mode: Views, config: Config) -> None:
        self._lines = lines
        self._vocabulary = lines.vocabulary
        self._mode = mode
        self._config = config
        self._room = lines.vocabulary.room(config.max_length) or MOST_TOKENS
        self._longest_token = max(map(len, lines.vocabulary.tokenizer.get_vocab()))

    def encode(self, samples: Sequence[Sample]) -> list[list[Prompt] | RowError]:
        """For each sample the prompts of its views, or why there are none."""
        drafts = [self._draft(sample) for sample in samples]
        shown = [(d.sample, view) for d in drafts if isinstance(d, Draft) for view in d.views]
        encodings = iter(self._encoded(shown))
        prompts: list[list[Prompt] | RowError] = []
        for draft in drafts:
            if isinstance(draft, RowError):
                prompts.append(draft)
                continue
            ids = [list(next(encodings).ids) for _ in draft.views]
            prompts.append(self._finish(draft, ids))
        return prompts

    def _encoded(self, shown: Sequence[tuple[Sample, View]]) -> list[Encoding]:
        """Of samples in views, all at once where they are spelled alike, as they mostly are."""
        texts = [_text(self._render(sample, view)) for sample, view in shown]
        spellings = [self._lines.spelling(view.template) for _, view in shown]
        if all(one.tokenizer is spellings[0].tokenizer for one in spellings):
            return spellings[0].encode(texts) if spellings else []
        return [one.locate(text) for one, text in zip(spellings, texts, strict=True)]

    def _draft(self, sample: Sample) -> Draft | RowError:
        try:
            views = self._mode.views(sample)
            bounded, flags = self._bounded(sample)
            safe, forged = self._guarded(bounded, views)
            return Draft(safe, views, (*flags, *forged))
        except RowError as error:
            return error

    def _guarded(self, sample: Sample, views: Sequence[View]) -> tuple[Sample, tuple[str, ...]]:
        return guard(sample, self._config.on_injection, {len(view.shown) for view in views})

    def _bounded(self, sample: Sample) -> tuple[Sample, tuple[str, ...]]:
        """Without what no tokenizer could make fit, so that no text costs more than the limit."""
        most, flags = self._room * self._longest_token, []
        for name in field_names(sample):
            text = field_of(sample, name)
            if len(text) <= most:
                continue
            if self._config.on_overflow == "error" or not name.startswith("answer_"):
                size = f"{len(text)} characters, more than {self._room} tokens hold"
                raise RowError("too-long", f"field {name}: {size}")
            sample = with_field(sample, name, text[:most])
            flags.append(f"truncated:{name}")
        return sample, tuple(flags)

    def text(self, sample: Sample) -> tuple[View, str, tuple[str, ...]]:
        """The first view and its prompt as text, with the flags of what was done to make it fit.

        Raises RowError.
        """
        draft = self._draft(sample)
        if isinstance(draft, RowError):
            raise draft
        first = replace(draft, views=draft.views[:1])
        shown, _ = self._fit(first, self._ids(first.sample, first.views))
        view = shown.views[0]
        return view, _text(_rendered(shown.sample, view)), tuple(dict.fromkeys(shown.flags))

    def _finish(self, draft: Draft, ids: list[list[int]]) -> list[Prompt] | RowError:
        try:
            draft, ids = self._fit(draft, ids)
        except RowError as error:
            return error
        flags = tuple(dict.fromkeys(draft.flags))
        return [
            Prompt(self._whole(view, row), view, flags)
            for view, row in zip(draft.views, ids, strict=True)
        ]

    def _fit(self, draft: Draft, ids: list[list[int]]) -> tuple[Draft, list[list[int]]]:
        """The common case passes through; the rest is neutralised, shortened or refused."""
        sample, views, flags = draft.sample, draft.views, list(draft.flags)
        if self._any_special(ids):
            sample, ids = self._neutralise(sample, views, flags)
        if self._excess(views, ids)[0] > 0 and (fewer := self._mode.smaller_views(sample)):
            sample, forged = self._guarded(sample, fewer)
            views, ids = fewer, self._ids(sample, fewer)
            flags += forged
        if self._excess(views, ids)[0] > 0:
            sample, ids = self._shorten(sample, views, ids, flags)
        fitted = Draft(sample, views, tuple(flags))
        return (fitted, ids) if sample is draft.sample else self._checked_again(fitted, ids)

    def _checked_again(self, draft: Draft, ids: list[list[int]]) -> tuple[Draft, list[list[int]]]:
        """What was broken up or cut may end in a score line, or join to a token, only now."""
        safe, forged = self._guarded(draft.sample, draft.views)
        again = Draft(safe, draft.views, (*draft.flags, *forged))
        if safe is not draft.sample:
            return self._fit(again, self._ids(safe, again.views))
        if self._any_special(ids) and (found := self._special_in(safe, draft.views)):
            raise RowError("special", f"field {found[0][0]}: spells a control token of the model")
        return again, ids

    def _any_special(self, ids: list[list[int]]) -> bool:
        return any(self._vocabulary.special.intersection(row) for row in ids)

    def _render(self, sample: Sample, view: View) -> list[Piece]:
        """A view, with what a chat template has spelled together with it."""
        wrap, pieces = self._lines.wrap(view.template), _rendered(sample, view)
        return pieces if wrap is None else [Piece(wrap.lead), *pieces, Piece(wrap.trail)]

    def _whole(self, view: View, ids: Sequence[int]) -> tuple[int, ...]:
        """The ids of a text with what stands around it."""
        wrap = self._lines.wrap(view.template)
        if wrap is None:
            return (*self._vocabulary.bos, *ids)
        return (*wrap.before, *ids, *wrap.after)

    def _excess(self, views: Sequence[View], ids: Sequence[Sequence[int]]) -> tuple[int, int]:
        """By how many tokens the prompt that fits least is too long, and which it is."""
        over = [
            len(self._whole(view, row)) - self._limit(view)
            for view, row in zip(views, ids, strict=True)
        ]
        worst = max(range(len(over)), key=over.__getitem__)
        return over[worst], worst

    def _limit(self, view: View) -> int:
        """Tokens a prompt may have, so that its line (and a reason before it) still fits."""
        left = self._room - self._lines.of(view.template, len(view.shown)).longest
        if view.template.reason_first is None:
            return left
        return left - min(self._config.max_new_tokens, self._room // 4)

    def _ids(self, sample: Sample, views: Sequence[View]) -> list[list[int]]:
        return [list(found.ids) for found in self._encoded([(sample, view) for view in views])]

    def _neutralise(
        self, sample: Sample, views: Sequence[View], flags: list[str]
    ) -> tuple[Sample, list[list[int]]]:
        """Break up user text that became a special or added token."""
        for _ in range(_BREAKS):
            if not (found := self._special_in(sample, views)):
                break
            for name, start, end in reversed(found):
                text = field_of(sample, name)
                sample = with_field(sample, name, _broken(text, start, end))
            flags += [f"special:{name}" for name, _, _ in found]
        return sample, self._ids(sample, views)

    def _special_in(self, sample: Sample, views: Sequence[View]) -> list[tuple[str, int, int]]:
        """The special tokens that stem from a field, as (field, start, end) in its text."""
        found: set[tuple[str, int, int]] = set()
        for view in views:
            render = self._render(sample, view)
            encoding = self._lines.spelling(view.template).locate(_text(render))
            places = self._vocabulary.special_in(encoding)
            found |= {
                (name, max(start - at, 0), min(end, to) - at)
                for name, at, to in _spans(render)
                for start, end in places
                if start < to and end > at
            }
        return sorted(found)

    def _shorten(
        self, sample: Sample, views: Sequence[View], ids: list[list[int]], flags: list[str]
    ) -> tuple[Sample, list[list[int]]]:
        """Cut the longer answers' tails first, alike for all views, until every prompt fits."""
        if self._config.on_overflow == "error":
            over, worst = self._excess(views, ids)
            limit = self._limit(views[worst])
            kept = f"{self._room}, less {self._room - limit} for what the judge writes"
            raise RowError("too-long", f"{limit + over} tokens, the limit is {limit} ({kept})")
        original = sample
        while (found := self._excess(views, ids))[0] > 0:
            sample = self._cut_answers(sample, views[found[1]], found[0])
            ids = self._ids(sample, views)
        for n, (before, after) in enumerate(
            zip(original.answers, sample.answers, strict=True), start=1
        ):
            if before != after:
                flags.append(f"truncated:answer_{n}")
        return sample, ids

    def _cut_answers(self, sample: Sample, view: View, cut: int) -> Sample:
        render = self._render(sample, view)
        offsets = self._lines.spelling(view.template).locate(_text(render)).offsets
        spans = [span for span in _spans(render) if span[0].startswith("answer_")]
        starts = [[s for s, _ in offsets if start <= s < end] for _, start, end in spans]
        level = _level([len(tokens) for tokens in starts], cut)
        if level == 0:
            raise _no_room(_spans(render), [s for s, _ in offsets], self._limit(view))
        for (name, start, _), tokens in zip(spans, starts, strict=True):
            if len(tokens) > level:
                kept = field_of(sample, name)[: tokens[level] - start]
                sample = with_field(sample, name, kept)
        return sample


def with_controls(tokenizer: Tokenizer, text: str) -> list[str | tuple[int, ...]]:
    """A chat template's own text, in which control tokens are ids."""
    added = tokenizer.get_added_tokens_decoder().items()
    ids = {token.content: (token_id,) for token_id, token in added}
    patterns = [
        r"\s*" * token.lstrip + re.escape(token.content) + r"\s*" * token.rstrip
        for _, token in sorted(added, key=lambda item: -len(item[1].content))
    ]
    parts = re.split(f"({'|'.join(patterns)})", text) if patterns else [text]
    return [ids.get(part) or ids.get(part.strip()) or part for part in parts]


def _rendered(sample: Sample, view: View) -> list[Piece]:
    """A view as pieces; its answers' fields in the numbering of the sample."""
    pieces = view.template.render(arranged(sample, view.shown), view.aspects)
    return [
        replace(piece, field=f"answer_{view.shown[number - 1]}")
        if (number := answer_number(piece.field or ""))
        else piece
        for piece in pieces
    ]


def _broken(text: str, start: int, end: int) -> str:
    """A space inside keeps the text readable; a token of one character can only go."""
    inside = text[start] + " " + text[start + 1 : end] if end - start > 1 else "\ufffd"
    return text[:start] + inside + text[end:]


def _text(pieces: Iterable[Piece]) -> str:
    return "".join(piece.text for piece in pieces)


def _spans(pieces: Iterable[Piece]) -> list[tuple[str, int, int]]:
    """(field, start, end) of each user field in the rendered text, in characters."""
    spans, position = [], 0
    for piece in pieces:
        end = position + len(piece.text)
        if piece.field is not None:
            spans.append((piece.field, position, end))
        position = end
    return spans


def _no_room(spans: Sequence[tuple[str, int, int]], starts: Sequence[int], limit: int) -> RowError:
    """Of a prompt whose tokens begin there: what takes the room."""
    sizes, template = Counter[str](), len(starts)
    for name, start, end in spans:
        size = sum(start <= token < end for token in starts)
        template -= size
        sizes[name] += 0 if name.startswith("answer_") else size
    ((field, size),) = sizes.most_common(1)
    if template >= limit:
        return RowError("too-long", f"the template alone takes {template} tokens of {limit}")
    beside = f"{size} tokens, the template {template}"
    return RowError("too-long", f"field {field}: {beside}: no room for the answers in {limit}")


def _level(sizes: Sequence[int], cut: int) -> int:
    """The length all longer answers are cut to, so that `cut` tokens go; 0 where there is none."""
    target = sum(sizes) - cut
    for level in range(max(sizes, default=0), 0, -1):
        if sum(min(size, level) for size in sizes) <= target:
            return level
    return 0
