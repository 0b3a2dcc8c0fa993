"""How strong models are that were ranked against one another: win rates, Bradley-Terry."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from jlm_cli.intervals import Codes, Counts, Metric, n_resamples, share_interval
from jlm_cli.metrics import number, ratio
from jlm_cli.records import Json

_ROUNDS, _SETTLED, _MOST_STEP = 100, 1e-9, 2.0  # of Newton's method for Bradley-Terry
_PRIOR = 0.5  # a win and a loss that nobody saw, so that no strength is infinite


@dataclass(frozen=True)
class Wins:
    """Wins of M models over each other, by kind of ranking: `times` [K] each occurred, and in the
    one of `row` [E] a `pair` [E] of models (the winner times M, plus the loser) `won` so much."""

    n_models: int
    times: Counts
    row: Codes
    pair: Codes
    won: Counts

    def of(self, times: Codes) -> Counts:
        """Wins of model over model [M, M] where the kinds occur so many times [K]."""
        size = self.n_models**2
        wins = np.bincount(self.pair, self.won * times[self.row], size).astype(float)
        return wins.reshape(self.n_models, self.n_models)


def bradley_terry(met: NDArray[np.bool_]) -> Metric:
    """Log strengths [..., M] from wins [..., M, M] of row over column, where `met` [M, M] says who
    met whom at all; ties are half a win each.

    The most likely ones, by Newton's method, under a weak prior: each two that met have one more
    win and one more loss, halved, so that a model that a resample leaves out keeps a strength. The
    mean is 0 within each group of models that met.
    """
    group = groups_of(met)
    mean = (group[:, None] == group) / (group[:, None] == group).sum(1, keepdims=True)

    def measure(wins: Counts) -> Counts:
        wins = wins + _PRIOR * met
        games = wins + np.swapaxes(wins, -1, -2)
        strength = np.zeros(wins.shape[:-1])
        for _ in range(_ROUNDS):
            beats = 1 / (1 + np.exp(strength[..., None, :] - strength[..., :, None]))
            slope = (wins - games * beats).sum(-1)
            weight = games * beats * (1 - beats)
            bend = np.eye(len(met)) * weight.sum(-1)[..., None] - weight + mean
            step = np.linalg.solve(bend, slope[..., None])[..., 0]
            strength = strength + np.clip(step, -_MOST_STEP, _MOST_STEP)
            if np.abs(step).max() < _SETTLED:
                break
        return np.asarray(strength - strength @ mean.T)

    return measure


def met_in(wins: Counts) -> NDArray[np.bool_]:
    met: NDArray[np.bool_] = wins + wins.T > 0
    return met


def groups_of(met: NDArray[np.bool_]) -> Codes:
    """The group of each model [M], named by its first: models that met, and those that these met,
    and so on."""
    reached = met | np.eye(len(met), dtype=bool)
    for _ in range(len(met).bit_length()):
        reached = reached @ reached
    first: Codes = reached.argmax(1)
    return first


def win_rates(wins: Wins) -> list[Json]:
    """Of each model over all that it met, ties as halves; a ranking is one observation."""
    return [_win_rate(wins, model) for model in range(wins.n_models)]


def _win_rate(wins: Wins, model: int) -> Json:
    mine, kinds = wins.pair // wins.n_models == model, len(wins.times)
    won = np.bincount(wins.row[mine], wins.won[mine], kinds)
    met = np.bincount(wins.row[mine], minlength=kinds)
    rate = ratio((won * wins.times).sum(), (met * wins.times).sum())
    ends = share_interval(won, met, wins.times * (met > 0))
    return {"value": number(rate), "ci95": [number(end) for end in ends]}


def strengths_of(wins: Wins) -> list[Json]:
    """Bradley-Terry's, of each model, with the percentiles of a bootstrap over rankings. That of a
    model whose wins do not vary has none: its resamples only say how often it was drawn."""
    n, times = int(wins.times.sum()), n_resamples(wins.n_models**2)
    draws, seen = np.random.default_rng(0), wins.of(wins.times)
    drawn = np.stack([wins.of(draws.multinomial(n, wins.times / n)) for _ in range(times)])
    strengths, games = bradley_terry(met_in(seen)), drawn + np.swapaxes(drawn, -1, -2)
    rates = ratio(drawn.sum(-1), games.sum(-1))
    varies = np.nan_to_num(rates, nan=0).max(0) > np.nan_to_num(rates, nan=1).min(0)
    low, high = np.percentile(strengths(drawn), [2.5, 97.5], axis=0)
    return [
        {
            "value": number(value),
            "ci95": [number(low[n]), number(high[n])] if varies[n] else _NO_ENDS,
        }
        for n, value in enumerate(strengths(seen))
    ]


_NO_ENDS = [None, None]
