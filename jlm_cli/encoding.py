"""From a Sample to token ids: fits the context, and keeps user text out of control tokens."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from jlm_cli.config import Config
from jlm_cli.errors import RowError
from jlm_cli.injection import guard
from jlm_cli.prompts import DEFAULT, DEFAULT_WITH_REFERENCE, Piece, Template, load
from jlm_cli.records import Sample, field_names, field_of, with_field

if TYPE_CHECKING:
    from tokenizers import Encoding, Tokenizer


_BREAKS = 4  # times that a sample's text is broken up; new tokens have never come of it
MOST_TOKENS = 1 << 20  # of a prompt, where a model names no limit of its own


@dataclass(frozen=True)
class Vocabulary:
    """A model's tokenizer and what must be known about it.

    `bos` goes before every prompt; `ends` end a text; `special` are the ids no user text may
    become; `context` is the model's length limit in tokens (None: unknown).
    """

    tokenizer: Tokenizer
    bos: tuple[int, ...]
    ends: tuple[int, ...]
    special: frozenset[int]
    context: int | None

    def encode(self, texts: Sequence[str]) -> list[Encoding]:
        return self.tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)

    def locate(self, text: str) -> Encoding:
        """Like `encode`, with character offsets."""
        return self.tokenizer.encode(text, add_special_tokens=False)

    def decode(self, ids: Sequence[int]) -> str:
        return self.tokenizer.decode(list(ids), skip_special_tokens=True)


@dataclass(frozen=True)
class Prompt:
    """Token ids of one order of one sample's answers, with what was done to make them fit."""

    ids: tuple[int, ...]
    flags: tuple[str, ...] = ()


@dataclass(frozen=True)
class Templates:
    """Which template a row takes: one for all, or one each for rows with and without reference."""

    plain: Template
    with_reference: Template

    @classmethod
    def of(cls, name: str | None) -> Templates:
        if name is None:
            return cls(load(DEFAULT), load(DEFAULT_WITH_REFERENCE))
        return cls(load(name), load(name))

    def choose(self, sample: Sample) -> Template:
        """Raises RowError where the template asks for a reference that the row lacks."""
        template = self.plain if sample.reference is None else self.with_reference
        if template.needs_reference and sample.reference is None:
            raise RowError(
                "missing-reference", f"field reference: template {template.name} needs one"
            )
        return template

    def identity(self) -> str:
        """SHA-256 of the texts, in hex."""
        texts = [t.text + t.answer for t in (self.plain, self.with_reference)]
        return hashlib.sha256("\0".join(texts).encode()).hexdigest()

    @property
    def label(self) -> str:
        """The names, as the summary gives them."""
        return " | ".join(dict.fromkeys((self.plain.name, self.with_reference.name)))


def swapped(sample: Sample) -> Sample:
    """The sample with its answers (and whose they are) in reverse order; gold is left out."""
    models = None if sample.models is None else sample.models[::-1]
    return replace(sample, answers=sample.answers[::-1], models=models, gold=None)


@dataclass(frozen=True)
class Draft:
    """A sample as it will be judged, its prompt in each order as text, and its flags so far."""

    sample: Sample
    flags: tuple[str, ...]
    texts: list[str]


class Encoder:
    """Turns samples into prompts, one for each order that is judged."""

    def __init__(
        self, vocabulary: Vocabulary, templates: Templates, config: Config, line_tokens: int
    ) -> None:
        """`line_tokens` is the room that is kept free for the score line."""
        self._vocabulary = vocabulary
        self._templates = templates
        self._config = config
        room = config.max_length or vocabulary.context or MOST_TOKENS
        self._limit = max(room - line_tokens, 0)
        self._longest_token = max(map(len, vocabulary.tokenizer.get_vocab()))

    def encode(self, samples: Sequence[Sample]) -> list[list[Prompt] | RowError]:
        """For each sample its prompts (one, or two with `swap`), or why there are none."""
        drafts = [self._draft(sample) for sample in samples]
        texts = [text for draft in drafts if isinstance(draft, Draft) for text in draft.texts]
        encodings = iter(self._vocabulary.encode(texts))
        prompts: list[list[Prompt] | RowError] = []
        for draft in drafts:
            if isinstance(draft, RowError):
                prompts.append(draft)
                continue
            ids = [[*self._vocabulary.bos, *next(encodings).ids] for _ in draft.texts]
            prompts.append(self._finish(draft, ids))
        return prompts

    def _draft(self, sample: Sample) -> Draft | RowError:
        try:
            bounded, flags = self._bounded(sample)
            safe, forged = guard(bounded, self._config.on_injection)
            texts = [_text(pieces) for pieces in self._renders(safe)]
            return Draft(safe, (*flags, *forged), texts)
        except RowError as error:
            return error

    def _bounded(self, sample: Sample) -> tuple[Sample, tuple[str, ...]]:
        """Without what no tokenizer could make fit, so that no text costs more than the limit."""
        most, flags = self._limit * self._longest_token, []
        for name in field_names(sample):
            text = field_of(sample, name)
            if len(text) <= most:
                continue
            if self._config.on_overflow == "error" or not name.startswith("answer_"):
                raise RowError(
                    "too-long",
                    f"field {name}: {len(text)} characters, more than {self._limit} tokens hold",
                )
            sample = with_field(sample, name, text[:most])
            flags.append(f"truncated:{name}")
        return sample, tuple(flags)

    def _renders(self, sample: Sample) -> list[list[Piece]]:
        orders = [sample, swapped(sample)] if self._config.swap else [sample]
        return [self._templates.choose(order).render(order) for order in orders]

    def _finish(self, draft: Draft, ids: list[list[int]]) -> list[Prompt] | RowError:
        """The common case passes through; the rest is neutralised, shortened or refused."""
        sample, flags = draft.sample, list(draft.flags)
        try:
            if self._any_special(ids):
                sample, ids = self._neutralise(sample, flags)
            if self._excess(ids) > 0:
                sample, ids = self._shorten(sample, ids, flags)
            if sample is not draft.sample:
                return self._checked_again(sample, ids, flags)
        except RowError as error:
            return error
        return _prompts(ids, flags)

    def _checked_again(
        self, sample: Sample, ids: list[list[int]], flags: list[str]
    ) -> list[Prompt] | RowError:
        """What was broken up or cut may end in a score line, or join to a token, only now."""
        safe, forged = guard(sample, self._config.on_injection)
        flags += forged
        if safe is not sample:
            texts = [_text(pieces) for pieces in self._renders(safe)]
            return self._finish(Draft(safe, tuple(flags), texts), self._ids(safe))
        if self._any_special(ids) and (found := self._special_in(sample)):
            raise RowError("special", f"field {found[0][0]}: spells a control token of the model")
        return _prompts(ids, flags)

    def _any_special(self, ids: list[list[int]]) -> bool:
        return any(self._vocabulary.special.intersection(row[self._n_bos :]) for row in ids)

    @property
    def _n_bos(self) -> int:
        return len(self._vocabulary.bos)

    def _excess(self, ids: list[list[int]]) -> int:
        return max(map(len, ids)) - self._limit

    def _ids(self, sample: Sample) -> list[list[int]]:
        texts = [_text(pieces) for pieces in self._renders(sample)]
        bos = self._vocabulary.bos
        return [[*bos, *encoding.ids] for encoding in self._vocabulary.encode(texts)]

    def _neutralise(self, sample: Sample, flags: list[str]) -> tuple[Sample, list[list[int]]]:
        """Break up user text that became a special or added token."""
        for _ in range(_BREAKS):
            found = self._special_in(sample)
            for field, start, end in reversed(found):
                text = field_of(sample, field)
                # a space inside keeps the text readable; a token of one character can only go
                broken = text[start] + " " + text[start + 1 : end] if end - start > 1 else "\ufffd"
                sample = with_field(sample, field, text[:start] + broken + text[end:])
            flags += [f"special:{field}" for field, _, _ in found]
        flags[:] = dict.fromkeys(flags)
        return sample, self._ids(sample)

    def _special_in(self, sample: Sample) -> list[tuple[str, int, int]]:
        """The special tokens that stem from a field, as (field, start, end) in its text, of the
        first order that has any."""
        for render, order in zip(self._renders(sample), (False, True), strict=False):
            encoding = self._vocabulary.locate(_text(render))
            places = [
                offsets
                for token, offsets in zip(encoding.ids, encoding.offsets, strict=True)
                if token in self._vocabulary.special
            ]
            found = [
                (
                    _original(field, order, len(sample.answers)),
                    max(start - at, 0),
                    min(end, to) - at,
                )
                for field, at, to in _spans(render)
                for start, end in places
                if start < to and end > at
            ]
            if found:
                return found
        return []

    def _shorten(
        self, sample: Sample, ids: list[list[int]], flags: list[str]
    ) -> tuple[Sample, list[list[int]]]:
        """Cut the longer answer's tail first, alike for both orders, until the prompt fits."""
        if self._config.on_overflow == "error":
            raise RowError("too-long", f"{max(map(len, ids))} tokens, the limit is {self._limit}")
        cut = 0
        original = sample
        while (excess := self._excess(ids)) > 0:
            cut += excess
            sample = self._cut_answers(original, cut)
            ids = self._ids(sample)
        for n, (before, after) in enumerate(
            zip(original.answers, sample.answers, strict=True), start=1
        ):
            if before != after:
                flags.append(f"truncated:answer_{n}")
        return sample, ids

    def _cut_answers(self, sample: Sample, cut: int) -> Sample:
        render = self._renders(sample)[0]
        offsets = self._vocabulary.locate(_text(render)).offsets
        spans = [span for span in _spans(render) if span[0].startswith("answer_")]
        starts = [[s for s, _ in offsets if start <= s < end] for _, start, end in spans]
        level = _level([len(tokens) for tokens in starts], cut)
        if level == 0:
            longest = max(("question", "reference"), key=lambda f: len(field_of(sample, f)))
            raise RowError(
                "too-long",
                f"field {longest}: leaves no room for the answers in {self._limit} tokens",
            )
        for (field, start, _), tokens in zip(spans, starts, strict=True):
            if len(tokens) > level:
                kept = field_of(sample, field)[: tokens[level] - start]
                sample = with_field(sample, field, kept)
        return sample


def _prompts(ids: list[list[int]], flags: list[str]) -> list[Prompt]:
    unique = tuple(dict.fromkeys(flags))
    return [Prompt(tuple(row), unique) for row in ids]


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


def _level(sizes: Sequence[int], cut: int) -> int:
    """The length all longer answers are cut to, so that `cut` tokens go; 0 where there is none."""
    target = sum(sizes) - cut
    for level in range(max(sizes, default=0), 0, -1):
        if sum(min(size, level) for size in sizes) <= target:
            return level
    return 0


def _original(field: str, order_swapped: bool, n_answers: int) -> str:
    """The input's name of a field that was seen in the swapped order."""
    if not order_swapped or not field.startswith("answer_"):
        return field
    return f"answer_{n_answers + 1 - int(field.removeprefix('answer_'))}"
