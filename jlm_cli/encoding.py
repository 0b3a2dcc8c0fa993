"""From a Sample to token ids: fits the context, and keeps user text out of control tokens."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from jlm_cli.config import Config
from jlm_cli.errors import RowError
from jlm_cli.prompts import DEFAULT, DEFAULT_WITH_REFERENCE, Piece, Template, load
from jlm_cli.records import Sample

if TYPE_CHECKING:
    from tokenizers import Encoding, Tokenizer


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

    def speller(self) -> Callable[[int], str]:
        """Takes the ids of a text one by one and gives the text that each adds, maybe none yet."""
        from tokenizers.decoders import DecodeStream

        stream = DecodeStream(skip_special_tokens=True)
        return lambda token: stream.step(self.tokenizer, token) or ""

    def neutralised(self, text: str) -> str:
        """The text, with what would become a control token broken up."""
        while (found := self._special_in(text)) is not None:
            text = _broken(text, *found)
        return text

    def _special_in(self, text: str) -> tuple[int, int] | None:
        encoding = self.locate(text)
        placed = zip(encoding.ids, encoding.offsets, strict=True)
        return next((place for token, place in placed if token in self.special), None)


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


class Encoder:
    """Turns samples into prompts, one for each order that is judged."""

    def __init__(
        self, vocabulary: Vocabulary, templates: Templates, config: Config, line_tokens: int
    ) -> None:
        """`line_tokens` is the room that is kept free for the score line."""
        self._vocabulary = vocabulary
        self._templates = templates
        self._config = config
        room = config.max_length or vocabulary.context
        self._limit = None if room is None else room - line_tokens

    def encode(self, samples: Sequence[Sample]) -> list[list[Prompt] | RowError]:
        """For each sample its prompts (one, or two with `swap`), or why there are none."""
        drafts = [self._draft(sample) for sample in samples]
        texts = [text for draft in drafts if not isinstance(draft, RowError) for text in draft]
        encodings = iter(self._vocabulary.encode(texts))
        prompts: list[list[Prompt] | RowError] = []
        for sample, draft in zip(samples, drafts, strict=True):
            if isinstance(draft, RowError):
                prompts.append(draft)
                continue
            ids = [[*self._vocabulary.bos, *next(encodings).ids] for _ in draft]
            prompts.append(self._finish(sample, ids))
        return prompts

    def _draft(self, sample: Sample) -> list[str] | RowError:
        try:
            return [_text(pieces) for pieces in self._renders(sample)]
        except RowError as error:
            return error

    def _renders(self, sample: Sample) -> list[list[Piece]]:
        orders = [sample, swapped(sample)] if self._config.swap else [sample]
        return [self._templates.choose(order).render(order) for order in orders]

    def _finish(self, sample: Sample, ids: list[list[int]]) -> list[Prompt] | RowError:
        """The common case passes through; the rest is neutralised, shortened or refused."""
        flags: list[str] = []
        try:
            _, ids = self._fit(sample, ids, flags)
        except RowError as error:
            return error
        return [Prompt(tuple(row), tuple(flags)) for row in ids]

    def text(self, sample: Sample) -> tuple[str, tuple[str, ...]]:
        """The prompt of the order as given, as text, and the flags of what was done to make it
        fit. Raises RowError."""
        flags: list[str] = []
        sample, _ = self._fit(sample, self._ids(sample), flags)
        return _text(self._renders(sample)[0]), tuple(flags)

    def _fit(
        self, sample: Sample, ids: list[list[int]], flags: list[str]
    ) -> tuple[Sample, list[list[int]]]:
        """The sample as its prompts hold it, and their ids."""
        if any(self._vocabulary.special.intersection(row[self._n_bos :]) for row in ids):
            sample, ids = self._neutralise(sample, flags)
        if self._excess(ids) > 0:
            sample, ids = self._shorten(sample, ids, flags)
        return sample, ids

    @property
    def _n_bos(self) -> int:
        return len(self._vocabulary.bos)

    def _excess(self, ids: list[list[int]]) -> int:
        return 0 if self._limit is None else max(map(len, ids)) - self._limit

    def _ids(self, sample: Sample) -> list[list[int]]:
        texts = [_text(pieces) for pieces in self._renders(sample)]
        bos = self._vocabulary.bos
        return [[*bos, *encoding.ids] for encoding in self._vocabulary.encode(texts)]

    def _neutralise(self, sample: Sample, flags: list[str]) -> tuple[Sample, list[list[int]]]:
        """Break up user text that became a special or added token, until none is left."""
        while (found := self._special_in(sample)) is not None:
            field, start, end = found
            broken = _broken(_field_of(sample, field), start, end)
            sample = _with_field(sample, field, broken)
            flags.append(f"special:{field}")
        flags[:] = dict.fromkeys(flags)
        return sample, self._ids(sample)

    def _special_in(self, sample: Sample) -> tuple[str, int, int] | None:
        """The first special token that stems from a field, as (field, start, end) in its text."""
        for render, order in zip(self._renders(sample), (False, True), strict=False):
            encoding = self._vocabulary.locate(_text(render))
            for token, (start, end) in zip(encoding.ids, encoding.offsets, strict=True):
                if token not in self._vocabulary.special:
                    continue
                for field, field_start, field_end in _spans(render):
                    if field_start <= start < field_end:
                        name = _original(field, order, len(sample.answers))
                        return name, start - field_start, min(end, field_end) - field_start
        return None

    def _shorten(
        self, sample: Sample, ids: list[list[int]], flags: list[str]
    ) -> tuple[Sample, list[list[int]]]:
        """Cut the longer answer's tail first, alike for both orders, until the prompt fits."""
        assert self._limit is not None
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
            longest = max(("question", "reference"), key=lambda f: len(_field_of(sample, f)))
            raise RowError(
                "too-long",
                f"field {longest}: leaves no room for the answers in {self._limit} tokens",
            )
        for (field, start, _), tokens in zip(spans, starts, strict=True):
            if len(tokens) > level:
                kept = _field_of(sample, field)[: tokens[level] - start]
                sample = _with_field(sample, field, kept)
        return sample


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


def _field_of(sample: Sample, field: str) -> str:
    if field.startswith("answer_"):
        return sample.answers[int(field.removeprefix("answer_")) - 1]
    return sample.question if field == "question" else sample.reference or ""


def _with_field(sample: Sample, field: str, text: str) -> Sample:
    if field == "question":
        return replace(sample, question=text)
    if field == "reference":
        return replace(sample, reference=text)
    answers = list(sample.answers)
    answers[int(field.removeprefix("answer_")) - 1] = text
    return replace(sample, answers=tuple(answers))
