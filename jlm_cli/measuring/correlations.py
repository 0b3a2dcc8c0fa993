"""Rank correlations of counted things, so that a bootstrap need not draw their rows."""

from __future__ import annotations

import numpy as np

from jlm_cli.intervals import Codes, Counts, Metric


def spearman(x: Codes, y: Codes) -> Metric:
    """Rank correlation, with mid-ranks, for counts [..., K] of things with values x and y [K]."""

    def measure(counts: Counts) -> Counts:
        a, b = _ranked(counts, x), _ranked(counts, y)
        apart = np.sqrt((counts * a**2).sum(-1) * (counts * b**2).sum(-1))
        return np.asarray((counts * a * b).sum(-1) / apart)

    return measure


def _ranked(counts: Counts, values: Codes) -> Counts:
    """The mid-rank of each kind of things, less the mean rank."""
    _, place = np.unique(values, return_inverse=True)
    alike = _of_equals(counts, place)
    ranks = np.cumsum(alike, -1) - alike / 2 - counts.sum(-1, keepdims=True) / 2
    return np.asarray(ranks[..., place])


def _of_equals(counts: Counts, place: Codes) -> Counts:
    """Counts [..., K] added up by place [K], of which there are 0, 1, …"""
    order = np.argsort(place, kind="stable")
    starts = np.searchsorted(place[order], np.arange(place.max() + 1))
    return np.asarray(np.add.reduceat(counts[..., order], starts, axis=-1))


def kendall(x: Codes, y: Codes) -> Metric:
    """Kendall's τ-b for counts [..., K] of things with values x and y [K]."""
    (_, row), (_, column) = (np.unique(values, return_inverse=True) for values in (x, y))

    def measure(counts: Counts) -> Counts:
        n = counts.sum(-1)
        pairs = n * (n - 1) / 2
        alike = [_of_equals(counts, place) for place in (row, column)]
        tied = [pairs - (same * (same - 1)).sum(-1) / 2 for same in alike]
        flat = counts.reshape(-1, counts.shape[-1])
        net = _concordant(flat, row, column).reshape(n.shape)
        return np.asarray(net / np.sqrt(tied[0] * tied[1]))

    return measure


def _concordant(counts: Counts, row: Codes, column: Codes) -> Counts:
    """Concordant less discordant pairs [R] of counts [R, K]: row by row, each kind of things meets
    those of earlier rows, which a Fenwick tree over columns counts."""
    order, n = np.lexsort((column, row)), int(column.max()) + 1
    weights = np.ascontiguousarray(counts[:, order].T)
    row, column = row[order], column[order]
    tree, net = np.zeros((n + 1, len(counts))), np.zeros(len(counts))
    total = np.zeros(len(counts))

    def upto(place: int) -> Counts:
        found = np.zeros(len(counts))
        while place > 0:
            found += tree[place]
            place &= place - 1
        return found

    ends = np.flatnonzero(np.diff(row, append=row[-1] + 1)) + 1
    start = 0
    for end in ends.tolist():
        for kind in range(start, end):
            at = int(column[kind])
            net += weights[kind] * (upto(at) - (total - upto(at + 1)))
        for kind in range(start, end):
            total += weights[kind]
            at = int(column[kind]) + 1
            while at <= n:
                tree[at] += weights[kind]
                at += at & -at
        start = end
    return net
