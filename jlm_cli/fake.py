"""A model for tests of everything around one, `-m fake`: its tokens are bytes, its scores depend on
nothing but those of the prompt, and it needs no weights."""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Iterator, Sequence

import numpy as np

from jlm_cli.encoding import ChatWrap, Vocabulary
from jlm_cli.engine import Batch, Ids, LineDraft, ReadAtOnce, Written, Wrote
from jlm_cli.scoreline import Floats

_ECHO = 60  # bytes of a prompt that a reply repeats


class FakeEngine:
    """Each token of a score line has probability 0.95.

    `JLM_FAKE_DELAY` is how many seconds it takes over each batch, that a test can reach into a run.
    """

    at_once = 1

    def __init__(self) -> None:
        self._delay = float(os.environ.get("JLM_FAKE_DELAY", "0"))

    def begin(
        self, prompts: Sequence[Ids], drafts: Sequence[LineDraft], columns: Sequence[int]
    ) -> Batch:
        time.sleep(self._delay)
        seeds = [_digest(bytes(prompt)) for prompt in prompts]

        def behind(row: int, paths: Sequence[Ids]) -> Floats:
            return np.vstack([_fake_behind(bytes(path), seeds[row], columns) for path in paths])

        return ReadAtOnce(drafts, len(columns), behind)

    def may_begin(self) -> bool:
        return True

    def forget(self) -> None:
        pass

    def write(self, prompts: Sequence[Ids], limits: Sequence[int], wrote: Wrote) -> list[Written]:
        texts = [f"\nFake reason {_digest(bytes(prompt)).hex()}." for prompt in prompts]
        wrote(sum(map(min, map(len, texts), limits)))
        return [
            Written(text[:limit], len(text) > limit)
            for text, limit in zip(texts, limits, strict=True)
        ]

    def stream(self, prompt: Ids, limit: int, draw: int = 0) -> Iterator[int]:
        """A reply that repeats the end of its prompt."""
        seed = _digest(str((list(prompt), draw)).encode())
        end = bytes(token for token in prompt if token < 256)[-_ECHO:]
        reply = f" Fake reply {seed.hex()} behind: ".encode() + end
        for token in reply[:limit]:
            time.sleep(self._delay)
            yield token


def _fake_behind(path: bytes, seed: bytes, columns: Sequence[int]) -> Floats:
    """Log-probabilities of the columns behind the prompt and a path of a score line."""
    wanted = _fake_next(path.decode("latin-1").lstrip(), seed)
    likely = np.array([chr(column) in wanted for column in columns])
    weights = np.where(likely, 0.95, 0.05 / 300)
    if not likely.any():  # a line of words instead of scores
        weights = np.full(len(likely), 0.95 / len(likely))
    log_p: Floats = np.log(weights)
    return log_p


def _fake_next(path: str, seed: bytes) -> str:
    """The characters that may come next in the endless line of scores that a seed stands for.

    Behind a score both a space and the line's end may: only one of them can, by the grammar.
    """
    scores = [str(1 + seed[n % len(seed)] % 10) for n in range(path.count(" ") + 1)]
    line = " ".join(scores)
    if not line.startswith(path) or line == path:
        return " \n"
    return line[len(path)] + (" " if not path else "")  # a space may lead the line


def _digest(data: bytes) -> bytes:
    return hashlib.blake2b(data, digest_size=8).digest()


def fake_vocabulary() -> Vocabulary:
    """Bytes, spelled as byte-level tokenizers spell them; id 256 ends a text."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    ids = {chr(byte): byte for byte in printable}
    ids |= {chr(256 + place): byte for place, byte in enumerate(others)}
    tokenizer = Tokenizer(models.BPE(vocab={**ids, "<end>": 256}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    behind = "\nJudge:"

    def wrap(system: str) -> ChatWrap:
        return ChatWrap((), f"{system}\nUser: ", behind, (), behind)

    line_ends = (ord("\n"), 256)
    return Vocabulary(tokenizer, (), (256,), line_ends, frozenset({256}), None, wrap)
