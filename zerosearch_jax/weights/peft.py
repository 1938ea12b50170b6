"""LoRA adapters in the directory format of the `peft` library: adapter_config.json and adapter_model.safetensors.

There a kernel's pair is lora_A [rank, in] and lora_B [out, rank], one tensor a layer, and the product is scaled by
alpha / rank; ours are stacked, transposed and unscaled (models/lora.py), so alpha = rank is written.
"""

import json
import pathlib
from typing import Any

import numpy as np

from zerosearch_jax.models import lora
from zerosearch_jax.models.config import ModelConfig
from zerosearch_jax.weights.names import NAMES
from zerosearch_jax.weights.trees import write_safetensors

_CONFIG, _WEIGHTS = 'adapter_config.json', 'adapter_model.safetensors'
# settings under which a pair means something else than W + scale B A; the value that is understood
_PLAIN = {'use_dora': False, 'bias': 'none', 'fan_in_fan_out': False, 'rank_pattern': {}, 'alpha_pattern': {}}


def save(directory: pathlib.Path, adapter: dict, base: str) -> None:
    """Writes an adapter, as `trees.load_tree` gives it, for a base model by name."""
    layers = adapter['layers']
    targets = [name for name in lora.TARGETS if f'{name}_lora_a' in layers]
    rank = layers[f'{targets[0]}_lora_a'].shape[-1]
    tensors = {}
    for target in targets:
        for part in 'ab':
            for number, matrix in enumerate(np.asarray(layers[f'{target}_lora_{part}'])):
                tensors[_tensor_name(target, number, part)] = matrix.T
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
      FileNotFoundError: no such files.
      ValueError: a kind of adapter that is not understood, or one for another model.
    """
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    config = _read_config(directory)
    odd = [name for name, plain in _PLAIN.items() if config.get(name, plain) not in (plain, None)]
    if config.get('peft_type') != 'LORA' or odd:
        raise ValueError(f'{directory}: {", ".join(odd) or config.get("peft_type")} is not supported; use plain LoRA')
    missing = {'lora_alpha', 'r'} - config.keys()
    if missing:
        raise ValueError(f'{directory / _CONFIG} lacks {", ".join(sorted(missing))}')
    try:
        tensors = load_file(directory / _WEIGHTS)
    except SafetensorError as error:
        raise ValueError(f'{directory / _WEIGHTS}: not a whole safetensors file ({error})') from error
    scale = config['lora_alpha'] / (config['r'] ** 0.5 if config.get('use_rslora') else config['r'])
    layers: dict[str, np.ndarray] = {}
    for target in lora.TARGETS:
        if _tensor_name(target, 0, 'a') in tensors:
            for part, factor in (('a', 1.0), ('b', scale)):
                layers[f'{target}_lora_{part}'] = factor * _stacked(directory, tensors, target, part, cfg.num_layers)
    if tensors or not layers:
        left = next(iter(tensors), 'nothing')
        raise ValueError(f'{directory}: {left} is not a LoRA matrix of a linear layer of this model')
    return {'layers': layers}


def base(directory: pathlib.Path) -> str:
    """The model that an adapter says it belongs to; '' where it does not. Raises FileNotFoundError if it is none."""
    return _read_config(directory).get('base_model_name_or_path') or ''


def _read_config(directory: pathlib.Path) -> dict[str, Any]:
    if not (directory / _CONFIG).is_file():
        raise FileNotFoundError(f'{directory} holds no {_CONFIG}')
    return json.loads((directory / _CONFIG).read_text())


def _stacked(directory: pathlib.Path, tensors: dict[str, Any], target: str, part: str, count: int) -> np.ndarray:
    """Takes the matrices of all layers out of `tensors`."""
    names = [_tensor_name(target, number, part) for number in range(count)]
    missing = [name for name in names if name not in tensors]
    if missing:
        raise ValueError(f'{directory}: {missing[0]} is missing; the model has {count} layers')
    return np.stack([np.asarray(tensors.pop(name), np.float32).T for name in names])


def _tensor_name(target: str, layer: int, part: str) -> str:
    module = NAMES[f'layers.{target}'].hf.format(layer).removesuffix('.weight')
    return f'base_model.model.{module}.lora_{part.upper()}.weight'


def _module(target: str) -> str:
    return NAMES[f'layers.{target}'].hf.split('.')[-2]
