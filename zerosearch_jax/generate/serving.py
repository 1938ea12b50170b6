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
from jax.sharding import NamedSharding, PartitionSpec

from zerosearch_jax.models import lora, transformer
from zerosearch_jax.models.config import ModelConfig

FUSED = {'qkv': ('q', 'k', 'v'), 'o': ('o',), 'gate_up': ('gate', 'up'), 'down': ('down',)}
_layer = functools.partial(jax.lax.dynamic_index_in_dim, keepdims=False)


def matrices(mesh: jax.sharding.Mesh) -> Mapping[str, tuple[str, ...]]:
    """{matrix of a layer: kernels that it holds side by side}."""
    return FUSED if mesh.shape['tensor'] == 1 else {name: (name,) for name in lora.TARGETS}


def base_layout(params: dict, mesh: jax.sharding.Mesh, *, dtype, owned: bool = False) -> dict:
    """A copy of weights without adapters, in the compute dtype, the head as [D, V]; int8 stays int8.

    Args:
      params: training layout.
      mesh: of the weights.
      dtype: compute dtype.
      owned: no other code needs the layers of `params`: each kernel is freed as soon as it is copied.
    """
    stacks, layers = dict(params['layers']), tuple({} for _ in range(len(params['layers']['q'])))
    for name, kernels in matrices(mesh).items():
        for suffix in ('', '_scale', '_bias'):
            if f'{kernels[0]}{suffix}' in stacks:
                _hand_over(layers, f'{name}{suffix}', [stacks.pop(f'{k}{suffix}') for k in kernels], dtype, owned)
    for name, stack in stacks.items():  # norms, experts
        _hand_over(layers, name, [stack], jnp.float32 if name == 'router' else dtype, owned)
    flat = {name: _cast(w, dtype) for name, w in params.items() if name != 'layers'}
    return {**flat, 'layers': layers, 'head': _cast(transformer.head(params), dtype)}


def _hand_over(layers: tuple[dict, ...], name: str, stacks: list[jax.Array], dtype, owned: bool):
    for i, layer in enumerate(layers):
        layer[name] = _fused(stacks, i, dtype)
    if owned:
        for stack in stacks:
            stack.delete()


@functools.partial(jax.jit, static_argnums=1)
def _cast(w: jax.Array, dtype) -> jax.Array:
    return w if w.dtype == jnp.int8 else w.astype(dtype)


@functools.partial(jax.jit, static_argnums=2)  # a layer at a time: a program of all layers compiles for seconds
def _fused(stacks_LxN: list[jax.Array], i: int, dtype) -> jax.Array:
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
    made = [_beside(adapters, i, cfg, tuple(matrices(mesh).items()), dtype) for i in range(cfg.num_layers)]
    roles = _roles(adapters, matrices(mesh)) if len(adapters) > 1 else {}  # with one role every row uses every column
    return {**base, 'layers': tuple(layer | own | roles for layer, own in zip(base['layers'], made, strict=True))}


@functools.partial(jax.jit, static_argnums=(2, 3, 4))
def _beside(adapters: Sequence[dict], i: int, cfg: ModelConfig, matrices, dtype) -> dict:
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
                    a.append(_layer(adapter[f'{part}_lora_a'], i).astype(dtype))
                    b.append(jnp.pad(_layer(adapter[f'{part}_lora_b'], i).astype(dtype), ((0, 0), beside)))
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

    def made(params, adapters):
        return with_adapters(base_layout(params, mesh, dtype=dtype), adapters, cfg, mesh, dtype=dtype)

    def placed(array, *axes):
        return jax.ShapeDtypeStruct(array.shape, array.dtype, sharding=NamedSharding(mesh, PartitionSpec(*axes)))

    def spec(name: str) -> tuple:
        matrix, lora_, part = name.partition('_lora_')
        for fused, (first, *_) in matrices(mesh).items():
            if matrix == fused and lora_:
                row, column = params['layers'][first].sharding.spec[1:]
                return (row, None) if part == 'a' else (None, column)
            if matrix.removesuffix('_bias').removesuffix('_scale') == fused:
                return params['layers'][matrix.replace(fused, first)].sharding.spec[1:]
        return params['layers'][name].sharding.spec[1:]

    whole, embed = jax.eval_shape(made, params, adapters), params['embed'].sharding.spec
    flat = {name: placed(whole[name], *params[name].sharding.spec) for name in params if name != 'layers'}
    layers = tuple(
        {name: w if name.endswith('_lora_role') else placed(w, *spec(name)) for name, w in layer.items()}
        for layer in whole['layers']
    )
    return {'head': placed(whole['head'], *embed[::-1]), **flat, 'layers': layers}


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
        with jax.set_mesh(self._mesh):
            base, self._adapters[role] = split_adapter(lora.merged(params) if self._merges else params)
            if self._base is None and 'embed' in base:
                self._base = base_layout(base, self._mesh, dtype=self._dtype, owned=owned)

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
