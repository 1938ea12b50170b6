"""A model, its tokenizer and its engine belong together, or the loading says in one line why they do not."""

import dataclasses
import re

import pytest
from helpers import TINY, tiny_params

from zerosearch_jax import pretrained, sharding
from zerosearch_jax.generate.requests import Role
from zerosearch_jax.policy import export_weights, open_policy
from zerosearch_jax.rollout.config import RolloutConfig
from zerosearch_jax.text.tokenizer import byte_tokenizer

MESH = sharding.make_mesh()


def test_a_tokenizer_with_more_ids_than_the_embedding_has_rows_is_refused(tmp_path):
    cfg = dataclasses.replace(TINY, vocab_size=376)
    model = pretrained.Model(cfg, byte_tokenizer(), tiny_params(MESH, cfg=cfg))
    path = export_weights(model.params, model, False, tmp_path, '{}')
    message = f'{path}: the tokenizer has 384 ids, the embedding of the model 376 rows; take the tokenizer'
    with pytest.raises(ValueError, match=re.escape(message)):
        pretrained.load_model(str(path), MESH)


def test_an_embedding_with_more_rows_than_ids_is_loaded(tmp_path):
    cfg = dataclasses.replace(TINY, vocab_size=512)
    model = pretrained.Model(cfg, byte_tokenizer(), tiny_params(MESH, cfg=cfg))
    path = export_weights(model.params, model, False, tmp_path, '{}')
    assert len(pretrained.load_model(str(path), MESH).token_bytes) == 512


def test_prompts_longer_than_max_position_embeddings_are_refused():
    model = pretrained.Model(TINY, byte_tokenizer(), {})
    size = RolloutConfig(slots=1, prompt_tokens=48, response_tokens=TINY.max_position - 48)
    assert open_policy(model, size, MESH, dtype='float32').capacity >= TINY.max_position
    with pytest.raises(ValueError, match=r'may have 4097 tokens, but the model has 4096 positions \(max_position_emb'):
        open_policy(model, dataclasses.replace(size, prompt_tokens=49), MESH, dtype='float32')
    with pytest.raises(ValueError, match=r'positions'):  # a writer's engine
        pretrained.open_engines(
            model, MESH, [Role(1)], cache_gib=0.0, capacity=5000, decode_steps=4, dtype='float32', top_p=1.0
        )
