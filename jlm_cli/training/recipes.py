"""How to train: recipes, and the one that fits a base and its data."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any, Literal

Named = Literal["auto", "paper"]
Freeze = Literal["none", "embeddings"]
RateSchedule = Literal["cosine", "linear", "constant"]

_SMALL = 1_000_000_000  # weights of a base that is trained whole by default
_SHOWN_AT_LEAST = 640  # samples a small base must see before it tells answers apart at all


@dataclass(frozen=True)
class Recipe:
    """The settings of training that change what is learnt.

    `batch` counts samples for one step of all processes together; `warmup` is a share of all
    steps; `lora` the rank of adapters, 0 for all weights; `max_length` in tokens, None for all
    the base can read; `freeze_layers` says how many of the first layers stay as they are, and
    `line_weight` how much more a token of the score line counts than one of the reason, which has
    many more tokens.
    """

    learning_rate: float = 2e-5
    schedule: RateSchedule = "cosine"
    warmup: float = 0.03
    batch: int = 128
    epochs: int = 3
    max_length: int | None = 2048
    lora: int = 0
    freeze: Freeze = "none"
    freeze_layers: int = 0
    weight_decay: float = 0.0
    clip: float = 1.0
    line_weight: float = 1.0
    gradient_checkpointing: bool = False

    def json(self) -> dict[str, Any]:
        return asdict(self)


# Table 8 of the paper, as are all other defaults; AdamW's betas and epsilon are torch's own
PAPER = Recipe(warmup=0.003, gradient_checkpointing=True)


def fitting(n_weights: int, n_samples: int) -> Recipe:
    """What suits a base of so many weights and so many training samples.

    A small base is trained whole but for its embeddings, in many small steps; a large one by
    adapters, in batches that a single GPU takes piece by piece.
    """
    if n_weights < _SMALL:
        epochs = max(2, min(40, math.ceil(_SHOWN_AT_LEAST / max(n_samples, 1))))
        return Recipe(
            learning_rate=2e-4,
            batch=4,
            epochs=epochs,
            freeze="embeddings",
            max_length=None,
            line_weight=8.0,
        )
    return Recipe(learning_rate=2e-4, batch=32, epochs=3, lora=16, gradient_checkpointing=True)


def by_name(name: Named, n_weights: int, n_samples: int) -> Recipe:
    return PAPER if name == "paper" else fitting(n_weights, n_samples)
