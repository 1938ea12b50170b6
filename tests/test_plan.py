"""The planner on fake CPU devices: its figures are the compiler's, fall with the mesh, and its verdict follows."""

import dataclasses
import types

import jax
import pytest

from configs import tiny
from zerosearch_jax import experiment
from zerosearch_jax.tools import hardware, plan
from zerosearch_jax.trainer import Trainer


@pytest.fixture(autouse=True)
def tiny_by_name(monkeypatch):
    known = plan.model_config
    monkeypatch.setattr(plan, 'model_config', lambda name: plan.PRESETS['tiny'] if name == 'tiny' else known(name))


def config(mesh, **rl):
    made = tiny.get_config()
    made.policy.lora_rank = 0
    made.rollout.slots = made.simulator.slots = 8
    made.rl.update(rows_per_micro=8, **rl)
    made.mesh = mesh
    return experiment.parse(made)


def planned(mesh, **rl):
    target = hardware.parse('a100-80gb:8')
    return plan.plan(config(mesh, **rl), target, *hardware.devices(target))


def test_memory_falls_with_the_devices_that_hold_the_weights():
    one, eight = planned((1, 1, 1)), planned((1, 8, 1))
    for name in ('policy', 'optimizer', 'reference', 'simulator', 'policy cache', 'simulator cache'):
        assert eight.resident[name] == pytest.approx(one.resident[name] / 8, rel=0.05), name  # norms are on all
    assert eight.compiler.startswith('XLA:CPU') and eight.peak < one.peak / 4


def test_what_is_resident_is_what_a_run_holds(tmp_path):
    cfg = config((1, 4, 2))
    made = planned((1, 4, 2))
    trainer = Trainer(cfg, tmp_path)
    trainer.load_simulator()

    def held(tree):
        return sum(x.addressable_shards[0].data.nbytes for x in jax.tree.leaves(tree))

    state = trainer.learner.state['policy']
    assert made.resident['policy'] == held(state.params)
    assert made.resident['optimizer'] == held(state.opt_state)
    assert made.resident['reference'] == held(trainer.learner._reference)
    assert made.resident['policy cache'] == held(trainer.policy_engine._cache)
    assert made.resident['simulator cache'] == held(trainer.simulator.engine._cache)


def test_the_verdict_says_what_is_missing_and_what_to_try():
    made, target, cfg = planned((1, 1, 1)), hardware.parse('a100-80gb:8'), config((1, 1, 1))
    assert 'It fits: ' in plan.table(made, target, cfg)
    short = dataclasses.replace(made, memory=int(made.peak / (1 - plan.RESERVE)) - 2**28)
    assert -short.spare == pytest.approx(2**28 * (1 - plan.RESERVE), rel=0.01)
    said = plan.table(short, target, cfg)
    assert 'It does not fit' in said and '0.23 GiB are missing' in said
    assert 'policy.lora_rank=32' in said and 'mesh=1,2,1' in said


def test_a_program_that_the_compiler_refuses_is_a_row_and_no_crash():
    class Lowered:
        def compile(self):
            raise jax.errors.JaxRuntimeError(
                'RESOURCE_EXHAUSTED: CompileTimeHbmOom: Ran out of memory on HBM, the total memory required for HLO '
                'temporaries (15.90G) exceeds available HBM (15.75G).'
            )

    need = plan._compiled('update', Lowered(), 7)
    assert (need.name, need.arguments, need.own) == ('update (refused)', 7, int(15.9 * 2**30))
    other = types.SimpleNamespace(compile=lambda: (_ for _ in ()).throw(jax.errors.JaxRuntimeError('INTERNAL')))
    with pytest.raises(jax.errors.JaxRuntimeError, match='INTERNAL'):
        plan._compiled('update', other, 7)


@pytest.mark.parametrize(
    ('name', 'preset'),
    [
        ('Qwen/Qwen2.5-7B-Instruct', 'qwen2.5-7b'),
        ('meta-llama/Llama-3.2-3B', 'llama3.2-3b'),
        ('smollm2-135m-instruct', 'smollm2-135m'),
        ('Alibaba-NLP/Simulation_LLM_google_14B_V2', 'qwen2.5-14b'),
        ('Qwen/Qwen3-0.6B', 'qwen3-0.6b'),
    ],
)
def test_a_model_is_known_by_its_name(name, preset):
    assert plan.model_config(name) == plan.PRESETS[preset]


def test_what_is_unknown_is_told():
    with pytest.raises(ValueError, match='sizes unknown'):
        plan.model_config('somebody/else-7B')
    for text, message in (
        ('b200:8', 'unknown chip'),
        ('v5e', 'how many'),
        ('v5e:4x', 'how many'),
        ('l4:0', 'how many'),
    ):
        with pytest.raises(ValueError, match=message):
            hardware.parse(text)
    with pytest.raises(ValueError, match='as many CPU devices'):
        hardware.devices(hardware.parse('a100-80gb:64'))
    assert str(hardware.parse('v5e:8x8')) == 'v5e:8x8' and hardware.parse('v5e:8x8').count == 64
