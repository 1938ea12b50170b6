"""What the compilers of real targets make of our programs: `pytest -m targets`.

No accelerator is needed, only its compiler: `pip install -e '.[test,cuda]'`, `'.[test,tpu]'`, or both. Minutes each.
"""

import functools
import importlib.util
import os
from typing import NamedTuple

import jax
import pytest

from configs import qwen2_5_3b, qwen2_5_7b
from zerosearch_jax import sharding
from zerosearch_jax.plan import compiled, hardware, programs
from zerosearch_jax.train import config as train_config

pytestmark = [pytest.mark.targets, pytest.mark.timeout(3600)]


class Case(NamedTuple):
    """A published run on some hardware."""

    config: object
    hardware: str
    mesh: tuple[int, int, int]
    gib: float  # that each device may need at most


CASES = {
    '3b on 8 A100s': Case(qwen2_5_3b, 'a100-80gb:8', (1, 8, 1), 20),
    '7b on 8 A100s': Case(qwen2_5_7b, 'a100-80gb:8', (1, 8, 1), 35),
    '3b on a v5e-64': Case(qwen2_5_3b, 'v5e:8x8', (1, 64, 1), 10),
    '7b on a v5e-64': Case(qwen2_5_7b, 'v5e:8x8', (1, 16, 4), 9),
}
COMPILERS = {'XLA:GPU': 'jax_cuda12_plugin', 'XLA:TPU': 'libtpu'}


@functools.cache
def run(name):
    """The run: its configuration and its programs."""
    case = CASES[name]
    target = hardware.parse(case.hardware)
    compiler = 'XLA:TPU' if target.chip.tpu else 'XLA:GPU'
    if not importlib.util.find_spec(COMPILERS[compiler]):
        pytest.skip(f'needs {COMPILERS[compiler]}')
    os.environ.update(hardware.TPU_ENVIRONMENT)
    found, by = hardware.devices(target)
    assert by == compiler
    made = case.config.get_config()
    made.mesh, made.rl.rows_per_micro = case.mesh, case.mesh[1]
    cfg = train_config.parse(made)
    return cfg, programs.run_programs(cfg, sharding.make_mesh(cfg.mesh, found))


@functools.cache
def made_of(name, program):
    """One of its programs, compiled."""
    _, whole = run(name)
    with jax.set_mesh(whole.mesh):
        return next(p for p in whole.programs if p.name == program).traced.lower().compile()


def moved(name, program):
    """The collectives of one program."""
    return compiled.collectives(made_of(name, program).as_text(), run(name)[1].mesh)


def elements(one):
    return [int(x) for x in one.shape[one.shape.index('[') + 1 : -1].split(',') if x]


@pytest.mark.parametrize('name', CASES)
def test_the_published_runs_fit(name):
    _, whole = run(name)
    for program in whole.programs:
        total = sum(whole.resident.values()) + whole.copy * (program.name.split(':')[0] in whole.slots)
        memory = made_of(name, program.name).memory_analysis()
        own = memory.temp_size_in_bytes + memory.output_size_in_bytes - memory.alias_size_in_bytes + program.more
        peak = total - program.arguments + memory.argument_size_in_bytes + own
        assert peak < CASES[name].gib * 2**30, (program.name, peak / 2**30)


@pytest.mark.parametrize('role', ['policy', 'simulator'])
@pytest.mark.parametrize('name', CASES)
def test_a_decode_step_moves_activations_alone(name, role):
    """Of each layer: queries, keys and values, the attention's output, the MLP's inner activations, two norms.

    Along `tensor`, which divides these, what the attention and the MLP give back.
    """
    cfg, whole = run(name)
    model = programs.model_config(getattr(cfg, role).model)
    rows, width = whole.slots[role], model.num_heads * model.head_dim
    kv = 2 * model.num_kv_heads * model.head_dim
    _, fsdp, tensor = cfg.mesh
    layer = (2 * (width + kv + 2 * model.mlp_size) + width) / tensor + 2 * 2 * 2 * 2  # all-reduces count twice
    expected = rows * 2 * (1 - 1 / fsdp) * (model.num_layers * layer + 2 * 2 * model.vocab_size / tensor)
    expected += rows * 2 * (1 - 1 / tensor) * model.num_layers * 2 * 2 * model.hidden_size / fsdp
    found = moved(name, f'{role}: decoding')
    assert {one.axes for one in found} == {axis for axis in ('fsdp', 'tensor') if whole.mesh.shape[axis] > 1}
    assert sum(one.times * one.received for one in found) < 1.1 * expected
    whole_ones = (one for one in found if one.kind != 'collective-permute')  # a TPU's compiler writes some as rings
    per_layer = sum(one.times for one in whole_ones if 'while/body' in one.operation) / model.num_layers
    assert per_layer <= 9, per_layer


@pytest.mark.parametrize('name', CASES)
def test_an_update_gathers_a_layer_at_a_time(name):
    """Kernels are gathered twice a layer and micro-batch, gradients reduced once; no table is in a loop over chunks."""
    cfg, _ = run(name)
    model = programs.model_config(cfg.policy.model)
    tensor = cfg.mesh[2]
    inner, words = model.mlp_size // tensor, model.vocab_size // tensor
    micro = -(-cfg.rollout.questions * cfg.rollout.group // cfg.rl.rows_per_micro)
    found = moved(name, 'update')
    kernels = [one for one in found if inner in elements(one) and model.hidden_size in elements(one)]
    gathers = [one for one in kernels if one.kind == 'all-gather']
    assert sum(one.times for one in gathers) <= 2 * 3 * model.num_layers * micro
    tables = [one for one in found if words in elements(one)]
    assert max(one.times for one in tables) <= micro
    largest = max(one.received for one in found if one not in tables and 'fsdp' in one.axes)
    assert largest <= 4 * 2 * 2 * model.hidden_size * inner  # no two layers at once
