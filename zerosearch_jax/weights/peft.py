"""LoRA adapters in the directory format of the `peft` library: adapter_config.json and adapter_model.safetensors.

In these files a kernel's pair is lora_A [rank, in] and lora_B [out, rank], one tensor for each layer, and the product
is scaled by alpha / rank. Ours are stacked, transposed and unscaled (models/lora.py), so alpha = rank is written.
"""

import json
import pathlib
from typing import Any

import numpy as np

from zerosearch_jax import settings
from zerosearch_jax.models import lora
from zerosearch_jax.models.config import ModelConfig, positive
from zerosearch_jax.weights.names import NAMES
from zerosearch_jax.weights.trees import open_safetensors, require_finite, write_safetensors

_CONFIG, _WEIGHTS = 'adapter_config.json', 'adapter_model.safetensors'
_PLAIN = {'use_dora': False, 'bias': 'none', 'fan_in_fan_out': False, 'rank_pattern': {}, 'alpha_pattern': {}}
# settings that add nothing to the tensors, or that matter in training only
_FREE = {'peft_type', 'task_type', 'auto_mapping', 'peft_version', 'base_model_name_or_path', 'revision'}
_FREE |= {'inference_mode', 'lora_dropout', 'r', 'lora_alpha', 'use_rslora', 'target_modules', 'exclude_modules'}
_FREE |= {'layers_to_transform', 'layers_pattern', 'megatron_config', 'megatron_core', 'qalora_group_size'}
_FREE |= {'eva_config', 'ensure_weight_tying'}
# settings with which a pair may still mean W + scale B A, and their values for that; others have to be off. The initial
# weights of pissa, olora, corda and loftq are subtracted from the base, which is then not the published one.
_UNDERSTOOD = {'bias': ('none',), 'init_lora_weights': (True, 'gaussian', 'eva', 'orthogonal')}


def save(directory: pathlib.Path, adapter: dict, base: str) -> None:
    """Writes an adapter, in the form of `trees.load_tree`, for a base model by name.

    Raises:
      ValueError: a weight is not finite; nothing is written then.
    """
    layers = adapter['layers']
    targets = [name for name in lora.TARGETS if f'{name}_lora_a' in layers]
    rank = layers[f'{targets[0]}_lora_a'].shape[-1]
    tensors = {}
    for target in targets:
        for part in 'ab':
            for number, matrix in enumerate(np.asarray(layers[f'{target}_lora_{part}'])):
                name = _tensor_name(target, number, part)
                tensors[name] = require_finite(name, matrix.T)
    config = {
        'peft_type': 'LORA',
        'task_type': 'CAUSAL_LM',
        'base_model_name_or_path': base,
        'r': rank,
        'lora_alpha': rank,
        'lora_dropout': 0.0,
        'target_modules': [_module(target) for target in targets],
        'inference_mode': True,
        **_PLAIN,
    }
    directory.mkdir(parents=True, exist_ok=True)
    write_safetensors(directory / _WEIGHTS, tensors, {'format': 'pt'})
    (directory / _CONFIG).write_text(json.dumps(config, indent=2) + '\n')


def load(directory: pathlib.Path, cfg: ModelConfig) -> dict:
    """Reads an adapter of a model: the tree of `lora.layout`, float32.

    Raises:
      FileNotFoundError: there are no such files.
      ValueError: the kind of adapter is not supported, it is for another model, or a weight is not finite.
    """
    config = _read_config(directory)
    odd = [k for k, v in config.items() if v and k not in _FREE and v not in _UNDERSTOOD.get(k, ())]
    if config.get('peft_type') != 'LORA' or odd:
        found = ', '.join(f'{name} = {config.get(name)!r}' for name in odd or ['peft_type'])
        raise ValueError(f'{directory / _CONFIG}: {found} is not supported; use plain LoRA')
    if missing := {'lora_alpha', 'r'} - config.keys():
        raise ValueError(f'{directory / _CONFIG} lacks {", ".join(sorted(missing))}')
    rank = positive(f'{directory / _CONFIG}: r', config['r'], int)
    alpha = positive(f'{directory / _CONFIG}: lora_alpha', config['lora_alpha'], float)
    with open_safetensors(directory / _WEIGHTS) as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a mapping)
    scale = alpha / (rank**0.5 if config.get('use_rslora') else rank)
    layers: dict[str, np.ndarray] = {}
    targets = tuple(target for target in lora.TARGETS if _tensor_name(target, 0, 'a') in tensors)
    for name, param in lora.layout(cfg, rank, targets)['layers'].items():
        target, part = name.split('_lora_')
        layers[name] = (scale if part == 'b' else 1.0) * _stacked(directory, tensors, target, part, param.shape)
    if tensors or not layers:
        left = next(iter(tensors), 'nothing')
        raise ValueError(f'{directory}: {left} is not a LoRA matrix of a linear layer of this model')
    return {'layers': layers}


def base(directory: pathlib.Path) -> str:
    """The base model that an adapter names, or ''. Raises FileNotFoundError if the directory holds no adapter."""
    return _read_config(directory).get('base_model_name_or_path') or ''


def _read_config(directory: pathlib.Path) -> dict[str, Any]:
    if not (directory / _CONFIG).is_file():
        raise FileNotFoundError(f'{directory} holds no {_CONFIG}')
    return settings.read_json(directory / _CONFIG)


def _stacked(directory: pathlib.Path, tensors: dict, target: str, part: str, shape: tuple[int, ...]) -> np.ndarray:
    """Removes the matrices of all layers from `tensors`; returns them as one array of this shape."""
    names = [_tensor_name(target, number, part) for number in range(shape[0])]
    if missing := [name for name in names if name not in tensors]:
        raise ValueError(f'{directory}: {missing[0]} is missing; the model has {shape[0]} layers')
    for name in names:
        require_finite(f'{directory}: {name}', tensors[name])
        if tensors[name].shape[::-1] != shape[1:]:
            found = tensors[name].shape
            raise ValueError(f'{directory}: {name} is {found}; by r and the sizes of the model it is {shape[:0:-1]}')
    return np.stack([np.asarray(tensors.pop(name), np.float32).T for name in names])


def _tensor_name(target: str, layer: int, part: str) -> str:
    module = NAMES[f'layers.{target}'].hf.format(layer).removesuffix('.weight')
    return f'base_model.model.{module}.lora_{part.upper()}.weight'


def _module(target: str) -> str:
    return NAMES[f'layers.{target}'].hf.split('.')[-2]
