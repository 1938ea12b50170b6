"""The layout of weights for generation: one array for each layer, q|k|v and gate|up as one matrix, several adapters.

A program that slices stacked weights copies them in every call, on GPUs for every token; and each product is a launch.
If the mesh splits heads and mlp (`tensor`), the matrices stay separate: their shards would not be shards of the whole.

The adapters of several roles are side by side, and a row uses only the columns of its role:

    x A          [B, T, r0 + r1]      A = [A0 | A1]
    of its role  [1 1 1 1 0 0 0 0]    for a row of role 0; `<name>_lora_role` is the role of each column
    (x A) B      [B, T, out]          B = [B0 ; B1]
"""

import functools
from collections.abc import Collection, Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding

from zerosearch_jax import sharding
from zerosearch_jax.models import lora, transformer
from zerosearch_jax.models.config import ModelConfig

FUSED = {'qkv': ('q', 'k', 'v'), 'o': ('o',), 'gate_up': ('gate', 'up'), 'down': ('down',)}
ENDS = '', '_scale', '_bias'  # of the names of a kernel's arrays
_layer = functools.partial(jax.lax.dynamic_index_in_dim, keepdims=False)


def matrices(mesh: jax.sharding.Mesh) -> Mapping[str, tuple[str, ...]]:
    """{matrix of a layer: kernels that it holds side by side}."""
    return FUSED if mesh.shape['tensor'] == 1 else {name: (name,) for name in lora.TARGETS}


def base_layout(params: dict, cfg: ModelConfig, mesh: jax.sharding.Mesh, *, dtype, owned: bool = False) -> dict:
    """A copy of weights without adapters, in the compute dtype, the head as [D, V]; int8 stays int8.

    Args:
      params: training layout; its mesh may be another one of the same devices, and no other mesh may be set.
      cfg: the model.
      mesh: of the copy.
      dtype: compute dtype.
      owned: no other code needs the layers of `params`: each kernel is freed as soon as it is copied.
    """
    stacks, layers = dict(params['layers']), tuple({} for _ in range(cfg.num_layers))
    kernels = {f'{name}{end}': [f'{k}{end}' for k in own] for name, own in matrices(mesh).items() for end in ENDS}
    parts = {name: [stacks.pop(k) for k in own] for name, own in kernels.items() if own[0] in stacks}
    for name, own in (parts | {name: [stack] for name, stack in stacks.items()}).items():  # those left: norms, experts
        place, kept = _place(cfg, mesh, name), jnp.float32 if name == 'router' else dtype
        for i, layer in enumerate(layers):
            layer[name] = _placed(_fused, 2, place)(own, i, kept)
        for stack in own if owned else ():
            stack.delete()
    flat = {'head': transformer.head(params)} | {name: w for name, w in params.items() if name != 'layers'}
    placed = {name: _placed(_cast, 1, _place(cfg, mesh, name))(w, dtype) for name, w in flat.items()}
    return placed | {'layers': layers}


def _place(cfg: ModelConfig, mesh: jax.sharding.Mesh, name: str) -> NamedSharding:
    """The sharding of an array of a layer, or outside the layers."""
    layout, (matrix, _, part) = transformer.layout(cfg), name.partition('_lora_')
    axes = {'head': layout['embed'].axes[::-1]} | {name: p.axes for name, p in layout.items() if name != 'layers'}
    axes |= {name: p.axes[1:] for name, p in layout['layers'].items()}
    stem = matrix.removesuffix('_bias').removesuffix('_scale')
    first = matrices(mesh).get(stem, (stem,))[0]
    *before, out = axes[first + '_bias' * matrix.endswith('_bias')]
    before = before[:-1] if matrix.endswith('_scale') else before  # one for each output
    return sharding.named(mesh, *{'': (*before, out), 'a': (*before, None), 'b': (None, out)}[part])


@functools.cache
def _placed(function, static: int, place: NamedSharding):
    """A jitted function whose result is on `place`; `device_put` to another mesh would go through the host."""
    return jax.jit(function, static_argnums=static, out_shardings=place)


def _cast(w: jax.Array, dtype) -> jax.Array:
    return w if w.dtype == jnp.int8 else w.astype(dtype)


def _fused(stacks_LxN: list[jax.Array], i: int, dtype) -> jax.Array:  # a program of all layers compiles for seconds
    return _cast(jnp.concatenate([_layer(w, i) for w in stacks_LxN], axis=-1), dtype)


def split_adapter(params: dict) -> tuple[dict, dict]:
    """The base of combined weights, and the layers of the adapter beside it; {} if there is none."""
    adapter = {name: w for name, w in params['layers'].items() if '_lora_' in name}
    kernels = {name: w for name, w in params['layers'].items() if '_lora_' not in name}
    return {**params, 'layers': kernels}, adapter


def with_adapters(base: dict, adapters: Sequence[dict], cfg: ModelConfig, mesh: jax.sharding.Mesh, *, dtype) -> dict:
    """Weights in the serving layout, the adapters of all roles beside them.

    Args:
      base: from base_layout.
      adapters: layers of each role's adapter, {} if it has none.
      cfg: the model.
      mesh: of the weights.
      dtype: compute dtype.
    """
    if not any(adapters):
        return base
    made = [_beside(adapters, i, cfg, tuple(matrices(mesh).items())) for i in range(cfg.num_layers)]
    made = [{name: _placed(_cast, 1, _place(cfg, mesh, name))(w, dtype) for name, w in own.items()} for own in made]
    roles = _roles(adapters, matrices(mesh)) if len(adapters) > 1 else {}  # with one role every row uses every column
    return {**base, 'layers': tuple(layer | own | roles for layer, own in zip(base['layers'], made, strict=True))}


@functools.partial(jax.jit, static_argnums=(2, 3))
def _beside(adapters: Sequence[dict], i: int, cfg: ModelConfig, matrices) -> dict:
    """The adapters of a layer, those of all roles and kernels of a matrix side by side."""
    kernels, made = transformer.layout(cfg)['layers'], {}
    for name, parts in matrices:
        if parts[0] not in kernels:  # experts instead
            continue
        ends = np.cumsum([kernels[part].shape[-1] for part in parts])
        a, b = [], []
        for adapter in adapters:
            for part, end in zip(parts, ends, strict=True):
                if f'{part}_lora_a' in adapter:
                    beside = int(end) - kernels[part].shape[-1], int(ends[-1] - end)
                    a.append(_layer(adapter[f'{part}_lora_a'], i))
                    b.append(jnp.pad(_layer(adapter[f'{part}_lora_b'], i), ((0, 0), beside)))
        if a:
            made |= {f'{name}_lora_a': jnp.concatenate(a, axis=1), f'{name}_lora_b': jnp.concatenate(b, axis=0)}
    return made


def _roles(adapters: Sequence[dict], matrices: Mapping[str, tuple[str, ...]]) -> dict[str, np.ndarray]:
    """The role of each column of the stacked adapters."""
    found = {}
    for name, parts in matrices.items():
        ranks = [sum(a[f'{p}_lora_a'].shape[-1] for p in parts if f'{p}_lora_a' in a) for a in adapters]
        if any(ranks):
            found[f'{name}_lora_role'] = np.repeat(np.arange(len(adapters), dtype=np.int32), ranks)
    return found


def for_rows(layer: dict, roles_B: jax.Array) -> dict:
    """A layer for rows of these roles: `<name>_lora_rows` [B, 1, r] is 1 for the columns of a row's role."""
    columns = {name: role for name, role in layer.items() if name.endswith('_lora_role')}
    rows = {}
    for name, role in columns.items():
        dtype = layer[name.replace('_role', '_a')].dtype
        rows[name.replace('_role', '_rows')] = (roles_B[:, None, None] == role).astype(dtype)
    return {name: w for name, w in layer.items() if name not in columns} | rows


def abstract(params: dict, adapters: Sequence[dict], cfg: ModelConfig, mesh: jax.sharding.Mesh, *, dtype) -> dict:
    """The result of base_layout and with_adapters for abstract weights."""

    def placed(name: str, array):
        place = None if name.endswith('_lora_role') else _place(cfg, mesh, name)  # roles come from the host
        return jax.ShapeDtypeStruct(array.shape, array.dtype, sharding=place)

    base = jax.eval_shape(lambda params: base_layout(params, cfg, mesh, dtype=dtype), params)
    whole = jax.eval_shape(lambda *both: with_adapters(*both, cfg, mesh, dtype=dtype), base, adapters)
    layers = tuple({name: placed(name, array) for name, array in layer.items()} for layer in whole.pop('layers'))
    return {name: placed(name, array) for name, array in whole.items()} | {'layers': layers}


class Weights:
    """The weights with which slots generate: those of one role, or one base with an adapter for each role.

    Args:
      cfg: the model.
      mesh: of the weights.
      roles: number of roles.
      dtype: compute dtype.
    """

    def __init__(self, cfg: ModelConfig, mesh: jax.sharding.Mesh, roles: int, dtype):
        self._cfg, self._mesh, self._dtype = cfg, mesh, dtype
        # a single adapter is merged into its base; below float32, small changes of large weights would be lost
        self._merges = roles == 1 and jnp.dtype(dtype) == jnp.float32
        self._base: dict | None = None
        self._adapters: list[dict | None] = [None] * roles
        self._whole: dict | None = None

    def abstract(self, params: dict, adapters: Sequence[dict]) -> dict:
        """The result of `get` for abstract weights and adapters."""
        return abstract(params, [{}] if self._merges else adapters, self._cfg, self._mesh, dtype=self._dtype)

    def load(self, role: int, params: dict, owned: bool):
        """Copies a role's weights and its adapter; with several roles the base is copied once, and may come later."""
        self.unload(role)  # before the new copy is made
        base, self._adapters[role] = split_adapter(lora.merged(params) if self._merges else params)
        if self._base is None and 'embed' in base:
            self._base = base_layout(base, self._cfg, self._mesh, dtype=self._dtype, owned=owned)

    def unload(self, role: int):
        """Frees a role's weights, except a base that roles share."""
        self._adapters[role], self._whole = None, None
        if len(self._adapters) == 1:
            self._base = None

    def get(self, roles: Collection[int]) -> dict:
        """All weights in the serving layout; raises RuntimeError if one of these roles has none."""
        if self._base is None or any(self._adapters[role] is None for role in roles):
            raise RuntimeError('the engine has no weights: call load() first')
        if self._whole is None:
            adapters = [adapter or {} for adapter in self._adapters]
            self._whole = with_adapters(self._base, adapters, self._cfg, self._mesh, dtype=self._dtype)
        return self._whole
