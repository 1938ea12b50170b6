"""The mesh, the one table from logical to mesh axes, and trees of `Param` declarations.

Every array of the system names its dimensions with logical axes. `RULES` maps those to the mesh, whose axes are
always ('data', 'fsdp', 'tensor'), Auto, and set with `jax.set_mesh`; a single device is a 1x1x1 mesh. Nothing here
is a no-op on CPU: without a mesh `constrain` raises.
"""

import dataclasses
import json
import math
import zlib
from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

AXES = ('data', 'fsdp', 'tensor')

RULES: dict[str, tuple[str, ...]] = {
    'batch': ('data', 'fsdp'),
    'rows': ('data',),  # of activations that move to the weights (generate/programs.py)
    'vocab': ('tensor',),
    'embed': ('fsdp',),
    'heads': ('tensor',),
    'kv_heads': ('tensor',),
    'mlp': ('tensor',),
}


@dataclasses.dataclass(frozen=True)
class Param:
    """Declaration of one weight, which determines its initial value, abstract shape, sharding and loading.

    `init` is 'normal' (scaled by 1/sqrt(fan_in), the second to last dimension), 'embedding' (0.02), 'ones' or 'zeros'.
    """

    shape: tuple[int, ...]
    axes: tuple[str | None, ...]
    init: str = 'normal'


def make_mesh(shape: Sequence[int] = (1, 1, 1), devices: Sequence[jax.Device] | None = None) -> Mesh:
    """An Auto mesh with axes ('data', 'fsdp', 'tensor'); one entry of `shape` may be -1, the rest of the devices.

    Raises:
      ValueError: the shape does not fit the devices.
    """
    devices = jax.devices() if devices is None else devices
    if len(shape) != len(AXES):
        raise ValueError(f'mesh {tuple(shape)} must have three sizes: {", ".join(AXES)}')
    known = math.prod(s for s in shape if s != -1)
    if list(shape).count(-1) > 1 or known < 1 or any(s < 1 and s != -1 for s in shape):
        raise ValueError(f'mesh {tuple(shape)}: sizes must be positive, and at most one of them -1')
    if -1 in shape:
        if len(devices) % known:
            raise ValueError(f'mesh {tuple(shape)} does not fit {len(devices)} devices: {known} does not divide them')
        shape = [len(devices) // known if s == -1 else s for s in shape]
    if math.prod(shape) > len(devices):
        raise ValueError(
            f'mesh {tuple(shape)} needs {math.prod(shape)} devices, but there are {len(devices)}; '
            'set config.mesh to sizes whose product fits, or -1 for the rest'
        )
    grid = np.asarray(devices[: math.prod(shape)]).reshape(shape)
    return Mesh(grid, AXES, axis_types=(AxisType.Auto,) * len(AXES))


def regrouped(mesh: Mesh, shape: Sequence[int], field: str) -> Mesh:
    """A mesh of the same devices, in the same order, with these sizes of its axes; `()`: the mesh itself.

    Raises:
      ValueError: the sizes do not fit the devices, or leave some out; `field` is the field that has them.
    """
    if not shape:
        return mesh
    if -1 not in shape and math.prod(shape) != mesh.size:
        raise ValueError(
            f'{field} = {tuple(shape)} must have the {mesh.size} devices of config.mesh; set sizes with that product, '
            '-1 for the rest of the devices, or () for config.mesh'
        )
    try:
        return make_mesh(shape, mesh.devices.flatten())
    except ValueError as error:
        raise ValueError(f'{field}: {error}') from error


def spec(*axes: str | None) -> P:
    """Logical axes to a PartitionSpec: spec('batch', None, 'mlp') == P(('data', 'fsdp'), None, ('tensor',))."""
    return P(*(None if axis is None else RULES.get(axis) for axis in axes))


def shard_count(axis: str, mesh) -> int:
    """The number of parts of the mesh over which a logical axis is split."""
    return math.prod(mesh.shape[name] for name in RULES[axis])


def divisible_axis(axis: str, size: int, mesh) -> str | None:
    """The logical axis if the mesh divides its size, else None: every device then has a copy."""
    return None if size % shard_count(axis, mesh) else axis


def constrain(x: jax.Array, *axes: str | None) -> jax.Array:
    """Constrains the sharding of `x`, with one logical axis for each dimension, inside jit.

    Raises:
      ValueError: no mesh is set, or the number of axes differs from the rank of `x`.
    """
    if jax.sharding.get_abstract_mesh().empty:
        raise ValueError('constrain() needs a mesh: wrap the call in jax.set_mesh(sharding.make_mesh())')
    if len(axes) != x.ndim:
        raise ValueError(f'constrain() got {len(axes)} axes for an array of rank {x.ndim}')
    return jax.lax.with_sharding_constraint(x, spec(*axes))


def named(mesh: Mesh, *axes: str | None) -> NamedSharding:
    """The NamedSharding of logical axes; named(mesh) is fully replicated."""
    return NamedSharding(mesh, spec(*axes))


def is_param(x) -> bool:
    return isinstance(x, Param)


def shardings(layout: Mapping, mesh: Mesh) -> dict:
    """The sharding of every weight of a layout.

    Raises:
      ValueError: a mesh axis does not divide the dimension that it would split.
    """
    return jax.tree_util.tree_map_with_path(lambda path, p: _sharding(mesh, path, p), layout, is_leaf=is_param)


def _sharding(mesh: Mesh, path, param: Param) -> NamedSharding:
    for size, axis in zip(param.shape, param.axes, strict=True):
        parts = math.prod(mesh.shape[name] for name in RULES.get(axis, ()))
        if size % parts:
            raise ValueError(
                f'{jax.tree_util.keystr(path)} has {size} {axis}, which {parts} '
                f'({"x".join(RULES[axis])} of the mesh) does not divide; choose another mesh'
            )
    return named(mesh, *param.axes)


def abstract(layout: Mapping, mesh: Mesh, dtype=jnp.float32) -> dict:
    """ShapeDtypeStructs with shardings: the target of loading, restoring and ahead-of-time compilation."""
    return jax.tree.map(
        lambda p, s: jax.ShapeDtypeStruct(p.shape, dtype, sharding=s), layout, shardings(layout, mesh), is_leaf=is_param
    )


def init(layout: Mapping, key: jax.Array, mesh: Mesh, dtype=jnp.float32) -> dict:
    """Random weights of a layout, created sharded. A weight's value depends on its path alone."""

    def one(path, p: Param):
        if p.init in ('ones', 'zeros'):
            return jnp.full(p.shape, float(p.init == 'ones'), dtype)
        scale = 0.02 if p.init == 'embedding' else p.shape[-2] ** -0.5
        leaf_key = jax.random.fold_in(key, zlib.crc32(jax.tree_util.keystr(path).encode()))
        return (scale * jax.random.normal(leaf_key, p.shape)).astype(dtype)

    make = jax.jit(
        lambda: jax.tree_util.tree_map_with_path(one, layout, is_leaf=is_param), out_shardings=shardings(layout, mesh)
    )
    with jax.set_mesh(mesh):
        return make()


def join_processes(coordinator: str, processes: int, process: int):
    """Joins the other processes of a job, if there are any.

    Args:
      coordinator: HOST:PORT of the first process; 'auto': the cluster gives all three; '': there is one process.
      processes: number of processes.
      process: number of this process, from 0.

    Raises:
      ValueError: with these values each process would think that it is the only one, or wait for ever.
    """
    if coordinator == 'auto':
        jax.distributed.initialize()
        return
    if not coordinator and (processes, process) != (1, 0):
        raise ValueError(
            f'--processes={processes} --process={process} need --coordinator=HOST:PORT of the first process, '
            'or "auto" on a cluster that says which process is which'
        )
    host, _, port = coordinator.rpartition(':')
    if coordinator and not (host and port.isdigit()):
        raise ValueError(f'--coordinator={coordinator} must be HOST:PORT of the first process, or "auto"')
    if not 0 <= process < processes:
        raise ValueError(f'--process={process} must be one of 0 to {processes - 1}, of --processes={processes}')
    if coordinator:
        jax.distributed.initialize(coordinator, processes, process)


def to_host(x: jax.Array) -> np.ndarray:
    """The whole array on every process."""
    if jax.process_count() == 1:
        return np.asarray(x)
    from jax.experimental import multihost_utils

    return np.asarray(multihost_utils.process_allgather(x, tiled=True))


def any_process(flag: bool) -> bool:
    """Whether the flag is set on any process; equal on all processes."""
    if jax.process_count() == 1:
        return flag
    from jax.experimental import multihost_utils

    return bool(multihost_utils.process_allgather(np.asarray(flag)).any())


def from_first_process(value):
    """Process 0's JSON value on every process; the arguments of other processes are ignored."""
    if jax.process_count() == 1:
        return value
    from jax.experimental import multihost_utils

    text = np.frombuffer(json.dumps(value).encode(), np.uint8)
    size = int(multihost_utils.broadcast_one_to_all(np.int64(text.size)))
    text = np.resize(text, size) if jax.process_index() else text
    return json.loads(multihost_utils.broadcast_one_to_all(text).tobytes())
