"""Which memory a batch takes over, whether there is room for it, and how much a device is given."""

from __future__ import annotations

import pytest
import torch
from conftest import Loaded
from test_hf_engine import prompts_of, tree_of

from jlm_cli.hf.blocks import Blocks
from jlm_cli.hf.pool import BlockPool
from jlm_cli.hf_engine import PackedBatch


def written(pool: BlockPool, rows: int, places: int) -> Blocks:
    blocks = pool.lend(rows, places)
    with torch.inference_mode():
        blocks._block(0, 0, torch.zeros(2, 1, 4))
    return blocks


def test_memory_goes_from_batch_to_batch() -> None:
    """Also to a larger one; memory that is far too large is given back, with all that is spare."""
    pool = BlockPool(Blocks)
    first, second = written(pool, 4, 64), written(pool, 3, 64)
    for blocks in (first, second):
        pool.take_back(blocks)
    assert written(pool, 3, 64) is first
    assert written(pool, 8, 64) is second
    pool.take_back(first)
    pool.take_back(second)
    small = written(pool, 1, 64)
    assert small not in (first, second) and not pool.spare
    pool.take_back(small)
    assert written(pool, 2, 32) is small


def test_a_batch_waits_for_room_unless_it_is_alone() -> None:
    """What is lent counts as large as it has been."""
    pool = BlockPool(Blocks)
    assert pool.has_room(9999, 9999)
    pool.room = 320
    assert pool.has_room(4, 100)
    large = written(pool, 2, 160)
    assert not pool.has_room(1, 16)
    pool.take_back(large)
    small = written(pool, 2, 96)
    assert small is large and not pool.has_room(1, 16)
    pool.lose(small)
    lent = written(pool, 2, 96)
    assert lent is not large and pool.has_room(1, 128) and not pool.has_room(1, 129)


def test_spare_memory_makes_room() -> None:
    pool = BlockPool(Blocks)
    pool.room = 320
    first, second = written(pool, 1, 160), written(pool, 1, 160)
    for blocks in (first, second):
        pool.take_back(blocks)
    assert written(pool, 1, 176) in (first, second) and not pool.spare


def test_a_device_is_given_two_packs_at_once(
    released: Loaded, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of whatever batch; what a batch asks next does not wait for them."""
    engine, there = tree_of(released, pack_tokens=1), []
    assert engine.may_begin()
    monkeypatch.setattr("jlm_cli.hf.transfers.HostCopy.is_ready", lambda copy: copy in there)
    prompts = prompts_of(released)
    batches = [engine.begin(prompts, [[] for _ in prompts], [0]) for _ in range(2)]
    first, second = batches
    assert isinstance(first, PackedBatch) and isinstance(second, PackedBatch)
    assert first.may_feed() and first.feed() and first.may_feed() and first.feed()
    assert not first.may_feed() and not second.may_feed() and not first.ready()
    there.append(first._copies[0])
    assert first.may_feed() and second.may_feed() and not engine.may_begin()
    engine.pool.room = 1
    assert first.may_feed() and not second.may_feed()
    while first.feed():
        pass
    assert len(first.known()) == len(prompts)
    there += engine._prefills
    first.end()
    assert second.may_feed() and second.feed() and engine.may_begin()
