"""What the compilers of real targets make of our programs: `pip install -e '.[test,cuda]'`, `pytest -m targets`.

No GPU is needed. The same for TPUs: docs/plans.md.
"""

import functools
import importlib.util

import jax
import pytest

from configs import qwen2_5_3b, qwen2_5_7b
from zerosearch_jax import experiment, sharding
from zerosearch_jax.tools import compiled, hardware, programs

pytestmark = [
    pytest.mark.targets,
    pytest.mark.skipif(not importlib.util.find_spec('jax_cuda12_plugin'), reason="needs pip install -e '.[cuda]'"),
]
CONFIGS = {'3b': qwen2_5_3b, '7b': qwen2_5_7b}


@functools.cache
def run(name):
    """The published run on 8 A100s: its configuration and its programs."""
    target = hardware.parse('a100-80gb:8')
    found, compiler = hardware.devices(target)
    assert compiler == 'XLA:GPU'
    cfg = experiment.parse(CONFIGS[name].get_config())
    return cfg, programs.of(cfg, sharding.make_mesh(cfg.mesh, found))


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


@pytest.mark.parametrize('name', CONFIGS)
def test_the_published_runs_fit(name):
    _, whole = run(name)
    total = sum(whole.resident.values())
    for program in whole.programs:
        memory = made_of(name, program.name).memory_analysis()
        own = memory.temp_size_in_bytes + memory.output_size_in_bytes - memory.alias_size_in_bytes
        assert total - program.arguments + memory.argument_size_in_bytes + own < 0.5 * 80 * 2**30, program.name


@pytest.mark.parametrize('role', ['policy', 'simulator'])
@pytest.mark.parametrize('name', CONFIGS)
def test_a_decode_step_moves_activations_alone(name, role):
    """Of each layer: queries, keys and values, the attention's output, the MLP's inner activations, two norms."""
    cfg, whole = run(name)
    model = programs.model_config(getattr(cfg, role).model)
    rows, width = whole.slots[role], model.num_heads * model.head_dim
    kv = 2 * model.num_kv_heads * model.head_dim
    layer = 2 * (width + kv + 2 * model.mlp_size) + width + 2 * 2 * 2 * 2  # all-reduces count twice
    expected = rows * 2 * 7 / 8 * (model.num_layers * layer + 2 * 2 * model.vocab_size)
    found = moved(name, f'{role}: decoding')
    assert {one.axes for one in found} == {'fsdp'}
    assert sum(one.times * one.received for one in found) < 1.1 * expected
    per_layer = sum(one.times for one in found if 'while/body' in one.operation) / model.num_layers
    assert per_layer <= 9, per_layer


@pytest.mark.parametrize('name', CONFIGS)
def test_an_update_gathers_a_layer_at_a_time(name):
    """Kernels are gathered twice a layer and micro-batch, gradients reduced once; no table is in a loop over chunks."""
    cfg, _ = run(name)
    model = programs.model_config(cfg.policy.model)
    micro = -(-cfg.rollout.questions * cfg.rollout.group // cfg.rl.rows_per_micro)
    found = moved(name, 'update')
    kernels = [one for one in found if model.mlp_size in elements(one) and model.hidden_size in elements(one)]
    gathers = [one for one in kernels if one.kind == 'all-gather']
    assert sum(one.times for one in gathers) <= 2 * 3 * model.num_layers * micro
    tables = [one for one in found if model.vocab_size in elements(one)]
    assert max(one.times for one in tables) <= micro
    largest = max(one.received for one in found if one not in tables)
    assert largest <= 4 * 2 * 2 * model.hidden_size * model.mlp_size  # no two layers at once
