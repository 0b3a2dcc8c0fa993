"""What a model reads in a conversation about a judgment."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby, zip_longest

from jlm_cli.encoding import Vocabulary, with_controls
from jlm_cli.errors import RowError

Ids = tuple[int, ...]


@dataclass(frozen=True)
class Opening:
    """What a conversation is about: the judging prompt, and all that the judge wrote behind it.

    `system` is the system prompt of a judging prompt that went through the chat template.
    """

    prompt: str
    judgment: str
    system: str | None = None


@dataclass(frozen=True)
class Turn:
    """A message, and the reply as the model wrote it, without its end."""

    message: str
    reply: Ids


@dataclass(frozen=True)
class Layout:
    """How a conversation becomes token ids.

    `own` gives what the model's chat template writes around a number of messages, behind a system
    prompt or none; without `own` it is the Vicuna manner of the released checkpoints. `context` is
    the room in tokens (None: no limit).
    """

    vocabulary: Vocabulary
    own: Callable[[int, str | None], list[str]] | None
    context: int | None

    def ids(self, opening: Opening, turns: Sequence[Turn], message: str) -> list[int]:
        """The conversation up to where the reply to `message` begins.

        Raises RowError where text of the user's would become a control token.
        """
        write = self._vicuna if self.own is None else self._templated
        ids: list[int] = []
        for is_text, parts in groupby(write(opening, turns, message), lambda p: type(p) is str):
            if is_text:
                begins = self.own is None or not ids  # each stretch does, in Vicuna's manner
                vocabulary = self.vocabulary if begins else self.vocabulary.behind_control()
                ids += _spelled("".join(map(str, parts)), vocabulary)
            else:
                ids += [token for part in parts for token in part if type(token) is int]
        return ids

    def fit(
        self, opening: Opening, turns: Sequence[Turn], message: str, room: int
    ) -> tuple[list[int], int]:
        """The ids, with `room` behind them, and how many of the oldest turns that took away.

        Raises RowError where the message alone is too long.
        """
        for dropped in range(len(turns) + 1):
            ids = self.ids(opening, turns[dropped:], message)
            if self.context is None or len(ids) + room <= self.context:
                return ids, dropped
        over = len(ids) + room - (self.context or 0)
        raise RowError("too-long", f"this message is {over} tokens too long for the model")

    def _vicuna(self, opening: Opening, turns: Sequence[Turn], message: str) -> Iterator[str | Ids]:
        """As released: nothing between the judgment and the first USER."""
        yield self.vocabulary.bos
        yield opening.prompt + opening.judgment
        for turn in turns:
            yield f"USER: {turn.message} ASSISTANT:"
            yield (*turn.reply, *self.vocabulary.ends[:1])
        yield f"USER: {message} ASSISTANT:"

    def _templated(
        self, opening: Opening, turns: Sequence[Turn], message: str
    ) -> Iterator[str | Ids]:
        """The judging prompt is the user's first message, the judgment the model's first."""
        assert self.own is not None
        said: list[str | Ids] = [opening.prompt, opening.judgment]
        said += [part for turn in turns for part in (turn.message, turn.reply)]
        said.append(message)
        for fixed, part in zip_longest(self.own(len(said), opening.system), said, fillvalue=""):
            yield from with_controls(self.vocabulary.tokenizer, str(fixed))
            yield part


def _spelled(text: str, vocabulary: Vocabulary) -> list[int]:
    ids = list(vocabulary.locate(text).ids)
    if vocabulary.special.intersection(ids):
        raise RowError("special", "this text would become a control token of the model")
    return ids
