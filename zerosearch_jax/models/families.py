"""What the `config.json` of some families says beside that of others: read as fields of ModelConfig, and written.

A reader returns the file's contents in the spelling of the other families, and further fields.
"""

import math
from typing import Any


def positive(name: str, value: Any, kind: type) -> Any:
    """A positive number from a file; raises ValueError with its name if it is anything else."""
    if isinstance(value, bool) or not isinstance(value, int | kind) or not 0 < value < math.inf:
        raise ValueError(f'{name} must be a positive {"whole " if kind is int else ""}number, got {value!r}')
    return kind(value)


def read_qwen3_moe(config: dict) -> tuple[dict, dict]:
    if config.get('mlp_only_layers') or config.get('decoder_sparse_step', 1) != 1:
        raise ValueError('mlp_only_layers and decoder_sparse_step are not supported: every layer must have experts')
    count = 'num_local_experts' if 'num_local_experts' in config else 'num_experts'  # as transformers 5 writes it
    sizes = {'mlp_size': 'moe_intermediate_size', 'num_experts': count, 'experts_per_token': 'num_experts_per_tok'}
    found = {field: positive(name, config.get(name), int) for field, name in sizes.items()}
    if found['experts_per_token'] > found['num_experts']:
        raise ValueError(f'num_experts_per_tok={found["experts_per_token"]} exceeds {count}={found["num_experts"]}')
    normalize = config.get('norm_topk_prob', False)
    if type(normalize) is not bool:
        raise ValueError(f'norm_topk_prob must be true or false, got {normalize!r}')
    return config, found | {'normalize_experts': normalize}


def write_qwen3_moe(cfg, rope: dict) -> dict:
    return {
        'moe_intermediate_size': cfg.mlp_size,
        'num_experts': cfg.num_experts,
        'num_experts_per_tok': cfg.experts_per_token,
        'norm_topk_prob': cfg.normalize_experts,
        'decoder_sparse_step': 1,
        'mlp_only_layers': [],
    }


_FULL, _SLIDING = 'full_attention', 'sliding_attention'
GEMMA = {name: True for name in ('qk_norm', 'norm_from_one', 'post_norms', 'scaled_embedding', 'gelu')}


def read_gemma3(config: dict) -> tuple[dict, dict]:
    odd = 'attn_logit_softcapping', 'final_logit_softcapping', 'use_bidirectional_attention'
    if found := [name for name in odd if config.get(name)]:
        raise ValueError(f'{found[0]}={config[found[0]]!r} is not supported')
    layers = positive('num_hidden_layers', config.get('num_hidden_layers'), int)
    every = positive('sliding_window_pattern', config.get('sliding_window_pattern', 6), int)
    kinds = config.get('layer_types') or [_SLIDING if i % every else _FULL for i in range(1, layers + 1)]
    if len(kinds) != layers or set(kinds) - {_SLIDING, _FULL}:
        raise ValueError(f'layer_types must say {_SLIDING} or {_FULL} for each of the {layers} layers, got {kinds!r}')
    rope = config.get('rope_parameters') or {}
    full, local = ({'rope_theta': None} | (rope.get(kind) or {}) for kind in (_FULL, _SLIDING))
    if local.get('rope_type', 'default') != 'default':
        raise ValueError(f'rope type {local["rope_type"]!r} is not supported in sliding layers')
    theta = full['rope_theta'] or config.get('rope_theta') or 1e6
    plain = {'rope_parameters': full | (config.get('rope_scaling') or {}) | {'rope_theta': theta}, 'rope_scaling': None}
    act = config.get('hidden_activation') or 'gelu_pytorch_tanh'
    local_theta = local['rope_theta'] or config.get('rope_local_base_freq') or 1e4
    return {'tie_word_embeddings': True} | config | plain | {'hidden_act': act}, {
        'window': positive('sliding_window', config.get('sliding_window'), int),
        'sliding': tuple(kind == _SLIDING for kind in kinds),
        'local_rope_theta': positive('rope_local_base_freq', local_theta, float),
        'query_size': positive('query_pre_attn_scalar', config.get('query_pre_attn_scalar', 256), int),
    }


def write_gemma3(cfg, rope: dict) -> dict:
    local = {'rope_type': 'default', 'rope_theta': cfg.local_rope_theta}
    return {
        'hidden_activation': 'gelu_pytorch_tanh',
        'layer_types': [_SLIDING if sliding else _FULL for sliding in cfg.sliding],
        'sliding_window': cfg.window,
        'query_pre_attn_scalar': cfg.query_size,
        'rope_parameters': {_FULL: rope, _SLIDING: local},
        'rope_local_base_freq': cfg.local_rope_theta,
    }
