"""config.json: what it may say, what it means to transformers, and what is refused in one line."""

import json

import pytest

from zerosearch_jax.models import config

SIZES = {
    'model_type': 'llama',
    'vocab_size': 128,
    'hidden_size': 32,
    'intermediate_size': 64,
    'num_hidden_layers': 2,
    'num_attention_heads': 4,
    'rms_norm_eps': 1e-6,
    'max_position_embeddings': 256,
}
LLAMA3 = {
    'rope_type': 'llama3',
    'factor': 8.0,
    'low_freq_factor': 1.0,
    'high_freq_factor': 4.0,
    'original_max_position_embeddings': 32,
}
DEFAULT = {'rope_type': 'default'}


def without(name):
    return {key: value for key, value in LLAMA3.items() if key != name}


@pytest.mark.parametrize(
    'rope',
    [
        {},
        {'rope_theta': 9.0},
        {'rope_scaling': None, 'rope_theta': 9.0},
        {'rope_scaling': LLAMA3, 'rope_parameters': DEFAULT | {'rope_theta': 7.0}},
        {'rope_scaling': DEFAULT, 'rope_parameters': LLAMA3 | {'rope_theta': 7.0}, 'rope_theta': 9.0},
        {'rope_scaling': {}, 'rope_parameters': LLAMA3 | {'rope_theta': 7.0}, 'rope_theta': 9.0},
        {'rope_scaling': LLAMA3 | {'rope_theta': 5.0}, 'rope_theta': 9.0},
        {'rope_scaling': without('rope_type') | {'type': 'llama3'}},
        {'rope_scaling': LLAMA3 | {'type': 'linear'}},
        {'rope_parameters': DEFAULT, 'rope_theta': 9.0},
    ],
    ids=str,
)
def test_rope_scaling_beside_rope_parameters_is_read_as_transformers_reads_it(rope):
    from transformers import LlamaConfig

    ours = config.from_hf(json.loads(json.dumps(SIZES | rope)))
    theirs = LlamaConfig(**json.loads(json.dumps(SIZES | rope))).rope_parameters
    assert ours.rope_theta == theirs['rope_theta']
    assert (ours.rope_scaling is not None) == (theirs['rope_type'] == 'llama3')
    if ours.rope_scaling is not None:
        assert ours.rope_scaling.factor == theirs['factor']
        assert ours.rope_scaling.original_max_position == theirs['original_max_position_embeddings']


REFUSED = {
    'nested per-layer rope': ({'rope_parameters': {'full_attention': DEFAULT}}, 'for all layers'),
    'rope_scaling is text': ({'rope_scaling': 'llama3'}, 'one object'),
    'yarn': ({'rope_scaling': {'rope_type': 'yarn', 'factor': 4.0}}, "'yarn' is not supported"),
    'llama3 with factors the wrong way round': ({'rope_scaling': LLAMA3 | {'high_freq_factor': 0.5}}, 'must exceed'),
    'half of each head is rotated': ({'partial_rotary_factor': 0.5}, 'partial_rotary_factor=0.5 is not supported'),
    'rope_theta 0': ({'rope_parameters': {'rope_theta': -1}}, 'rope_theta must be a positive number'),
    'two lengths': ({'rope_scaling': LLAMA3, 'original_max_position_embeddings': 64}, '=64 is not that of the rotary'),
    'quantized': ({'quantization_config': {'quant_method': 'fp8'}}, 'quantized weights are not supported'),
    'model_type is a list': ({'model_type': ['llama']}, 'is not supported'),
    'a size is text': ({'hidden_size': '32'}, "hidden_size must be a positive whole number, got '32'"),
    'a size is a fraction': ({'num_hidden_layers': 2.5}, 'num_hidden_layers must be a positive whole number'),
    'a size is true': ({'vocab_size': True}, 'vocab_size must be a positive whole number, got True'),
    'heads that kv heads do not divide': ({'num_attention_heads': 4, 'num_key_value_heads': 3}, 'does not divide'),
    'no heads': ({'num_attention_heads': 0}, 'num_attention_heads must be a positive whole number, got 0'),
    'an epsilon that is not a number': ({'rms_norm_eps': float('nan')}, 'rms_norm_eps must be a positive number'),
    'tied is text': ({'tie_word_embeddings': 'no'}, "tie_word_embeddings must be true or false, got 'no'"),
} | {
    f'llama3 without {name}': ({'rope_scaling': without(name)}, f'{name} of its rope type llama3 must be a positive')
    for name in LLAMA3
    if name != 'rope_type'
}


@pytest.mark.parametrize(('changes', 'message'), REFUSED.values(), ids=REFUSED)
def test_what_is_not_understood_is_refused_by_name(tmp_path, changes, message):
    (tmp_path / 'config.json').write_text(json.dumps(SIZES | changes))
    with pytest.raises(ValueError, match=rf'config\.json: .*{message}'):
        config.read(tmp_path)
