"""What the table counts is what transformers' models hold."""

from __future__ import annotations

import pytest
import torch
from tiny_models import DECODERS, ENCODER_DECODERS, FAMILIES

from rekindle import api
from rekindle.anatomy.counts import cached
from rekindle.apply.load import load_model

WRITTEN, READ = 5, 3  # tokens


def held(cache) -> int:
    """Values in a cache of transformers."""
    return sum(x.numel() for layer in cache.layers for x in (layer.keys, layer.values))


@pytest.mark.parametrize("family", [name for name in FAMILIES if name != "deepseek_v3"])
def test_a_token_leaves_in_the_cache_what_the_table_says(tiny, family):
    """Of transformers' own cache. deepseek's holds what the small vectors are made into."""
    checkpoint = api.open(tiny(family)).checkpoint
    written, read = cached(checkpoint.family, checkpoint.settings)
    if family not in (*DECODERS, *ENCODER_DECODERS):
        assert (written, read) == (0, 0)
        return
    model = load_model(tiny(family), output=checkpoint.settings.output).eval()
    ids = torch.arange(4, 4 + WRITTEN)[None]
    if family in DECODERS:
        assert held(model(ids, use_cache=True).past_key_values) == WRITTEN * written
        assert read == 0
        return
    cache = model(torch.arange(4, 4 + READ)[None], decoder_input_ids=ids).past_key_values
    assert held(cache.self_attention_cache) == WRITTEN * written
    assert held(cache.cross_attention_cache) == READ * read


def test_latent_attention_leaves_its_small_vectors(tiny):
    checkpoint = api.open(tiny("deepseek_v3")).checkpoint
    s = checkpoint.settings
    assert cached(checkpoint.family, s) == (s.num_layers * (s.kv_rank + s.rotary_dim), 0)
