"""The score line: its grammar, its tokens, and its distribution under a model.

A line has few shapes, so it is not decoded but read off: a Walk starts at the prompt's end,
asks for the next-token probabilities after the prefixes that matter, and ends with the joint
distribution over all lines. Everything here is pure; an engine supplies the probabilities.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from jlm_cli.errors import ModelError, RowError
from jlm_cli.records import VERDICTS, Verdict, verdict_of

Floats = NDArray[np.float64]

PRUNE = 1e-4  # prefixes with a smaller share of the valid mass are left out
READ_END = 1e-2  # lines with a smaller share are taken to end as surely as the others do
LOW_MASS = 0.5  # below this, free decoding would rather write something else than a score line
LOW_MASS_WIDTH = 6  # such a row is flagged, and its flat tree followed along so many prefixes
LONG_LINE_WIDTH = (
    16  # of a line of three scores or more, only so many prefixes are followed at once
)
END = -1
_ROOT = 0


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
class Branch:
    """A place within one score's tokens; `value` is set where a score is complete.

    `whole` tells whether a score without a half leads through here.
    """

    children: dict[int, Branch] = field(default_factory=dict)
    value: str | None = None
    whole: bool = False

    def add(self, tokens: Sequence[int], value: str) -> None:
        branch = self
        for token in tokens:
            branch = branch.children.setdefault(token, Branch())
            branch.whole = branch.whole or "." not in value
        branch.value = value

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
    first: Branch
    later: Branch
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
        first, later = Branch(), Branch()
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
        raise ModelError(f"this tokenizer merges {text[-8:]!r} across the start of the score line")
    return ids[len(head) :]


def _ids_in(branch: Branch) -> set[int]:
    ids = set(branch.children)
    return ids.union(*(_ids_in(child) for child in branch.children.values()))


def _path_to(branch: Branch, value: str) -> list[int]:
    for token, child in branch.children.items():
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
    that decoding step by step among valid tokens gives.
    """

    grammar: Grammar
    texts: tuple[tuple[str, ...], ...]
    p: Floats
    mass: float
    greedy: tuple[str, ...]

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
        return tuple(float(mean) for mean in self.p @ self.lines)

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


@dataclass
class Node:
    """A prefix of a score line.

    `known` are the log-probabilities of the columns behind it, once read; `slot` its place among
    the tokens that were fed for this row (-1: not fed).
    """

    token: int
    parent: int
    depth: int
    branch: Branch
    line: tuple[str, ...]
    log_p: float = math.nan
    slot: int = -1
    known: Floats | None = None
    children: dict[int, int] = field(default_factory=dict)


@dataclass(frozen=True)
class DraftToken:
    """A token to be fed: `depth` counts from the prompt's end (1 is the first token behind it);
    `path` are the slots of its ancestors, the nearest last."""

    token: int
    depth: int
    path: tuple[int, ...]


class Walk:
    """The walk of one row: `first_draft` and `read`, then `draft` and `read` in turn until no draft
    is left.

    A row whose probabilities are NaN drafts nothing more; `result` then raises its RowError.
    """

    def __init__(self, tokens: LineTokens, exact: bool = False) -> None:
        """`exact` follows every prefix, however unlikely."""
        self.tokens = tokens
        self._exact = exact
        self._nodes = [Node(END, -1, 0, tokens.first, (), 0.0)]
        self._waiting = [_ROOT]
        self.drafted = 0  # tokens so far
        self._lines: dict[tuple[str, ...], float] = {}  # log-probability, whatever ends them
        self._unread: list[int] = []
        self._failed: RowError | None = None
        self._fresh: list[int] = []

    def first_draft(self) -> list[DraftToken]:
        """The first scores with a whole number, to be fed together with the prompt."""
        self._feed_children(_ROOT, self._whole(self._nodes[_ROOT]))
        return [self._draft_token(place) for place in self._waiting[1:]]

    def read(self, rows: Floats) -> None:
        """`rows` [drafted, columns], in the order of the last draft; those of the first draft
        have the log-probabilities behind the prompt in front."""
        for place, known in zip(self._waiting, rows, strict=True):
            self._learn(place, known)

    def draft(self) -> list[DraftToken]:
        """The prefixes that still matter, and those that likely follow them, to be fed at once."""
        self._waiting = []
        if self._failed is None:
            for place in self._worth_following():
                self._feed(place)
        self._fresh = []
        return [self._draft_token(place) for place in self._waiting]

    def result(self) -> LineDistribution:
        """Raises RowError where the model's probabilities give no line."""
        if self._failed is not None:
            raise self._failed
        lines = self._all_lines()
        log_p = np.array(list(lines.values()))
        total = np.logaddexp.reduce(log_p)
        if not np.isfinite(total):
            raise RowError("no-score", "the model gives every score line probability 0")
        greedy = self._nodes[self._greedy_end()].line
        mass = float(np.exp(total))
        p = np.exp(log_p - total)
        return LineDistribution(self.tokens.grammar, tuple(lines), p, mass, greedy)

    def _all_lines(self) -> dict[tuple[str, ...], float]:
        """The lines as far as they are known; unread ones end as surely as the mean of those read,
        which in a trained judge differ by less than the unread ones weigh."""
        unread = [self._nodes[place] for place in self._unread]
        read = [node for node in self._nodes if node.known is not None and self._only_ends(node)]
        share = 0.0
        if read:
            ended = np.logaddexp.reduce([self._lines[node.line] for node in read])
            share = ended - np.logaddexp.reduce([node.log_p for node in read])
        return {**self._lines, **{node.line: node.log_p + share for node in unread}}

    def _worth_following(self) -> list[int]:
        """Of the prefixes whose probability was learnt last, those that are followed.

        The greedy line always is. Prefixes that are left out once are never taken up again.
        """
        fresh = [place for place in self._fresh if self._nodes[place].slot < 0]
        if self._exact or not fresh:
            return fresh
        log_p = {place: self._nodes[place].log_p for place in fresh}
        most = float(np.logaddexp.reduce([*self._all_lines().values(), *log_p.values()]))
        if most >= math.log(LOW_MASS):
            kept = [place for place in fresh if log_p[place] >= most + self._least(place)]
            if self.tokens.grammar.count > 2:
                kept = sorted(kept, key=log_p.__getitem__, reverse=True)[:LONG_LINE_WIDTH]
            left = set(fresh) - {*kept, self._greedy_end()}
            self._unread += [p for p in fresh if p in left and self._only_ends(self._nodes[p])]
        else:
            whole = [place for place in fresh if self._is_whole(self._nodes[place])]
            kept = sorted(whole, key=log_p.__getitem__, reverse=True)[:LOW_MASS_WIDTH]
        kept.append(self._greedy_end())
        return [place for place in fresh if place in kept]

    def _least(self, place: int) -> float:
        return math.log(READ_END if self._only_ends(self._nodes[place]) else PRUNE)

    def _only_ends(self, node: Node) -> bool:
        """Whether a line is complete and no other score without a half begins with it, as 10 does
        with 1."""
        return self._ends_here(node) and not self._whole(node)

    def _is_whole(self, node: Node) -> bool:
        return node.branch.whole and not any("." in value for value in node.line)

    def _learn(self, place: int, known: Floats) -> None:
        if np.isnan(known).any():
            self._failed = RowError("nan", "the model's probabilities are not numbers (NaN)")
            return
        node = self._nodes[place]
        node.known = known
        for token in self._follow(node):
            if token not in node.children:
                self._add(place, token)
            child = node.children[token]
            self._nodes[child].log_p = node.log_p + float(known[self.tokens.column[token]])
            self._fresh.append(child)
        if self._ends_here(node):
            ended = float(np.logaddexp.reduce(known[self.tokens.end_columns]))
            self._lines[node.line] = node.log_p + ended

    def _follow(self, node: Node) -> dict[int, Branch]:
        """The tokens that may go on from a node, the line's end aside."""
        if node.branch.value is not None and len(node.line) < self.tokens.grammar.count:
            return {**node.branch.children, **self.tokens.later.children}
        return node.branch.children

    def _ends_here(self, node: Node) -> bool:
        return node.branch.value is not None and len(node.line) == self.tokens.grammar.count

    def _add(self, place: int, token: int) -> None:
        node = self._nodes[place]
        inner = node.branch.children.get(token)
        branch = inner if inner is not None else self.tokens.later.children[token]
        # a longer spelling of the score under way replaces its value: 1 becomes 10 or 1.5
        line = node.line[:-1] if inner is not None and node.branch.value is not None else node.line
        if branch.value is not None:
            line = (*line, branch.value)
        node.children[token] = len(self._nodes)
        self._nodes.append(Node(token, place, node.depth + 1, branch, line))

    def _feed(self, place: int) -> None:
        """Take a node into the draft, with what is all but sure to follow it."""
        node = self._nodes[place]
        node.slot = self.drafted
        self.drafted += 1
        self._waiting.append(place)
        begun = node.branch.value is None  # a score that is not complete yet, as 5. is
        likely = self._whole(node) or (list(self._follow(node)) if begun else [])
        if len(likely) <= 2:  # the space before the next score, the 0 of a 10, the 5 of a half
            self._feed_children(place, likely)

    def _feed_children(self, place: int, tokens: Sequence[int]) -> None:
        node = self._nodes[place]
        for token in tokens:
            self._add(place, token)
            self._feed(node.children[token])

    def _whole(self, node: Node) -> list[int]:
        """The tokens of scores without a half that may go on from a node."""
        return [token for token, branch in self._follow(node).items() if branch.whole]

    def _draft_token(self, place: int) -> DraftToken:
        node = self._nodes[place]
        path: list[int] = []
        ancestor = node.parent
        while ancestor != _ROOT:
            path.append(self._nodes[ancestor].slot)
            ancestor = self._nodes[ancestor].parent
        return DraftToken(node.token, node.depth, tuple(reversed(path)))

    def _greedy_end(self) -> int:
        """The last node of the greedy path, as far as it is known."""
        place = _ROOT
        while (known := self._nodes[place].known) is not None:
            node = self._nodes[place]
            best = max(
                (*self._follow(node), *(self.tokens.ends if self._ends_here(node) else ())),
                key=lambda token: known[self.tokens.column[token]],
            )
            if best not in node.children:
                break
            place = node.children[best]
        return place
