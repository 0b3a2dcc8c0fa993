"""The score line: its grammar, its tokens, and its distribution under a model.

A line has few shapes, so it is not decoded but read off (walk.py).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from jlm_cli.errors import ModelError
from jlm_cli.records import VERDICTS, Verdict, verdict_of

Floats = NDArray[np.float64]

LOW_MASS = 0.5  # below this, free decoding would rather write something else than a score line

SCORES = (*map(str, range(1, 11)), *(f"{whole}.5" for whole in range(1, 10)))


@dataclass(frozen=True)
class Grammar:
    """`count` values with single spaces between, by default scores from 1 to 10, halves allowed.

    `lead` stands between the prompt and the first value. A judge that writes no scores but which
    answer won has one of `values` a line, and `verdicts` tells what each of them means.
    """

    count: int = 2
    lead: str = ""
    values: tuple[str, ...] = SCORES
    verdicts: tuple[Verdict, ...] | None = None


@dataclass
class TrieNode:
    """A place in the trie of one score's tokens; `value` is set where a score is complete.

    `has_integer` tells whether a score without a half leads through here.
    """

    children: dict[int, TrieNode] = field(default_factory=dict)
    value: str | None = None
    has_integer: bool = False

    def add(self, tokens: Sequence[int], value: str) -> None:
        node = self
        for token in tokens:
            node = node.children.setdefault(token, TrieNode())
            node.has_integer = node.has_integer or "." not in value
        node.value = value

    @property
    def depth(self) -> int:
        return 1 + max((child.depth for child in self.children.values()), default=-1)


@dataclass(frozen=True)
class LineTokens:
    """A grammar in a tokenizer's ids.

    `first` and `later` hold the tokens of the first and of each further score (with the space
    before it); `ends` are the tokens that end a line. `columns` lists every id that can occur,
    in the order in which engines give their log-probabilities.
    """

    grammar: Grammar
    first: TrieNode
    later: TrieNode
    ends: tuple[int, ...]
    columns: tuple[int, ...]
    column: dict[int, int]

    @cached_property
    def longest(self) -> int:
        """Tokens of the longest line, its end included."""
        return self.first.depth + (self.grammar.count - 1) * self.later.depth + 1

    @cached_property
    def end_columns(self) -> list[int]:
        return [self.column[end] for end in self.ends]

    @classmethod
    def build(
        cls, grammar: Grammar, tail: str, encode: Callable[[str], list[int]], ends: Sequence[int]
    ) -> LineTokens:
        """Tokens of the lines that follow a prompt ending in `tail`.

        Raises ModelError where the tokenizer merges a score with the text before it.
        """
        start = tail + grammar.lead
        first, later = TrieNode(), TrieNode()
        one = grammar.values[0]
        for value in grammar.values:
            first.add(_after(tail, f"{start}{value}", encode), value)
            later.add(_after(f"{start}{one}", f"{start}{one} {value}", encode), value)
        used = _ids_in(first) | _ids_in(later)
        columns = (*sorted(used), *(end for end in sorted(set(ends)) if end not in used))
        column = {token: place for place, token in enumerate(columns)}
        tokens = cls(grammar, first, later, tuple(sorted(set(ends))), columns, column)
        tokens._check(tail, start, encode)
        return tokens

    def spell(self, line: Sequence[str]) -> list[int]:
        """The ids of a line of scores, without its end."""
        ids: list[int] = []
        for place, value in enumerate(line):
            ids += _path_to(self.first if place == 0 else self.later, value)
        return ids

    def _check(self, tail: str, start: str, encode: Callable[[str], list[int]]) -> None:
        for value in self.grammar.values:
            line = [value] * self.grammar.count
            text = start + " ".join(line)
            if encode(tail) + self.spell(line) != encode(text):
                raise ModelError(f"this tokenizer does not spell {text[-12:]!r} score by score")
        if set(self.ends) & (_ids_in(self.first) | _ids_in(self.later)):
            raise ModelError("this tokenizer has a token that both is and ends a score")


def _after(before: str, text: str, encode: Callable[[str], list[int]]) -> list[int]:
    head, ids = encode(before), encode(text)
    if ids[: len(head)] != head:
        raise ModelError(f"this tokenizer merges {text[-8:]!r} across the start of a score")
    return ids[len(head) :]


def _ids_in(node: TrieNode) -> set[int]:
    ids = set(node.children)
    return ids.union(*(_ids_in(child) for child in node.children.values()))


def _path_to(node: TrieNode, value: str) -> list[int]:
    for token, child in node.children.items():
        if child.value == value:
            return [token]
        if rest := _path_to(child, value):
            return [token, *rest]
    return []


@dataclass(frozen=True)
class LineDistribution:
    """What a model thinks of all lines at once.

    `texts` [L] are the lines, each a tuple of values, with probabilities `p` [L], normalised
    over valid lines. `mass` is the probability of writing a valid line at all; `greedy` the line
    that decoding step by step among valid tokens gives. Of long lines, `prefixes` are the first
    scores of those that were left out, with their probabilities beside those of the lines.
    """

    grammar: Grammar
    texts: tuple[tuple[str, ...], ...]
    p: Floats
    mass: float
    greedy: tuple[str, ...]
    prefixes: Mapping[tuple[str, ...], float] = field(default_factory=dict)

    @property
    def lines(self) -> Floats:
        """[L, N]: the scores of each line. Only where the judge writes scores."""
        return np.array([[float(value) for value in line] for line in self.texts])

    @property
    def scores(self) -> tuple[float, ...] | None:
        """Of the greedy line; None where the judge writes verdicts."""
        if self.grammar.verdicts is not None:
            return None
        return tuple(float(value) for value in self.greedy)

    @property
    def text(self) -> str:
        return " ".join(self.greedy)

    def expected(self) -> tuple[float, ...] | None:
        """The mean score of each answer; None where the judge writes verdicts."""
        if self.grammar.verdicts is not None:
            return None
        if not self.prefixes:
            return tuple(float(mean) for mean in self.p @ self.lines)
        known = [*zip(self.texts, self.p, strict=True), *self.prefixes.items()]
        return tuple(_mean_at(place, known) for place in range(self.grammar.count))

    def verdict(self) -> Verdict:
        """Of the greedy line, over two answers."""
        return self._verdict_of(self.greedy)

    def outcome(self) -> tuple[float, float, float]:
        """Probabilities that the first of two answers wins, that the second does, and of a tie."""
        said = np.array([VERDICTS.index(self._verdict_of(line)) for line in self.texts])
        first, second, tie = (float(self.p[said == place].sum()) for place in range(3))
        return first, second, tie

    def _verdict_of(self, line: tuple[str, ...]) -> Verdict:
        if self.grammar.verdicts is not None:
            return self.grammar.verdicts[self.grammar.values.index(line[0])]
        return verdict_of(tuple(float(value) for value in line))


def _mean_at(place: int, known: Sequence[tuple[tuple[str, ...], float]]) -> float:
    """The mean score at a place of lines and of prefixes that reach it."""
    there = [(float(line[place]), p) for line, p in known if len(line) > place]
    return float(sum(score * p for score, p in there) / sum(p for _, p in there))
