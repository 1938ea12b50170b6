"""Model hyper-parameters: one frozen dataclass for every supported family, and the published sizes.

Sources: the `config.json` of each model on the Hugging Face hub.
"""

import dataclasses
import pathlib
from collections.abc import Callable
from typing import NamedTuple

from zerosearch_jax import settings
from zerosearch_jax.models import families
from zerosearch_jax.models.families import positive


@dataclasses.dataclass(frozen=True)
class RopeScaling:
    """Llama-3 frequency scaling (the `llama3` rope type of transformers)."""

    factor: float
    low_freq_factor: float
    high_freq_factor: float
    original_max_position: int


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """A decoder-only transformer with RMSNorm, rotary positions, grouped-query attention and gated MLPs or experts."""

    family: str  # key of FAMILIES: the Hugging Face `model_type`
    vocab_size: int
    hidden_size: int
    mlp_size: int  # with experts: of each
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
    num_experts: int = 0  # 0: an MLP instead
    experts_per_token: int = 0
    normalize_experts: bool = False  # the weights of a token's experts are divided by their sum
    rope_factor: float = 1.0  # linear scaling: rotary positions are divided by it
    window: int = 0  # positions that a token sees in a sliding layer, its own included; 0: no layer slides
    sliding: tuple[bool, ...] = ()  # of each layer, if any slides
    local_rope_theta: float = 0.0  # of sliding layers
    query_size: int = 0  # scores are divided by its root; 0: by that of head_dim
    norm_from_one: bool = False  # the weights of norms are distances from 1
    post_norms: bool = False  # norms after attention and MLP too
    scaled_embedding: bool = False  # embeddings are multiplied by sqrt(hidden_size)
    gelu: bool = False  # in place of silu


class Family(NamedTuple):
    """What the models of one Hugging Face `model_type` have in common."""

    architecture: str  # the class of transformers that reads what `to_hf` describes
    traits: dict  # fields of ModelConfig that their `config.json` does not contain
    # from a `config.json`: it in the spelling of the other families, and further fields of ModelConfig
    read: Callable[[dict], tuple[dict, dict]] | None = None
    # further lines of a `config.json`, from the model and its rotary parameters
    write: Callable[[ModelConfig, dict], dict] = lambda cfg, rope: {}


FAMILIES = {
    'llama': Family('LlamaForCausalLM', {}),
    'qwen2': Family('Qwen2ForCausalLM', {'qkv_bias': True}),
    'qwen3': Family('Qwen3ForCausalLM', {'qk_norm': True}),
    'qwen3_moe': Family('Qwen3MoeForCausalLM', {'qk_norm': True}, families.read_qwen3_moe, families.write_qwen3_moe),
    'gemma3_text': Family('Gemma3ForCausalLM', families.GEMMA, families.read_gemma3, families.write_gemma3),
}


def from_hf(config: dict) -> ModelConfig:
    """Builds a ModelConfig from the contents of a Hugging Face `config.json`.

    Accepts the spelling of transformers 4 (`rope_theta`, `rope_scaling`) and 5 (`rope_parameters`).

    Raises:
      ValueError: a model type, activation, rope type or quantization that this library does not implement, or a size
        that is missing or no positive number.
    """
    family = config.get('model_type')
    if family == 'gemma3':
        raise ValueError("model_type 'gemma3' reads images too; take a model of text alone (gemma3_text: 270M and 1B)")
    if family not in tuple(FAMILIES):
        raise ValueError(f'model_type {family!r} is not supported; supported: {", ".join(FAMILIES)}')
    traits, read = FAMILIES[family].traits, FAMILIES[family].read
    config, more = read(config) if read else (config, {})
    act = 'gelu_pytorch_tanh' if traits.get('gelu') else 'silu'
    if config.get('hidden_act', act) != act:
        raise ValueError(f'hidden_act {config["hidden_act"]!r} is not supported for {family}; only {act} is')
    if config.get('use_sliding_window'):
        raise ValueError('use_sliding_window=true is not supported: attention here is full and causal')
    if config.get('mlp_bias'):
        raise ValueError('mlp_bias=true is not supported')
    if config.get('quantization_config'):
        raise ValueError('quantization_config: quantized weights are not supported; take the model as it was published')
    sizes = 'vocab_size', 'hidden_size', 'intermediate_size', 'num_hidden_layers', 'num_attention_heads'
    if missing := [name for name in (*sizes, 'rms_norm_eps') if config.get(name) is None]:
        raise ValueError(f'it lacks {", ".join(missing)}')
    vocab, hidden, mlp, layers, heads = (positive(name, config[name], int) for name in sizes)
    if not traits.get('qkv_bias') and config.get('attention_bias'):
        raise ValueError(f'attention_bias=true is not supported for {family}')
    rope, tied = _rope(config), config.get('tie_word_embeddings') or False
    if type(tied) is not bool:
        raise ValueError(f'tie_word_embeddings must be true or false, got {tied!r}')
    kv_heads = positive('num_key_value_heads', config.get('num_key_value_heads') or heads, int)
    if heads % kv_heads:
        raise ValueError(f'num_key_value_heads={kv_heads} does not divide num_attention_heads={heads}')
    fields = dict(
        family=family,
        vocab_size=vocab,
        hidden_size=hidden,
        mlp_size=mlp,
        num_layers=layers,
        num_heads=heads,
        num_kv_heads=kv_heads,
        head_dim=positive('head_dim', config.get('head_dim') or hidden // heads, int),
        rope_theta=positive('rope_theta', rope.get('rope_theta') or config.get('rope_theta') or 10000.0, float),
        norm_eps=positive('rms_norm_eps', config['rms_norm_eps'], float),
        tie_embeddings=tied,
        max_position=positive('max_position_embeddings', config.get('max_position_embeddings') or 32768, int),
    )
    return ModelConfig(**fields | _rope_scaling(rope) | traits | more)


def to_hf(cfg: ModelConfig, *, dtype: str = 'float32') -> dict:
    """The `config.json` contents that `from_hf` reads back and `transformers` loads."""
    rope = _rope_to_hf(cfg)
    legacy_scaling = None if len(rope) == 2 else {k: v for k, v in rope.items() if k != 'rope_theta'}
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
        'hidden_act': 'gelu_pytorch_tanh' if cfg.gelu else 'silu',
        'rms_norm_eps': cfg.norm_eps,
        'rope_parameters': rope,
        # transformers 4 and other servers read these two
        'rope_theta': cfg.rope_theta,
        'rope_scaling': legacy_scaling,
        'tie_word_embeddings': cfg.tie_embeddings,
        'attention_bias': cfg.qkv_bias,
        'max_position_embeddings': cfg.max_position,
        'dtype': dtype,
        **FAMILIES[cfg.family].write(cfg, rope),
    }


def _rope_to_hf(cfg: ModelConfig) -> dict:
    rope = {'rope_type': 'default', 'rope_theta': cfg.rope_theta}
    if cfg.rope_factor != 1:
        rope |= {'rope_type': 'linear', 'factor': cfg.rope_factor}
    if cfg.rope_scaling is not None:
        rope |= {
            'rope_type': 'llama3',
            'factor': cfg.rope_scaling.factor,
            'low_freq_factor': cfg.rope_scaling.low_freq_factor,
            'high_freq_factor': cfg.rope_scaling.high_freq_factor,
            'original_max_position_embeddings': cfg.rope_scaling.original_max_position,
        }
    return rope


def read(directory: str | pathlib.Path) -> ModelConfig:
    """Reads `config.json` of a local Hugging Face model directory; raises as from_hf, naming the file."""
    path = pathlib.Path(directory) / 'config.json'
    if not path.is_file():
        raise FileNotFoundError(f'{path}: no such file; a model directory needs config.json')
    config = settings.read_json(path)
    try:
        return from_hf(config)
    except (ValueError, TypeError, AttributeError) as error:  # the last two: a value of another kind, deep inside
        raise ValueError(f'{path}: {error}') from error


def _rope(config: dict) -> dict:
    """The rotary parameters; if both spellings are there, only `rope_scaling` counts, as in transformers."""
    rope = config.get('rope_scaling') or config.get('rope_parameters') or {}
    if not isinstance(rope, dict) or any(isinstance(value, dict) for value in rope.values()):
        raise ValueError('rotary parameters must be one object for all layers; others for each are not supported')
    rope = {'partial_rotary_factor': config.get('partial_rotary_factor')} | rope
    if rope['partial_rotary_factor'] not in (None, 1):
        raise ValueError(f'partial_rotary_factor={rope["partial_rotary_factor"]!r} is not supported')
    name = 'original_max_position_embeddings'
    if config.get(name) not in (None, rope.get(name)):
        raise ValueError(f'{name}={config[name]!r} is not that of the rotary parameters')
    return rope


def _rope_scaling(rope: dict) -> dict:
    """The fields of ModelConfig that say how rotary positions are scaled."""
    kind = rope.get('rope_type', rope.get('type', 'default'))
    if kind == 'default':
        return {}
    if kind not in ('linear', 'llama3'):
        raise ValueError(f'rope type {kind!r} is not supported; supported: default, linear, llama3')

    def number(name, of=float):
        return positive(f'{name} of its rope type {kind}', rope.get(name), of)

    if kind == 'linear':
        return {'rope_factor': number('factor')}
    factor, low, high = map(number, ('factor', 'low_freq_factor', 'high_freq_factor'))
    original = number('original_max_position_embeddings', int)
    if high <= low:
        raise ValueError(f'high_freq_factor of its rope type llama3 must exceed low_freq_factor, got {high} and {low}')
    return {'rope_scaling': RopeScaling(factor, low, high, original)}


def _qwen25(hidden, mlp, layers, heads, kv_heads, *, vocab=151936, tied):
    return ModelConfig(
        'qwen2', vocab, hidden, mlp, layers, heads, kv_heads, hidden // heads, 1e6, 1e-6, tied, qkv_bias=True
    )


def _qwen3(hidden, mlp, layers, heads, *, tied, family='qwen3', kv_heads=8, **further):
    sizes = 151936, hidden, mlp, layers, heads, kv_heads, 128
    return ModelConfig(family, *sizes, 1e6, 1e-6, tied, qk_norm=True, max_position=40960, **further)


_EXPERTS = dict(family='qwen3_moe', num_experts=128, experts_per_token=8, normalize_experts=True)


def _llama32(hidden, mlp, layers, heads, head_dim):
    scaling = RopeScaling(32.0, 1.0, 4.0, 8192)
    return ModelConfig(
        'llama', 128256, hidden, mlp, layers, heads, 8, head_dim, 5e5, 1e-5, True, scaling, max_position=131072
    )


def _smollm2(hidden, mlp, layers, heads, kv_heads, *, theta=1e5):
    return ModelConfig('llama', 49152, hidden, mlp, layers, heads, kv_heads, 64, theta, 1e-5, True, max_position=8192)


def _gemma3(hidden, mlp, layers):
    sizes, sliding = (262144, hidden, mlp, layers, 4, 1, 256), tuple(i % 6 > 0 for i in range(1, layers + 1))
    further = dict(window=512, sliding=sliding, local_rope_theta=1e4, query_size=256, **families.GEMMA)
    return ModelConfig('gemma3_text', *sizes, 1e6, 1e-6, True, **further)


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
    'qwen3-30b-a3b': _qwen3(2048, 768, 48, 32, tied=False, kv_heads=4, **_EXPERTS),
    'gemma3-270m': _gemma3(640, 2048, 18),
    'gemma3-1b': _gemma3(1152, 6912, 26),
    'llama3.2-1b': _llama32(2048, 8192, 16, 32, 64),
    'llama3.2-3b': _llama32(3072, 8192, 28, 24, 128),
    'smollm2-135m': _smollm2(576, 1536, 30, 9, 3),
    'smollm2-360m': _smollm2(960, 2560, 32, 15, 5),
    'smollm2-1.7b': _smollm2(2048, 8192, 24, 32, 32, theta=13e4),
    # random weights, for tests: every head count divides a tensor axis of 2
    'tiny': ModelConfig('qwen3', 384, 64, 128, 2, 4, 2, 16, 1e4, 1e-6, True, qk_norm=True, max_position=4096),
}
