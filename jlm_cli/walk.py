"""The way through the trie of score lines, one for each row: a beam search with pruning.

A Walk starts at the prompt's end, asks for the next-token probabilities after the prefixes that
matter, and ends with the joint distribution over all lines. Everything here is pure; an engine
supplies the probabilities.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from jlm_cli.errors import RowError
from jlm_cli.scoreline import LOW_MASS, Floats, LineDistribution, LineTokens, TrieNode

PRUNE = 1e-4  # prefixes with a smaller share of the valid mass are left out
READ_END = 1e-2  # lines with a smaller share are taken to end as surely as the others do
LOW_MASS_BEAM = 6  # such a row is flagged, and its flat trie followed along so many prefixes
BEAM_WIDTH = 16  # prefixes followed at once, of a line of three scores or more
END = -1
_ROOT = 0


@dataclass
class Prefix:
    """A prefix of a score line.

    `known` are the log-probabilities of the columns behind it, once read; `slot` its place among
    the tokens that were fed for this row (-1: not fed). `weight` is the log of how much more than
    itself it stands for: for prefixes of a long line that were left out beside it.
    """

    token: int
    parent: int
    depth: int
    trie: TrieNode
    line: tuple[str, ...]
    log_p: float = math.nan
    weight: float = 0.0
    slot: int = -1
    known: Floats | None = None
    children: dict[int, int] = field(default_factory=dict)

    @property
    def share(self) -> float:
        return self.log_p + self.weight


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
        self._nodes = [Prefix(END, -1, 0, tokens.first, (), 0.0)]
        self._waiting = [_ROOT]
        self.drafted = 0  # tokens so far
        self._lines: dict[tuple[str, ...], float] = {}  # log-probability, whatever ends them
        self._weights: dict[tuple[str, ...], float] = {}  # of their nodes
        self._unread: list[int] = []
        self._left_out: list[int] = []  # of a long line
        self._failed: RowError | None = None
        self._fresh: list[int] = []

    def first_draft(self) -> list[DraftToken]:
        """The first scores with a whole number, to be fed together with the prompt."""
        self._feed_children(_ROOT, self._integer_tokens(self._nodes[_ROOT]))
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
        mass = float(np.exp(np.logaddexp.reduce(self._shares_of_lines())))
        p = np.exp(log_p - total)
        prefixes = {line: math.exp(log_p - total) for line, log_p in self._prefixes().items()}
        return LineDistribution(self.tokens.grammar, tuple(lines), p, mass, greedy, prefixes)

    def _all_lines(self) -> dict[tuple[str, ...], float]:
        """The lines as far as they are known; unread ones end as surely as the mean of those read,
        which in a trained judge differ by less than the unread ones weigh."""
        unread = [self._nodes[place] for place in self._unread]
        read = [node for node in self._nodes if node.known is not None and self._is_settled(node)]
        share = 0.0
        if read:
            ended = np.logaddexp.reduce([self._lines[node.line] for node in read])
            share = ended - np.logaddexp.reduce([node.log_p for node in read])
        return {**self._lines, **{node.line: node.log_p + share for node in unread}}

    def _shares_of_lines(self) -> list[float]:
        lines = self._all_lines()
        if not self._left_out:
            return list(lines.values())
        return [log_p + self._weights[line] for line, log_p in lines.items()]

    def _prefixes(self) -> dict[tuple[str, ...], float]:
        """The log-probabilities of the scores that were left out, with those before them."""
        found: dict[tuple[str, ...], float] = {}
        for node in (self._nodes[place] for place in self._left_out):
            for line, share in self._meant(node).items():
                log_p = node.log_p + math.log(max(share, 1e-9))
                found[line] = float(np.logaddexp(found.get(line, -math.inf), log_p))
        return found

    def _meant(self, node: Prefix) -> dict[tuple[str, ...], float]:
        """What scores up to a node turn out to be: a 1 becomes a 10 as often as it did where it was
        read; nothing is known of it where it never was."""
        longer = {
            token: trie.value
            for token, trie in node.trie.children.items()
            if node.trie.value is not None and trie.has_integer and trie.value is not None
        }
        if not longer:
            return {node.line: 1.0}
        read = [one for one in self._nodes if one.trie is node.trie and one.known is not None]
        if not (total := sum(math.exp(one.log_p) for one in read)):
            return {}
        shares = {
            (*node.line[:-1], value): sum(
                math.exp(self._nodes[one.children[token]].log_p) / total for one in read
            )
            for token, value in longer.items()
        }
        return {**shares, node.line: 1 - sum(shares.values())}

    def _worth_following(self) -> list[int]:
        """Of the prefixes whose probability was learnt last, those that are followed.

        The greedy line always is. Prefixes that are left out once are never taken up again.
        """
        fresh = [place for place in self._fresh if self._nodes[place].slot < 0]
        if self._exact or not fresh:
            return fresh
        share = {place: self._nodes[place].share for place in fresh}
        most = float(np.logaddexp.reduce([*self._shares_of_lines(), *share.values()]))
        if most < math.log(LOW_MASS):
            whole = [place for place in fresh if self._is_integer(self._nodes[place])]
            kept = sorted(whole, key=share.__getitem__, reverse=True)[:LOW_MASS_BEAM]
            return self._in_order(fresh, kept)
        kept = [place for place in fresh if share[place] >= most + self._least(place)]
        is_long = self.tokens.grammar.count > 2
        if is_long:
            kept = sorted(kept, key=share.__getitem__, reverse=True)[:BEAM_WIDTH]
        followed = self._in_order(fresh, kept)
        left = set(fresh).difference(followed)
        unread = [p for p in fresh if p in left and self._is_settled(self._nodes[p])]
        self._unread += unread
        self._weights |= {self._nodes[p].line: self._nodes[p].weight for p in unread}
        if is_long:
            self._leave_out(followed, sorted(left.difference(unread)))
        return followed

    def _in_order(self, fresh: Sequence[int], kept: Sequence[int]) -> list[int]:
        chosen = {*kept, self._greedy_end()}
        return [place for place in fresh if place in chosen]

    def _leave_out(self, followed: Sequence[int], left: Sequence[int]) -> None:
        """Those that are followed stand for the others, which end in a line as often as they do."""
        self._left_out += left
        if not (followed and left):
            return
        mine, others = ([self._nodes[p].share for p in some] for some in (followed, left))
        more = np.logaddexp.reduce([*mine, *others]) - np.logaddexp.reduce(mine)
        for place in followed:
            self._nodes[place].weight += float(more)

    def _least(self, place: int) -> float:
        return math.log(READ_END if self._is_settled(self._nodes[place]) else PRUNE)

    def _is_settled(self, node: Prefix) -> bool:
        """Whether a line is complete and no other score without a half begins with it, as 10 does
        with 1."""
        return self._is_complete(node) and not self._integer_tokens(node)

    def _is_integer(self, node: Prefix) -> bool:
        return node.trie.has_integer and not any("." in value for value in node.line)

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
            self._nodes[child].weight = node.weight
            self._fresh.append(child)
        if self._is_complete(node):
            ended = float(np.logaddexp.reduce(known[self.tokens.end_columns]))
            self._lines[node.line] = node.log_p + ended
            self._weights[node.line] = node.weight

    def _follow(self, node: Prefix) -> dict[int, TrieNode]:
        """The tokens that may go on from a node, the line's end aside."""
        if node.trie.value is not None and len(node.line) < self.tokens.grammar.count:
            return {**node.trie.children, **self.tokens.later.children}
        return node.trie.children

    def _is_complete(self, node: Prefix) -> bool:
        return node.trie.value is not None and len(node.line) == self.tokens.grammar.count

    def _add(self, place: int, token: int) -> None:
        node = self._nodes[place]
        inner = node.trie.children.get(token)
        trie = inner if inner is not None else self.tokens.later.children[token]
        # a longer spelling of the score under way replaces its value: 1 becomes 10 or 1.5
        line = node.line[:-1] if inner is not None and node.trie.value is not None else node.line
        if trie.value is not None:
            line = (*line, trie.value)
        node.children[token] = len(self._nodes)
        self._nodes.append(Prefix(token, place, node.depth + 1, trie, line))

    def _feed(self, place: int) -> None:
        """Take a node into the draft, with what is all but sure to follow it."""
        node = self._nodes[place]
        node.slot = self.drafted
        self.drafted += 1
        self._waiting.append(place)
        begun = node.trie.value is None  # a score that is not complete yet, as 5. is
        likely = self._integer_tokens(node) or (list(self._follow(node)) if begun else [])
        within = [token in node.trie.children for token in likely]
        # the space before the next score, the 0 of a 10, the 5 of a half; no choice of scores
        if within in ([True], [False], [True, False], [False, True]):
            self._feed_children(place, likely)

    def _feed_children(self, place: int, tokens: Sequence[int]) -> None:
        node = self._nodes[place]
        for token in tokens:
            self._add(place, token)
            self._feed(node.children[token])

    def _integer_tokens(self, node: Prefix) -> list[int]:
        """The tokens of scores without a half that may go on from a node."""
        return [token for token, trie in self._follow(node).items() if trie.has_integer]

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
                (*self._follow(node), *(self.tokens.ends if self._is_complete(node) else ())),
                key=lambda token: known[self.tokens.column[token]],
            )
            if best not in node.children:
                break
            place = node.children[best]
        return place
