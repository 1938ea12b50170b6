"""What a compiler reports of a program, cached by its hash: memory, kernels, and what moves between devices."""

import collections
import dataclasses
import hashlib
import json
import math
import os
import pathlib
import re
from collections.abc import Iterator, Mapping

import jax
import numpy as np
from jax.extend import core

from zerosearch_jax import sharding
from zerosearch_jax.plan import hlo
from zerosearch_jax.rl.step import own_bytes

# bytes that each of n devices receives, given the bytes of the result (for a reduce-scatter, of a device's share)
RECEIVED = {
    'all-gather': lambda size, n: size * (n - 1) / n,
    'all-reduce': lambda size, n: 2 * size * (n - 1) / n,
    'reduce-scatter': lambda size, n: size * (n - 1),
    'all-to-all': lambda size, n: size * (n - 1) / n,
    'collective-permute': lambda size, n: size,
}
READING = 4  # version of the parser of HLO text: a change of it invalidates the cache


@dataclasses.dataclass(frozen=True)
class Compiled:
    """One compiled program: bytes of each device."""

    arguments: int
    own: int  # temporaries, and results that take no argument's place
    received: Mapping[str, float]  # bytes from other devices, by mesh axes ('fsdp', 'fsdp+tensor', ...)
    collectives: int = 0
    kernels: int = 0  # hlo.Work
    products: float = 0.0
    others: float = 0.0
    refused: bool = False  # by the compiler, because it does not fit; `own` is then the size that it reports


def measure(
    lowered: jax.stages.Lowered, mesh: jax.sharding.Mesh, compiler: str, cache: pathlib.Path, turns: int = 1
) -> Compiled:
    """Compiles a program, unless the cache has it for the same target and version.

    Args:
      lowered: for the devices of `mesh`.
      mesh: collectives are reported by its axes.
      compiler: name of compiler and target; part of the key.
      cache: directory of earlier results.
      turns: iterations of a loop whose length is not known before it runs.
    """
    kind = str(mesh.devices.flat[0].device_kind)
    about = json.dumps([READING, turns, compiler, kind, jax.__version__, dict(mesh.shape)])
    digest = hashlib.sha256((about + lowered.as_text()).encode()).hexdigest()
    path = cache / f'{digest}.json'
    if path.exists():
        return Compiled(**json.loads(path.read_text()))
    made = _compile(lowered, mesh, turns)
    cache.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(f'.{os.getpid()}')
    partial.write_text(json.dumps(dataclasses.asdict(made)))
    os.replace(partial, path)
    return made


def _compile(lowered: jax.stages.Lowered, mesh: jax.sharding.Mesh, turns: int = 1) -> Compiled:
    try:
        program = lowered.compile()
    except jax.errors.JaxRuntimeError as error:  # a TPU's compiler refuses what does not fit
        named = re.search(r'([\d.]+)G\) exceeds available HBM', str(error))
        if not named:
            raise
        return Compiled(0, int(float(named[1]) * 2**30), {}, refused=True)
    received: collections.Counter = collections.Counter()
    text = program.as_text()
    found = collectives(text, mesh, turns)
    for one in found:
        received[one.axes] += one.times * one.received
    times = sum(one.times for one in found)
    arguments = program.memory_analysis().argument_size_in_bytes
    return Compiled(arguments, own_bytes(program), dict(received), times, *hlo.work(text, turns))


# ---------------------------------------------------------------- collectives


@dataclasses.dataclass(frozen=True)
class Collective:
    """One collective operation of a compiled program."""

    kind: str  # key of RECEIVED
    axes: str  # the mesh axes along which its devices differ, joined by '+'
    shape: str  # of its largest result
    received: float  # bytes that each device receives
    times: int  # how often it runs
    operation: str  # the jax operation that it belongs to (name stack)


def collectives(text: str, mesh: jax.sharding.Mesh, turns: int = 1) -> list[Collective]:
    """The collectives of compiled HLO text; `turns` is the number of iterations of a loop of unknown length.

    A TPU's compiler may put one collective into several fusions, which share its channel.
    """
    bodies, entry = hlo.computations(text)
    found: dict[str, Collective] = {}

    def walk(name: str, times: int, fused: bool = False):
        for line in bodies[name]:
            if one := _collective(line, mesh, times):
                channel = re.search(r'channel_id=(\d+)', line) if fused else None
                found[channel[0] if channel else f'{name} {line}'] = one
            for called, more in hlo.calls(line, bodies, turns):
                walk(called, times * more, fused or ' fusion(' in line)

    walk(entry, 1)
    return [one for one in found.values() if one.axes]


def _collective(line: str, mesh: jax.sharding.Mesh, times: int) -> Collective | None:
    kinds = '|'.join(RECEIVED)
    match = re.match(rf'\s*(?:ROOT )?%?\S+ = (.*?) ({kinds})(-start)?\(', line)
    if not match:
        return None
    arrays = [(kind, dims) for kind, dims in re.findall(r'(\w+)\[([\d,]*)\]', match[1]) if kind in hlo.BITS]
    if match[3] and match[2] != 'all-reduce':  # a start returns operands, results, and on TPUs two numbers more
        results = arrays[:-2] if len(arrays) > 2 and arrays[-2:] == [('u32', '')] * 2 else arrays
        arrays = results[len(results) // 2 :]
    sizes = [hlo.BITS[kind] // 8 * math.prod(map(int, filter(None, dims.split(',')))) for kind, dims in arrays]
    largest = arrays[int(np.argmax(sizes))]
    axes, count = _axes(line, mesh)
    operation = re.search(r'op_name="([^"]*)"', line)
    received = RECEIVED[match[2]](sum(sizes), count)
    shape = f'{largest[0]}[{largest[1]}]'
    return Collective(match[2], axes, shape, received, times, operation[1] if operation else '')


def _axes(line: str, mesh: jax.sharding.Mesh) -> tuple[str, int]:
    """The mesh axes along which the first group of devices differ, and their number."""
    group = _first_group(line, mesh.size)
    places = np.array(np.unravel_index(group, mesh.devices.shape))
    vary = [axis for axis, place in zip(sharding.AXES, places, strict=True) if len(set(place.tolist())) > 1]
    return '+'.join(vary), len(group)


def _first_group(line: str, count: int) -> list[int]:
    if pairs := re.search(r'source_target_pairs=\{\{(\d+),(\d+)\}', line):
        return [int(pairs[1]), int(pairs[2])]
    if listed := re.search(r'replica_groups=\{\{([\d,]+)\}', line):
        return [int(x) for x in listed[1].split(',')]
    if iota := re.search(rf'replica_groups=\[([\d,]+)\]<={_ORDER}', line):
        return _ordered(iota[2], iota[3]).reshape(int(iota[1].split(',')[0]), -1)[0].tolist()
    if named := re.search(rf'replica_groups=mesh\[([^\]]*)\](?:, device_ids=\({_ORDER}\))?\s*\{{([^}}]*)\}}', line):
        sizes = {name: int(size) for name, size in re.findall(r"'(\w+)'=(\d+)", named[1])}
        chosen = re.findall(r"'(\w+)'", named[4])
        order = _ordered(named[2] or str(math.prod(sizes.values())), named[3]).reshape(list(sizes.values()))
        picked = tuple(slice(None) if name in chosen else 0 for name in sizes)
        return order[picked].reshape(-1).tolist()
    return list(range(count))


_ORDER = r'\[([\d,]+)\](?:T\(([\d,]+)\))?'  # of devices: an iota of these sizes, transposed


def _ordered(sizes: str, transposed: str | None) -> np.ndarray:
    shape = [int(x) for x in sizes.split(',')]
    order = np.arange(math.prod(shape)).reshape(shape)
    return order.transpose([int(x) for x in transposed.split(',')]) if transposed else order


def kernels(text: str) -> int:
    """Number of kernels that compiled HLO text launches, collectives included; a loop counts every iteration."""
    return hlo.work(text).kernels


# ---------------------------------------------------------------- arithmetic


def flops(traced: jax.stages.Traced, turns: int = 1, read: float = 1.0) -> int:
    """Multiplications and additions of the matrix products of a program, summed over devices.

    Args:
      traced: jax.jit(f).trace(...).
      turns: iterations of a loop whose length is not known before it runs.
      read: share of the keys that a fused attention kernel reads: it is given the lengths of the slots.
    """
    return int(_flops(traced.jaxpr.jaxpr, turns, read))


def _flops(jaxpr: core.Jaxpr, turns: int, read: float) -> float:
    total = 0.0
    for eqn in jaxpr.eqns:
        inner = [_flops(sub, turns, read) for sub in _inside(eqn)]
        match eqn.primitive.name:
            case 'dot_general':
                (contracted, _), _ = eqn.params['dimension_numbers']
                shape = eqn.invars[0].aval.shape
                total += 2 * math.prod(eqn.outvars[0].aval.shape) * math.prod(shape[i] for i in contracted)
            case 'ragged_dot_general':  # each row by one expert's kernel; a kernel's gradient is of its own rows alone
                numbers = eqn.params['ragged_dot_dimension_numbers']
                (contracted, _), _ = numbers.dot_dimension_numbers
                groups = 1 if numbers.rhs_group_dimensions else eqn.invars[2].aval.shape[-1]
                shape = eqn.invars[0].aval.shape
                total += 2 * math.prod(eqn.outvars[0].aval.shape) * math.prod(shape[i] for i in contracted) / groups
            case 'pallas_call':  # a TPU's attention to the cache: loops of unknown lengths, limited by its bytes
                pass
            case 'shard_map':  # shapes are those of one device
                total += eqn.params['mesh'].size * sum(inner)
            case 'dot_product_attention_fwd_wrapper' | 'dot_product_attention_bwd_wrapper' as name:  # cuDNN's
                products, causal = 5 if 'bwd' in name else 2, 'CAUSAL' in str(eqn.params['mask_type'])
                queries, keys = math.prod(eqn.invars[0].aval.shape), eqn.invars[1].aval.shape[1]
                total += 2 * products * queries * keys * read / (1 + causal)
            case 'scan':
                total += eqn.params['length'] * sum(inner)
            case 'while':
                total += turns * sum(inner)
            case 'cond':
                total += max(inner)
            case _:
                total += sum(inner)
    return total


def _inside(eqn) -> Iterator[core.Jaxpr]:
    for value in eqn.params.values():
        for one in value if isinstance(value, tuple | list) else (value,):
            if isinstance(one, core.ClosedJaxpr):
                yield one.jaxpr
            elif isinstance(one, core.Jaxpr):
                yield one
