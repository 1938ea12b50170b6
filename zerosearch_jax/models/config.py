"""Model hyper-parameters: one frozen dataclass for every supported family, and the published sizes.

Sources: the `config.json` of each model on the Hugging Face hub.
"""

import dataclasses
import json
import pathlib
from typing import NamedTuple


@dataclasses.dataclass(frozen=True)
class RopeScaling:
    """Llama-3 frequency scaling (the `llama3` rope type of transformers)."""

    factor: float
    low_freq_factor: float
    high_freq_factor: float
    original_max_position: int


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """A decoder-only transformer with RMSNorm, rotary positions, grouped-query attention and a SwiGLU MLP."""

    family: str  # key of FAMILIES: the Hugging Face `model_type`
    vocab_size: int
    hidden_size: int
    mlp_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    rope_theta: float
    norm_eps: float
    tie_embeddings: bool
    rope_scaling: RopeScaling | None = None
    qkv_bias: bool = False
    qk_norm: bool = False
    max_position: int = 32768


class Family(NamedTuple):
    """What the models of one Hugging Face `model_type` have in common."""

    architecture: str  # the class of transformers that reads what `to_hf` describes
    traits: dict  # fields of ModelConfig that their `config.json` does not say


FAMILIES = {
    'llama': Family('LlamaForCausalLM', {}),
    'qwen2': Family('Qwen2ForCausalLM', {'qkv_bias': True}),
    'qwen3': Family('Qwen3ForCausalLM', {'qk_norm': True}),
}


def from_hf(config: dict) -> ModelConfig:
    """Builds a ModelConfig from the contents of a Hugging Face `config.json`.

    Accepts the spelling of transformers 4 (`rope_theta`, `rope_scaling`) and 5 (`rope_parameters`).

    Raises:
      ValueError: a model type, activation or rope type that this library does not implement, or a missing size.
    """
    family = config.get('model_type')
    if family not in FAMILIES:
        raise ValueError(f'model_type {family!r} is not supported; supported: {", ".join(FAMILIES)}')
    if config.get('hidden_act', 'silu') != 'silu':
        raise ValueError(f'hidden_act {config["hidden_act"]!r} is not supported; only silu is')
    if config.get('use_sliding_window'):
        raise ValueError('use_sliding_window=true is not supported: attention here is full and causal')
    if config.get('mlp_bias'):
        raise ValueError('mlp_bias=true is not supported')
    sizes = (
        'vocab_size',
        'hidden_size',
        'intermediate_size',
        'num_hidden_layers',
        'num_attention_heads',
        'rms_norm_eps',
    )
    if missing := [name for name in sizes if config.get(name) is None]:
        raise ValueError(f'config.json lacks {", ".join(missing)}')
    rope = config.get('rope_parameters') or config.get('rope_scaling') or {}
    traits = FAMILIES[family].traits
    if not traits.get('qkv_bias') and config.get('attention_bias'):
        raise ValueError(f'attention_bias=true is not supported for {family}')
    return ModelConfig(
        family=family,
        vocab_size=config['vocab_size'],
        hidden_size=config['hidden_size'],
        mlp_size=config['intermediate_size'],
        num_layers=config['num_hidden_layers'],
        num_heads=config['num_attention_heads'],
        num_kv_heads=config.get('num_key_value_heads') or config['num_attention_heads'],
        head_dim=config.get('head_dim') or config['hidden_size'] // config['num_attention_heads'],
        rope_theta=float(rope.get('rope_theta') or config.get('rope_theta') or 10000.0),
        norm_eps=config['rms_norm_eps'],
        tie_embeddings=config.get('tie_word_embeddings', False),
        rope_scaling=_rope_scaling(rope),
        max_position=config.get('max_position_embeddings', 32768),
        **traits,
    )


def to_hf(cfg: ModelConfig, *, dtype: str = 'float32') -> dict:
    """The `config.json` contents that `from_hf` reads back and `transformers` loads."""
    rope: dict = {'rope_type': 'default', 'rope_theta': cfg.rope_theta}
    if cfg.rope_scaling is not None:
        rope |= {
            'rope_type': 'llama3',
            'factor': cfg.rope_scaling.factor,
            'low_freq_factor': cfg.rope_scaling.low_freq_factor,
            'high_freq_factor': cfg.rope_scaling.high_freq_factor,
            'original_max_position_embeddings': cfg.rope_scaling.original_max_position,
        }
    legacy_scaling = None if cfg.rope_scaling is None else {k: v for k, v in rope.items() if k != 'rope_theta'}
    return {
        'architectures': [FAMILIES[cfg.family].architecture],
        'model_type': cfg.family,
        'vocab_size': cfg.vocab_size,
        'hidden_size': cfg.hidden_size,
        'intermediate_size': cfg.mlp_size,
        'num_hidden_layers': cfg.num_layers,
        'num_attention_heads': cfg.num_heads,
        'num_key_value_heads': cfg.num_kv_heads,
        'head_dim': cfg.head_dim,
        'hidden_act': 'silu',
        'rms_norm_eps': cfg.norm_eps,
        'rope_parameters': rope,
        # transformers 4 and other servers read these two
        'rope_theta': cfg.rope_theta,
        'rope_scaling': legacy_scaling,
        'tie_word_embeddings': cfg.tie_embeddings,
        'attention_bias': cfg.qkv_bias,
        'max_position_embeddings': cfg.max_position,
        'dtype': dtype,
    }


def read(directory: str | pathlib.Path) -> ModelConfig:
    """Reads `config.json` of a local Hugging Face model directory."""
    path = pathlib.Path(directory) / 'config.json'
    if not path.is_file():
        raise FileNotFoundError(f'{path}: no such file; a model directory needs config.json')
    return from_hf(json.loads(path.read_text()))


def _rope_scaling(rope: dict) -> RopeScaling | None:
    kind = rope.get('rope_type', rope.get('type', 'default'))
    if kind == 'default':
        return None
    if kind != 'llama3':
        raise ValueError(f'rope type {kind!r} is not supported; supported: default, llama3')
    return RopeScaling(
        factor=float(rope['factor']),
        low_freq_factor=float(rope['low_freq_factor']),
        high_freq_factor=float(rope['high_freq_factor']),
        original_max_position=int(rope['original_max_position_embeddings']),
    )


def _qwen25(hidden, mlp, layers, heads, kv_heads, *, vocab=151936, tied):
    return ModelConfig(
        'qwen2', vocab, hidden, mlp, layers, heads, kv_heads, hidden // heads, 1e6, 1e-6, tied, qkv_bias=True
    )


def _qwen3(hidden, mlp, layers, heads, *, tied):
    return ModelConfig(
        'qwen3', 151936, hidden, mlp, layers, heads, 8, 128, 1e6, 1e-6, tied, qk_norm=True, max_position=40960
    )


def _llama32(hidden, mlp, layers, heads, head_dim):
    scaling = RopeScaling(32.0, 1.0, 4.0, 8192)
    return ModelConfig(
        'llama', 128256, hidden, mlp, layers, heads, 8, head_dim, 5e5, 1e-5, True, scaling, max_position=131072
    )


def _smollm2(hidden, mlp, layers, heads, kv_heads, *, theta=1e5):
    return ModelConfig('llama', 49152, hidden, mlp, layers, heads, kv_heads, 64, theta, 1e-5, True, max_position=8192)


PRESETS: dict[str, ModelConfig] = {
    'qwen2.5-0.5b': _qwen25(896, 4864, 24, 14, 2, tied=True),
    'qwen2.5-1.5b': _qwen25(1536, 8960, 28, 12, 2, tied=True),
    'qwen2.5-3b': _qwen25(2048, 11008, 36, 16, 2, tied=True),
    'qwen2.5-7b': _qwen25(3584, 18944, 28, 28, 4, vocab=152064, tied=False),
    'qwen2.5-14b': _qwen25(5120, 13824, 48, 40, 8, vocab=152064, tied=False),
    'qwen3-0.6b': _qwen3(1024, 3072, 28, 16, tied=True),
    'qwen3-1.7b': _qwen3(2048, 6144, 28, 16, tied=True),
    'qwen3-4b': _qwen3(2560, 9728, 36, 32, tied=True),
    'qwen3-8b': _qwen3(4096, 12288, 36, 32, tied=False),
    'llama3.2-1b': _llama32(2048, 8192, 16, 32, 64),
    'llama3.2-3b': _llama32(3072, 8192, 28, 24, 128),
    'smollm2-135m': _smollm2(576, 1536, 30, 9, 3),
    'smollm2-360m': _smollm2(960, 2560, 32, 15, 5),
    'smollm2-1.7b': _smollm2(2048, 8192, 24, 32, 32, theta=13e4),
    # random weights, for tests: every head count divides a tensor axis of 2
    'tiny': ModelConfig('qwen3', 384, 64, 128, 2, 4, 2, 16, 1e4, 1e-6, True, qk_norm=True, max_position=2048),
}
