"""What drafted tokens and texts see of their rows, as numbers; the kernels that read these are held
against the same in test_gpu.py."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import tile_reference
import torch
import transformers
from test_hf_engine import small

from jlm_cli.hf import tiles
from jlm_cli.hf.attention import AttentionSpec
from jlm_cli.hf.blocks import Blocks, DraftTrees, Prompts
from jlm_cli.hf.packing import Segment
from jlm_cli.hf.reasons import Text
from jlm_cli.hf.tiles import OnDevice, TiledBlocks, asked_by, asked_by_texts

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    "spec", [AttentionSpec(), AttentionSpec(None, None, 20), AttentionSpec(0.3, 2.0, None)]
)
def test_tiles_say_what_a_mask_says(spec: AttentionSpec, monkeypatch: pytest.MonkeyPatch) -> None:
    tile_reference.use_here(monkeypatch)
    states, kept, trees = tile_reference.drafts(8, 2, 16, torch.float32)
    plain, blocks = Blocks(), TiledBlocks(CPU)
    with torch.inference_mode():
        for some in (plain, blocks):
            some.begin(3, 208)
            for kind in (0, 1):
                some._block(0, kind, kept[kind][0])[:] = kept[kind]
        wanted = DraftTrees.of(trees, plain, CPU, torch.float32).attend(plain, 0, states, spec)
        asked = asked_by(trees, blocks.places)
        found = OnDevice.of(asked, blocks.table).attend(blocks, 0, states, spec)
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-5)
    for kind in (0, 1):
        assert torch.equal(blocks._blocks[0, kind], plain._blocks[0, kind])


def test_texts_ask_as_their_trees_do() -> None:
    """Behind drafts of the line that they do not see, behind some of these, and behind none."""
    texts = [Text(0, 9, 12, [5], 99), Text(2, 7, 7, [5], 99), Text(3, 20, 24, [5], 99)]
    for _ in range(3):
        wanted, found = asked_by([text.tree() for text in texts], 64), asked_by_texts(texts, 64)
        wide = wanted.ago.shape[1]
        for one, other in zip(found.filled(3, wide).parts(), wanted.parts(), strict=True):
            assert one.dtype == np.int32 and one.tolist() == other.tolist()
        more = [(0, 0, n, 1, 0) for n in (3, 4, 5)]  # what is of no text has tiles of one token too
        assert found.filled(6, 64).tiles[3:].tolist() == [list(tile) for tile in more]
        for text in texts:
            text.n_read += len(text.due)
            text.take(5, ())


def test_blocks_that_move_are_told_of() -> None:
    """They grow, all at once, and keep what they hold."""
    blocks = TiledBlocks(CPU)
    blocks.begin(2, 16)
    with torch.inference_mode():
        for layer in (0, 1):
            for kind in (0, 1):
                like = torch.zeros(3, 1, 4)
                blocks._block(layer, kind, like)[:] = 10 * layer + kind + 1
            blocks.specs[layer] = AttentionSpec()
        blocks.tell_all()
        before = blocks.table[:2].tolist()
        assert blocks.room_up_to(16) == 16 and blocks.table[:2].tolist() == before
        assert blocks.room_up_to(17) > 16
        blocks.tell_all()
        assert blocks.table[:2].tolist() == [
            [blocks._blocks[layer, kind].data_ptr() for kind in (0, 1)] for layer in (0, 1)
        ]
        for layer in (0, 1):
            for kind in (0, 1):
                block = blocks._blocks[layer, kind]
                assert block.shape == (2, 3, blocks.places, 4)
                assert (block[:, :, :16] == 10 * layer + kind + 1).all()
                assert not block[:, :, 16:].any()


def test_values_narrower_than_keys_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Before a kernel would write beside them; such a model is read in another way."""
    tile_reference.use_here(monkeypatch)
    (query, key, value), _, trees = tile_reference.drafts(8, 2, 16, torch.float32)
    blocks = TiledBlocks(CPU)
    blocks.begin(3, 208)
    drafted = OnDevice.of(asked_by(trees, blocks.places), blocks.table)
    prompts = Prompts.of([Segment(0, 0, key.shape[1])], CPU)
    with pytest.raises(ValueError, match="not as wide as its keys"):
        drafted.attend(blocks, 0, (query, key, value[..., :8]), AttentionSpec())
    with pytest.raises(ValueError, match="not as wide as its keys"):
        blocks.write_prompts(prompts, 0, (key, value[..., :8]))


def test_tiles_are_tried_with_the_models_heads(monkeypatch: pytest.MonkeyPatch) -> None:
    """A recurrent model has none, another may ask for more than there is."""
    tile_reference.use_here(monkeypatch)
    recurrent = transformers.MambaForCausalLM(
        transformers.MambaConfig(hidden_size=16, num_hidden_layers=1, vocab_size=9)
    )
    assert tiles._work(small("Llama")) and not tiles._work(recurrent)

    def fails(*_: Any) -> Any:
        raise RuntimeError("out of resource: shared memory")

    monkeypatch.setattr(tile_reference, "attend", fails)
    assert not tiles._work(small("Llama"))
