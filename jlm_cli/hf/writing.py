"""Text written by transformers models: reasons a batch at a time, and a chat token by token."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from transformers import Cache, DynamicCache, GenerationConfig, PreTrainedModel
from transformers.cache_utils import DynamicLayer
from transformers.generation.streamers import BaseStreamer

from jlm_cli.encoding import Vocabulary
from jlm_cli.engine import Ids, Written, Wrote
from jlm_cli.hf.attention import computing
from jlm_cli.hf.memory import within_memory
from jlm_cli.hf.packing import shared_start
from jlm_cli.hf.rotary import ordinary_up_to


class _Heard(BaseStreamer):
    """Tells of the tokens that `generate` writes, a batch at a time; the prompts come first."""

    def __init__(self, wrote: Wrote) -> None:
        self._wrote = wrote
        self._begun = False

    def put(self, value: torch.Tensor) -> None:
        if self._begun:
            self._wrote(value.numel())
        self._begun = True

    def end(self) -> None:
        pass


class Writer:
    """A model that writes: the likeliest tokens, or in a stream samples too."""

    goes_on = True  # from keys and values of what it has read

    def __init__(self, model: PreTrainedModel, vocabulary: Vocabulary) -> None:
        self.model = model.eval()  # type: ignore[no-untyped-call]
        self.vocabulary = vocabulary
        self.device = model.device
        self._read: tuple[list[int], Cache] | None = None
        self.up_to = ordinary_up_to(model)
        self.pads = True  # else it would heed what fills up shorter rows

    def may_begin(self) -> bool:
        return True

    def forget(self) -> None:
        """Give back the memory kept from batch to batch, and between replies."""
        self._read = None
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    def write(self, prompts: Sequence[Ids], limits: Sequence[int], wrote: Wrote) -> list[Written]:
        if self.pads or len({*map(len, prompts)}) == 1:
            return self._write(prompts, limits, wrote)
        each = zip(prompts, limits, strict=True)
        return [self._write([prompt], [limit], wrote)[0] for prompt, limit in each]

    @within_memory
    def _write(self, prompts: Sequence[Ids], limits: Sequence[int], wrote: Wrote) -> list[Written]:
        longest = max(map(len, prompts))
        pad = self.vocabulary.ends[0] if self.vocabulary.ends else 0
        ids = torch.tensor([[pad] * (longest - len(p)) + list(p) for p in prompts])
        seen = torch.tensor([[0] * (longest - len(p)) + [1] * len(p) for p in prompts])
        greedy = GenerationConfig(  # type: ignore[no-untyped-call]
            do_sample=False,
            max_new_tokens=max(limits),
            eos_token_id=list(self.vocabulary.ends) or None,
            pad_token_id=pad,
        )
        with computing(), _settings_aside(self.model):
            out = self.model.generate(
                ids.to(self.device),
                attention_mask=seen.to(self.device),
                generation_config=greedy,
                streamer=_Heard(wrote),
            )
        rows = out[:, longest:].tolist()
        return [self._written(row, limit) for row, limit in zip(rows, limits, strict=True)]

    def _written(self, ids: list[int], limit: int) -> Written:
        end = next((n for n, token in enumerate(ids) if token in self.vocabulary.ends), None)
        length = min(len(ids) if end is None else end, limit)
        text, cut = self.vocabulary.decode(ids[:length]), end is None or end >= limit
        return Written(text.rstrip(_BROKEN) if cut else text, cut, ids[:length])

    def stream(self, prompt: Ids, limit: int, draw: int = 0) -> Iterator[int]:
        ids = list(prompt)
        seed = torch.Generator(self.device).manual_seed(draw) if draw else None
        for _ in range(limit):
            token = _pick(self._behind_last(ids), seed)
            if token in self.vocabulary.ends:
                return
            yield token
            ids.append(token)

    @within_memory
    def _behind_last(self, ids: list[int]) -> torch.Tensor:
        """Logits behind the last id, [vocabulary]; what was read before is not read again."""
        start, cache = _known(self._read, ids)
        if start <= self.up_to < len(ids):  # keys were turned otherwise up to there
            start, cache = 0, None
        self._read = None  # an interrupt must not leave half of a step's keys and values
        with computing():
            out = self.model(
                torch.tensor([ids[start:]], device=self.device),
                past_key_values=cache,
                use_cache=True,
                logits_to_keep=1,
            )
        if self.goes_on and out.get("past_key_values") is not None:
            self._read = list(ids), out.past_key_values
        logits: torch.Tensor = out.logits[0, -1].float()
        return logits


@contextmanager
def _settings_aside(model: PreTrainedModel) -> Iterator[None]:
    """Those of its folder (penalties, beams) would fill up those that are asked for."""
    own = model.generation_config
    model.generation_config = GenerationConfig()  # type: ignore[no-untyped-call]
    try:
        yield
    finally:
        model.generation_config = own


def _known(read: tuple[list[int], Cache] | None, ids: list[int]) -> tuple[int, Cache | None]:
    """How many of the ids have keys and values already, with these; other ones are cut off."""
    if read is None:
        return 0, None
    before, cache = read
    shared = shared_start(before, ids)
    if shared == len(before):
        return shared, cache
    plain = type(cache) is DynamicCache and all(type(one) is DynamicLayer for one in cache.layers)
    if shared == 0 or not plain:
        return 0, None
    cache.crop(shared - len(before))
    return shared, cache


_BROKEN = "\N{REPLACEMENT CHARACTER}"  # what a character is cut into
_TEMPERATURE = 0.7
_LEAST_SHARE = 0.05  # of the likeliest token's probability; less likely ones are never sampled


def _pick(logits: torch.Tensor, seed: torch.Generator | None) -> int:
    """The likeliest token, or a sample."""
    if seed is None:
        return int(logits.argmax())
    p = (logits / _TEMPERATURE).softmax(-1)
    return int(torch.multinomial(p * (p >= _LEAST_SHARE * p.max()), 1, generator=seed))
