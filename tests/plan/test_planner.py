"""The planner on fake CPU devices: its figures are the compiler's, fall with the mesh, and its verdict follows."""

import dataclasses
import functools
import math
import types

import jax
import jax.numpy as jnp
import pytest
from jax.experimental import pallas

from configs import tiny
from zerosearch_jax import sharding
from zerosearch_jax.generate import serving
from zerosearch_jax.models import cache as kv
from zerosearch_jax.models import experts, lora, transformer
from zerosearch_jax.models.config import PRESETS
from zerosearch_jax.models.transformer import TOKENS
from zerosearch_jax.plan import compiled, hardware, planner, programs, report, schedule
from zerosearch_jax.rollout.rewards import RewardConfig
from zerosearch_jax.sharding import make_mesh
from zerosearch_jax.train import config as train_config
from zerosearch_jax.train.trainer import Trainer

TARGET = hardware.parse('a100-80gb:8')


@pytest.fixture(autouse=True)
def plans_of_these_tests(monkeypatch, tmp_path_factory):
    monkeypatch.setenv('ZEROSEARCH_CACHE', str(tmp_path_factory.getbasetemp() / 'plan_cache'))


def config(mesh, **rl):
    made = tiny.get_config()
    made.policy.lora_rank = 0
    made.rollout.slots = made.simulator.slots = 8
    made.rl.update(rows_per_micro=8, **rl)
    made.mesh = mesh
    return train_config.parse(made)


def planned(mesh, **rl):
    return planner.plan(config(mesh, **rl), TARGET, *hardware.devices(TARGET))


# ---------------------------------------------------------------- mesh


@pytest.mark.parametrize(
    ('mesh', 'target', 'expected', 'said'),
    [
        ((1, 8, 1), 'v5e:4x4', (1, 16, 1), '--config.mesh=1,16,1 --config.rl.rows_per_micro=16'),
        ((1, 8, 1), 'v5e:16x16', (4, 64, 1), '--config.mesh=4,64,1 --config.rl.rows_per_micro=256'),
        ((1, 4, 2), 'v5e:2x2', (1, 2, 2), '--config.mesh=1,2,2'),
        ((1, 8, 1), 'a100-80gb:8', (1, 8, 1), ''),
        ((1, -1, 1), 'v5e:4x4', (1, -1, 1), ''),
    ],
)
def test_the_mesh_is_fitted_to_the_target_and_said(mesh, target, expected, said):
    given, target = config(mesh), hardware.parse(target)
    made = planner.fitted(given, target)
    assert made.mesh == expected and (made == given) == (not said)
    assert said in planner.options(made, given)
    if said:
        assert math.prod(made.mesh) == target.count and made.rl.rows_per_micro % (expected[0] * expected[1]) == 0


# ---------------------------------------------------------------- memory


@pytest.mark.thorough
def test_memory_falls_with_the_devices_that_hold_the_weights():
    one, eight = planned((1, 1, 1)), planned((1, 8, 1))
    for name in ('policy', 'optimizer', 'reference', 'simulator', 'simulator cache'):
        assert eight.resident[name] == pytest.approx(one.resident[name] / 8, rel=0.05), name  # norms are on all
    assert eight.generating['policy cache'] == pytest.approx(one.generating['policy cache'] / 8)
    assert eight.compiler.startswith('XLA:CPU') and eight.peak < one.peak / 4


def generating_on(cfg, policy, simulator=()):
    rollout = dataclasses.replace(cfg.rollout, mesh=policy)
    return dataclasses.replace(cfg, rollout=rollout, simulator=dataclasses.replace(cfg.simulator, mesh=simulator))


@pytest.mark.thorough
@pytest.mark.parametrize('meshes', [((), ()), ((8, 1, 1), (2, 1, 4))], ids=str)
def test_what_is_resident_is_what_a_run_holds(tmp_path, meshes):
    cfg = generating_on(config((1, 4, 2)), *meshes)
    made = planner.plan(cfg, TARGET, *hardware.devices(TARGET))
    trainer = Trainer(cfg, tmp_path)
    trainer.load_simulator()
    on = trainer.policy_engine.mesh.devices.shape, trainer.simulator.engine.mesh.devices.shape
    assert on == tuple(mesh or (1, 4, 2) for mesh in meshes)

    def held(tree):
        return sum(x.addressable_shards[0].data.nbytes for x in jax.tree.leaves(tree))

    state = trainer.learner.state['policy']
    assert made.resident['policy'] == held(state.params)
    assert made.resident['optimizer'] == held(state.opt_state)
    assert made.resident['reference'] == held(trainer.learner._reference)
    assert made.resident['simulator cache'] == held(trainer.simulator.engine._slots._cache)
    assert made.resident['simulator'] == held(trainer.simulator.engine._slots._weights.get([0]))
    slots = trainer.policy_engine._slots
    assert slots._cache is None
    trainer.policy_engine.load(trainer.learner.policy_params)
    generating = {'policy to generate with': held(slots._weights.get([0])), 'policy cache': held(slots._cache)}
    assert made.generating == generating
    trainer.policy_engine.unload()
    assert slots._cache is None


@pytest.mark.parametrize('rank', [0, 4])
@pytest.mark.parametrize('shape', [(1, 4, 2), (2, 1, 4), (8, 1, 1)], ids=str)
def test_weights_to_generate_with_are_split_as_the_plan_says(rank, shape):
    """On the mesh that they come from, and on others."""
    cfg, mesh = PRESETS['tiny'], sharding.make_mesh((1, 4, 2))
    layouts = [transformer.layout(cfg), *([lora.layout(cfg, rank)] if rank else [])]
    real = functools.reduce(lora.combine, (sharding.init(one, jax.random.key(0), mesh) for one in layouts))
    abstract = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), real)
    base, adapter = serving.split_adapter(abstract)
    to = sharding.make_mesh(shape)
    expected = serving.abstract(base, [adapter], cfg, to, dtype='bfloat16')
    base, adapter = serving.split_adapter(real)
    served = serving.base_layout(base, cfg, to, dtype='bfloat16')
    made = serving.with_adapters(served, [adapter], cfg, to, dtype='bfloat16')
    assert jax.tree.structure(made) == jax.tree.structure(expected)
    for (path, got), want in zip(jax.tree.leaves_with_path(made), jax.tree.leaves(expected), strict=True):
        assert (got.shape, got.dtype) == (want.shape, want.dtype), path
        assert got.sharding.is_equivalent_to(want.sharding, got.ndim), path


@pytest.mark.thorough
@pytest.mark.parametrize(('trunk', 'rank'), [('own', 0), ('own', 4), ('shared', 0)])
def test_a_critic_is_counted(tmp_path, trunk, rank):
    cfg = config((1, 4, 2), algorithm='ppo')
    cfg = dataclasses.replace(cfg, critic=dataclasses.replace(cfg.critic, trunk=trunk, lora_rank=rank))
    made = programs.run_programs(cfg, sharding.make_mesh(cfg.mesh))
    learner = Trainer(cfg, tmp_path).learner
    kept = jax.tree.leaves((learner.state['critic'], learner._critic_frozen))
    assert made.resident['critic'] == sum(x.addressable_shards[0].data.nbytes for x in kept)
    assert {'critic: values', 'critic: update'} <= {program.name for program in made.programs}
    assert planner.plan(cfg, TARGET, *hardware.devices(TARGET)).seconds('critic') > 0


def test_states_are_made_outside_the_mesh_of_devices_that_only_compile(monkeypatch):
    cfg, made, within = config((1, 4, 2), algorithm='ppo'), [], programs.abstract_state

    def abstract_state(*given):
        made.append(jax.sharding.get_abstract_mesh().empty)
        return within(*given)

    monkeypatch.setattr(programs, 'abstract_state', abstract_state)
    programs.run_programs(cfg, sharding.make_mesh(cfg.mesh))
    assert made == [True, True]  # of the policy and of the critic: optax makes a number of its own


@pytest.mark.thorough
@pytest.mark.parametrize('same', [True, False])
def test_the_weights_of_a_whole_policy_are_in_memory_as_often_as_the_plan_says(tmp_path, same):
    cfg = config((1, 1, 1), kl=0.0)
    if not same:
        cfg = dataclasses.replace(cfg, simulator=dataclasses.replace(cfg.simulator, kind='engine'))
    there = jax.live_arrays()  # kept, so that no other gets their ids
    before = {id(x) for x in there}
    trainer = Trainer(cfg, tmp_path)
    shape = trainer.learner.state['policy'].params['embed'].shape
    held = [x for x in jax.live_arrays() if id(x) not in before and x.shape == shape and x.dtype == 'float32']
    assert len(held) == 3 + same  # weights, two moments, and what the simulator is made of
    del held
    trainer.load_simulator()
    held = [x for x in jax.live_arrays() if id(x) not in before and x.shape == shape and x.dtype == 'float32']
    assert len(held) == 3 + same  # its copy instead
    trainer.collect(1, 0.0)
    assert trainer.policy_engine._slots._weights._base is None
    trainer.evaluate(trainer.test_questions)
    assert trainer.policy_engine._slots._weights._base is None


def test_slots_are_those_that_the_memory_for_the_cache_holds():
    cfg = config((1, 4, 2))
    one = programs.size(kv.abstract(programs.PRESETS['tiny'], make_mesh((1, 4, 2)), 4, 2 * 1024 - 128, 'float32'))
    rollout = dataclasses.replace(cfg.rollout, cache_gib=1.5 * one / 2**30)
    run = programs.run_programs(dataclasses.replace(cfg, rollout=rollout), make_mesh((1, 4, 2)))
    assert run.slots == {'policy': 4, 'simulator': 8}


@pytest.mark.thorough
def test_the_verdict_says_what_is_missing_and_what_to_try():
    made, cfg = planned((1, 1, 1)), config((1, 1, 1))
    work = planner.Workload.of(cfg)
    assert 'It fits: ' in report.table(made, TARGET, cfg, work)
    short = dataclasses.replace(made, memory=int(made.peak / (1 - planner.RESERVE)) - 2**28)
    assert -short.spare == pytest.approx(2**28 * (1 - planner.RESERVE), rel=0.01)
    said = report.table(short, TARGET, cfg, work)
    assert 'It does not fit' in said and '0.23 GiB are missing' in said
    assert 'policy.lora_rank=32' in said and 'mesh=1,2,1' in said
    assert 'mesh=1,16,4' in report.table(dataclasses.replace(short, mesh=(1, 64, 1)), TARGET, cfg, work)


def test_a_program_that_the_compiler_refuses_is_told_and_no_crash():
    class Lowered:
        def compile(self):
            raise jax.errors.JaxRuntimeError(
                'RESOURCE_EXHAUSTED: CompileTimeHbmOom: Ran out of memory on HBM, the total memory required for HLO '
                'temporaries (15.90G) exceeds available HBM (15.75G).'
            )

    made = compiled._compile(Lowered(), None)
    assert made == compiled.Compiled(0, int(15.9 * 2**30), {}, refused=True)
    plenty = planned((1, 1, 1))
    needs = (dataclasses.replace(plenty.needs[0], refused=True), *plenty.needs[1:])
    assert plenty.fits and not dataclasses.replace(plenty, needs=needs).fits
    other = types.SimpleNamespace(compile=lambda: (_ for _ in ()).throw(jax.errors.JaxRuntimeError('INTERNAL')))
    with pytest.raises(jax.errors.JaxRuntimeError, match='INTERNAL'):
        compiled._compile(other, None)


def test_a_program_is_compiled_once_for_a_target(tmp_path):
    mesh = make_mesh((1, 8, 1))
    x = jax.ShapeDtypeStruct((8, 64), jnp.float32, sharding=sharding.named(mesh, 'batch', None))

    def lowered(f):
        with jax.set_mesh(mesh):
            return jax.jit(f).lower(x)

    first = compiled.measure(lowered(jnp.sum), mesh, 'c', tmp_path)
    (file,) = tmp_path.iterdir()
    file.write_text(file.read_text().replace(f'"own": {first.own}', '"own": 7'))
    assert compiled.measure(lowered(jnp.sum), mesh, 'c', tmp_path).own == 7
    assert compiled.measure(lowered(jnp.sum), mesh, 'another', tmp_path) == first
    assert compiled.measure(lowered(jnp.max), mesh, 'c', tmp_path).own != 7


# ---------------------------------------------------------------- arithmetic and what moves


def test_operations_are_counted_through_loops_branches_and_gradients():
    w = jnp.ones((16, 32))

    def f(x):
        def layer(x, _):
            return jax.lax.cond(x[0, 0] > 0, lambda: (x @ w) @ w.T, lambda: x), None

        x = jax.lax.scan(jax.checkpoint(layer), x, None, length=5)[0]
        return jax.lax.while_loop(lambda x: x[0, 0] < 0, lambda x: x @ w @ w.T, x).sum()

    x, one = jnp.ones((8, 16)), 2 * 8 * 16 * 32
    assert compiled.flops(jax.jit(f).trace(x)) == (5 + 1) * 2 * one
    assert compiled.flops(jax.jit(f).trace(x), turns=3) == (5 + 3) * 2 * one
    forward = jax.jit(jax.grad(lambda x: ((x @ w) @ w.T).sum())).trace(x)
    assert compiled.flops(forward) == 2 * one + 2 * one  # w gets no gradient


def test_operations_of_experts_and_of_every_device_are_counted():
    """A token passes through two of six experts; the mesh divides the work, and the sum over devices is the same."""
    cfg = dataclasses.replace(PRESETS['tiny'], mlp_size=32, num_experts=6, experts_per_token=2)
    abstract = {name: jax.ShapeDtypeStruct(p.shape[1:], jnp.float32) for name, p in experts.layout(cfg).items()}
    x = jax.ShapeDtypeStruct((8, 4, cfg.hidden_size), jnp.float32)
    tokens, router = 8 * 4, 2 * cfg.hidden_size * cfg.num_experts
    of_experts = 2 * 3 * 2 * cfg.hidden_size * cfg.mlp_size  # two, of three products each
    for shape, axes in [((1, 1, 1), TOKENS), ((2, 2, 2), TOKENS), ((2, 2, 2), ('rows', None, 'embed'))]:
        mesh = make_mesh(shape)
        copies = mesh.shape['tensor']  # of what the axis does not split: the router
        run = functools.partial(experts.mlp, cfg=cfg, axes=axes)
        with jax.set_mesh(mesh):
            assert compiled.flops(jax.jit(run).trace(abstract, x)) == tokens * (of_experts + copies * router)
            back = jax.jit(jax.grad(lambda *given, run=run: run(*given).sum(), (0, 1))).trace(abstract, x)
        assert compiled.flops(back) == 3 * tokens * (of_experts + copies * router)


def test_operations_inside_a_kernel_are_not_counted_by_its_text():
    """Its loops run as often as its grid and its data say, which the text does not."""

    def kernel(x, out):
        out[...] = x[...] @ x[...]

    square = jax.ShapeDtypeStruct((8, 8), jnp.float32)
    run = pallas.pallas_call(kernel, out_shape=square, interpret=True)
    assert compiled.flops(jax.jit(lambda x: run(x) @ x).trace(square)) == 2 * 8**3


@pytest.mark.targets
def test_operations_of_fused_attention_are_counted():
    pytest.importorskip('jax_cuda12_plugin')
    q, k = jnp.ones((2, 8, 4, 16), jnp.bfloat16), jnp.ones((2, 32, 2, 16), jnp.bfloat16)

    def attend(q, **how):
        return jax.nn.dot_product_attention(q, k, k, implementation='cudnn', **how).sum()

    square = 2 * 4 * 8 * 32 * 16 * 2  # of queries and keys, in every head
    assert compiled.flops(jax.jit(attend).trace(q)) == 2 * square
    assert compiled.flops(jax.jit(functools.partial(attend, is_causal=True)).trace(q)) == square
    assert compiled.flops(jax.jit(attend).trace(q), read=0.25) == square / 2
    assert compiled.flops(jax.jit(jax.grad(attend)).trace(q)) == (2 + 5) * square


def test_what_moves_is_counted_by_axis_through_loops():
    mesh = make_mesh((1, 4, 2))
    x = jax.ShapeDtypeStruct((8, 64), jnp.float32, sharding=sharding.named(mesh, 'embed', 'mlp'))

    def turn(x, _):  # [2, 32] on each device
        summed, whole = jax.lax.psum(x, 'fsdp'), jax.lax.all_gather(x, 'tensor', axis=1, tiled=True)
        return jnp.sin(summed) + whole[:, ::2], None

    def f(x):
        return jax.lax.scan(turn, x, None, length=3)[0]

    place = jax.sharding.PartitionSpec('fsdp', 'tensor')
    with jax.set_mesh(mesh):
        program = jax.jit(jax.shard_map(f, in_specs=place, out_specs=place, check_vma=False)).lower(x).compile()
    found = compiled.collectives(program.as_text(), mesh)
    moved = {}
    for one in found:
        moved[one.axes] = moved.get(one.axes, 0) + one.times * one.received
    assert moved == {'fsdp': 3 * 2 * (2 * 32 * 4) * 3 / 4, 'tensor': 3 * (2 * 64 * 4) / 2}


@pytest.mark.parametrize(
    ('groups', 'axes', 'count'),
    [
        ('replica_groups={{0,2,4,6},{1,3,5,7}}', 'fsdp', 4),
        ('replica_groups=[2,4]<=[4,2]T(1,0)', 'fsdp', 4),
        ('replica_groups=[4,2]<=[8]', 'tensor', 2),
        ("replica_groups=mesh['axis_0'=4,'axis_1'=2] {'axis_1'}", 'tensor', 2),
        ("replica_groups=mesh['axis_0'=8] {'axis_0'}", 'fsdp+tensor', 8),
        ("replica_groups=mesh['axis_0'=2,'axis_1'=1,'axis_2'=4], device_ids=([4,2]T(1,0)) {'axis_2'}", 'fsdp', 4),
        ('source_target_pairs={{0,2},{2,4}}', 'fsdp', 2),
    ],
)
def test_groups_of_devices_are_read_in_every_notation(groups, axes, count):
    kind = 'collective-permute' if 'source' in groups else 'all-gather'
    lines = f'  %x = f32[4,10]{{1,0}} {kind}(%y), channel_id=1, {groups}, dimensions={{0}}'
    (found,) = compiled.collectives(f'ENTRY %main (y: f32[1]) -> f32[4] {{\n{lines}\n}}', make_mesh((1, 4, 2)))
    size = 160 if count == 2 and 'source' in groups else 160 * (count - 1) / count
    assert (found.kind, found.axes, found.received) == (kind, axes, size)


@pytest.mark.parametrize(
    ('returned', 'received'),
    [
        ('bf16[4,10]', 80),
        ('(bf16[4,10]{1,0}, bf16[4,10]{1,0})', 80),  # operand and result
        ('(bf16[4,10]{1,0:T(8,128)S(1)}, bf16[4,10]{1,0:T(8,128)S(1)}, u32[]{:S(2)}, u32[]{:S(2)})', 80),  # a TPU's
        ('(bf16[4,10], u32[], bf16[4,10], u32[], u32[], u32[])', 84),
        ('(u32[], u32[])', 4),
    ],
)
def test_what_a_permutation_returns_is_read_in_every_notation(returned, received):
    start = '-start' if returned.startswith('(') else ''
    line = f'  %x = {returned} collective-permute{start}(%y), channel_id=1, source_target_pairs={{{{0,2}},{{2,4}}}}'
    (found,) = compiled.collectives(f'ENTRY %main (y: f32[1]) -> f32[4] {{\n{line}\n}}', make_mesh((1, 4, 2)))
    assert (found.axes, found.received) == ('fsdp', received)


LOOP = """%condition (p: (s32[])) -> pred[] {
  %n = s32[]{:T(128)} constant(36)
  %p = (s32[]{:T(128)}) parameter(0)
  %i = s32[]{:T(128)} get-tuple-element(%p), index=0
  ROOT %lt = pred[]{:T(512)} compare(%i, %n), direction=LT
}

%body (p: (s32[])) -> (s32[]) {
  %x = f32[4,10]{1,0} all-gather(%y), channel_id=1, replica_groups=[4,2]<=[8], dimensions={0}
}

ENTRY %main (y: f32[1]) -> f32[4] {
  %loop = (s32[]{:T(128)}) while(%t), condition=%condition, body=%body
}"""


def test_a_loop_whose_length_only_its_condition_says():
    # as a TPU's compiler writes it
    (found,) = compiled.collectives(LOOP, make_mesh((1, 4, 2)))
    assert found.times == 36
    until = LOOP.replace('ROOT %lt', '%lt').replace(
        'direction=LT\n}', 'direction=LT\n  ROOT %a = pred[] and(%lt, %z)\n}'
    )
    (found,) = compiled.collectives(until, make_mesh((1, 4, 2)))
    assert found.times == 1  # it may end before


RING = """%condition (p: (f32[4], u32[])) -> pred[] {
  %n = u32[]{:T(128)} constant(8)
  %p = (f32[4]{0}, u32[]{:T(128)}) parameter(0)
  %i = u32[]{:T(128)} get-tuple-element(%p), index=1
  ROOT %lt = pred[]{:T(512)} compare(%i, %n), direction=LT
}

%body (p: (f32[4], u32[])) -> (f32[4], u32[]) {
  %two = u32[]{:T(128)} constant(2)
  %j = u32[]{:T(128)} get-tuple-element(%p), index=1
  %x = (f32[4], f32[4], u32[], u32[]) collective-permute-start(%y), channel_id=1, source_target_pairs={{0,2},{2,4}}
  %next = u32[]{:T(128)} add(%j, %two), metadata={op_name="a"}
  ROOT %t = (f32[4]{0}, /*index=1*/u32[]{:T(128)}) tuple(%z, /*index=1*/%next)
}

ENTRY %main (y: f32[1]) -> f32[4] {
  %loop = (f32[4]{0}, u32[]{:T(128)}) while(%t), condition=%condition, body=%body
}"""


def test_a_ring_counts_in_steps_of_its_own():
    # products that a TPU's compiler overlaps with the gathering of a kernel, two parts a turn
    (found,) = compiled.collectives(RING, make_mesh((1, 4, 2)))
    assert (found.times, found.received) == (4, 16)
    (found,) = compiled.collectives(RING.replace('constant(2)', 'constant(1)'), make_mesh((1, 4, 2)))
    assert found.times == 8


def while_generating(shape):
    """The collectives of what the policy's engine runs."""
    run = programs.run_programs(config(shape), make_mesh(shape))
    with jax.set_mesh(run.mesh):
        for program in run.programs:
            if program.name.startswith('policy'):
                text = program.traced.lower().compile().as_text()
                yield program.name, compiled.collectives(text, run.mesh)


@pytest.mark.thorough
@pytest.mark.parametrize('shape', [(1, 8, 1), (1, 4, 2), (2, 2, 2)], ids=str)
def test_weights_stay_where_they_are_while_a_model_generates(shape):
    """What moves is activations: at most rows x the widest of them; no kernel, no cache and no table of embeddings."""
    model = programs.PRESETS['tiny']
    table = model.vocab_size * model.hidden_size // shape[2]
    kernel = model.hidden_size * model.mlp_size // shape[2]
    for name, found in while_generating(shape):
        assert found, name
        gathers = [one for one in found if one.kind == 'all-gather']
        for one in gathers:
            elements = math.prod(map(int, one.shape[one.shape.index('[') + 1 : -1].split(',')))
            rows = 8 * (128 if 'prefill' in name else 1)
            assert elements <= rows * model.num_heads * model.head_dim, (name, one)
            assert elements not in (table, kernel), (name, one)


@pytest.mark.thorough
def test_a_policy_that_every_device_has_generates_without_the_others():
    run = programs.run_programs(generating_on(config((1, 8, 1)), (8, 1, 1)), make_mesh((1, 8, 1)))
    for program in run.programs[:2]:
        with jax.set_mesh(mesh := run.mesh_of(program)):
            text = program.traced.lower().compile().as_text()
        moved = sum(one.times * one.received for one in compiled.collectives(text, mesh))
        assert program.name.startswith('policy') and moved < 8 * 64 * 8, program.name  # results, for the host


@pytest.mark.thorough
def test_the_gradient_of_the_head_is_added_up_once_and_not_in_every_chunk():
    run = programs.run_programs(config((1, 8, 1), chunk=32), make_mesh((1, 8, 1)))
    model, update = programs.PRESETS['tiny'], run.programs[-1]
    assert update.name == 'update'
    with jax.set_mesh(run.mesh):
        text = update.traced.lower().compile().as_text()
    sums = [c for c in compiled.collectives(text, run.mesh) if c.kind in ('all-reduce', 'reduce-scatter')]
    heads = [c for c in sums if str(model.vocab_size) in c.shape and str(model.hidden_size) in c.shape]
    assert heads and not [c for c in heads if 'while/body' in c.operation.split('transpose(jvp')[-1]], heads


# ---------------------------------------------------------------- times, prices, suggestions


LEAST = {'arithmetic': 0.72, 'memory': 0.08, 'links': 0.008}
SECOND = 0.8 * 2039e9  # bytes of an A100's memory


@pytest.mark.parametrize(
    ('products', 'unread', 'standin', 'expected'),
    [
        (0.5, 0.0, False, (1.0, 0.25, 0.0)),  # products by arithmetic; the others' bytes beside it
        (2.0, 0.0, False, (0.0, 2.25, 0.0)),  # products by bytes
        (2.0, 1.5, False, (1.0, 0.25, 0.0)),  # of which so many are behind what is written
        (2.0, 0.0, True, (1.0, 0.0, 0.0)),  # a stand-in's bytes are not looked at
    ],
)
def test_a_run_is_expected_to_take_products_other_bytes_and_starts(products, unread, standin, expected):
    made = compiled.Compiled(0, 0, {}, collectives=20, kernels=1000, products=products * SECOND, others=SECOND / 4)
    found = planner._expected(made, unread * SECOND, LEAST, TARGET, standin)
    assert (found['arithmetic'], found['memory'], found['links']) == pytest.approx(expected)
    assert found['launches'] == pytest.approx(1000 * 2.2e-6) and found['collectives'] == pytest.approx(20 * 15e-6)
    slow = planner._expected(made, unread * SECOND, {**LEAST, 'links': 8.0}, TARGET, standin)
    assert slow['links'] == pytest.approx(10 - sum(expected))  # what the rest does not hide


@pytest.mark.thorough
def test_a_step_takes_what_its_programs_take_as_often_as_they_run():
    cfg = config((1, 8, 1))
    work = planner.Workload(searches=2.0, sampled=100.0, written=50.0)
    made = planner.plan(cfg, TARGET, *hardware.devices(TARGET), work)
    with pytest.raises(ValueError, match='must not be negative'):
        planner.Workload.of(cfg, searches=-1.0)
    turns = [turn for each in schedule.episodes(cfg, work) for turn in each]
    for role, load in made.loads.items():  # 4 trajectories, of one search as the run has it, in 8 slots
        assert made.times[f'{role}: decode'] == load['decodes'] and load['rows'] <= 4 * load['decodes']
        assert made.times[f'{role}: prefill'] == load['extends']
        assert load['rows'] == sum(-(-turn.sampled // 8) for turn in turns if turn.role == role)
    # a trajectory in a row of its own as planned; as it is, two share a prompt of 768 tokens
    new = min(100 + 2 * cfg.rollout.observation_tokens, cfg.rollout.response_tokens)
    used = (768 / ((1024 - 768) / new) + new) / 1024
    assert made.times['update'] == made.times['reference'] == pytest.approx(used)
    least = {need.name: max(need.seconds.values()) for need in made.needs}
    assert made.seconds() == pytest.approx(sum(made.times[name] * least[name] for name in least))
    expected = sum(made.times[need.name] * sum(need.expected.values()) for need in made.needs)
    assert planner.expected_seconds(made) == pytest.approx(expected) and expected > made.seconds()
    assert planner.expected_seconds(made, 'simulator') < expected
    twice = TARGET._replace(shape=(16,))
    assert planner.dollars(3600, TARGET, cfg) == pytest.approx(8 * 1.475)
    assert planner.dollars(3600, twice, cfg) == pytest.approx(16 * 1.475)
    said = report.table(made, TARGET, cfg, work)
    assert f'{cfg.rl.steps} steps' in said and '$' in said
    h100 = hardware.parse('h100-80gb:8')
    assert '--config.prices.h100_hour=DOLLARS' in report.table(made, h100, cfg, work)


def test_all_passes_over_a_step_are_counted():
    loads = {'policy': {'decodes': 5, 'extends': 2}}
    work = planner.Workload(searches=0, sampled=128)

    def times(**rl):
        return planner._times(config((1, 8, 1), **rl), loads, work)

    once = times()
    assert times(minibatch=2)['update'] == pytest.approx(2 * once['update'])  # each batch is half as large
    assert times(minibatch=2, epochs=3)['update'] == pytest.approx(6 * once['update'])
    assert times(minibatch=3)['update'] == times(minibatch=2)['update']  # as the learner evens them out
    assert times(epochs=3)['reference'] == once['reference'] == once['old log-probs']
    plain = programs.run_programs(config((1, 8, 1)), make_mesh((1, 8, 1)))
    extra = programs.run_programs(config((1, 8, 1), old_logprobs='trainer', minibatch=3), make_mesh((1, 8, 1)))
    assert {p.name for p in extra.programs} - {p.name for p in plain.programs} == {'old log-probs'}
    scored = next(p for p in extra.programs if p.name == 'old log-probs')
    assert scored.turns == 2 and scored.arguments == plain.resident['policy']
    informed = dataclasses.replace(config((1, 8, 1)), reward=RewardConfig(information=0.1))
    more = programs.run_programs(informed, make_mesh((1, 8, 1)))
    assert {p.name for p in more.programs} - {p.name for p in plain.programs} == {'information'}
    probed = planner._times(informed, loads, planner.Workload(searches=2, sampled=128))
    assert probed['information'] == pytest.approx(3 * probed['reference'])
    assert planner.essence(informed) != planner.essence(config((1, 8, 1)))


def test_adapters_of_one_base_have_one_engine():
    cfg = config((1, 4, 2))
    cfg = dataclasses.replace(cfg, policy=dataclasses.replace(cfg.policy, lora_rank=4))
    run, apart = (programs.run_programs(c, make_mesh((1, 4, 2))) for c in (cfg, config((1, 4, 2))))
    name = 'policy and simulator'
    assert run.engines == {name: {'policy': 8, 'simulator': 8}} and run.slots == {name: 16}
    assert apart.engines == {'policy': {'policy': 8}, 'simulator': {'simulator': 8}}
    assert [p.name for p in run.programs if name in p.name] == [
        f'{name}: prefill',
        f'{name}: decode',
    ]
    assert 'simulator' not in run.resident and run.resident[name] > 0  # it stays for the simulator
    assert run.generating == {f'{name} cache': 2 * apart.generating['policy cache']}
    loads = planner._loads(cfg, run, planner.Workload(searches=1, sampled=40, written=20))
    two = planner._loads(config((1, 4, 2)), apart, planner.Workload(searches=1, sampled=40, written=20))
    assert loads[name]['rows'] == sum(load['rows'] for load in two.values())


def test_a_policy_that_searches_itself_has_one_engine_and_no_second_model():
    def run(rank, **simulator):
        cfg = config((1, 4, 2))
        policy = dataclasses.replace(cfg.policy, lora_rank=rank)
        simulator = dataclasses.replace(cfg.simulator, **simulator)
        return programs.run_programs(dataclasses.replace(cfg, policy=policy, simulator=simulator), make_mesh((1, 4, 2)))

    name = 'policy and simulator'
    live, plain = run(0, kind='self'), run(0, kind='oracle')
    assert live.engines == {name: {'policy': 8, 'simulator': 8}}
    assert (
        live.resident == plain.resident
        and live.generating['policy to generate with'] == plain.generating['policy to generate with']
    )
    assert live.generating[f'{name} cache'] == 2 * plain.generating['policy cache']
    # a frozen copy is a model of its own, or another adapter
    for rank in (0, 4):
        frozen, model = run(rank, kind='self', live=False, model='other'), run(rank, kind='model')
        assert (frozen.resident, frozen.generating, frozen.engines) == (model.resident, model.generating, model.engines)


def test_slots_without_a_number_are_as_many_as_trajectories():
    model, mesh = programs.PRESETS['tiny'], make_mesh((1, 4, 2))
    wanted = types.SimpleNamespace(slots=0, cache_gib=0.0)
    assert programs._slots(wanted, 10, model, mesh, 1024, 'float32') == 12  # equally many on four parts
    wanted.slots = 8
    assert programs._slots(wanted, 10, model, mesh, 1024, 'float32') == 8
    made = planned((1, 8, 1))
    assert made.useful_slots('policy') == 8 < made.slots_that_fit('policy')
    fewer = dataclasses.replace(made, trajectories=10**9)
    assert fewer.useful_slots('policy') == made.slots_that_fit('policy')


def bound(part, name='policy: decode', trajectories=64, rows=8, **changes):
    """What is said of a plan in which one part of one program takes nearly all of a step."""
    made, cfg = planned((1, 8, 1)), config((1, 8, 1), **changes)
    needs = [
        dataclasses.replace(need, expected=dict.fromkeys(need.expected, 0.001) | {part: float(need.name == name)})
        for need in made.needs
    ]
    loads = {name: {'decodes': 10, 'rows': 10 * rows, 'extends': 0, 'tokens': 0} for name in made.loads}
    times = dict.fromkeys(made.times, 1.0)
    made = dataclasses.replace(made, needs=tuple(needs), loads=loads, times=times, trajectories=trajectories)
    return report.binding(made, cfg)


@pytest.mark.thorough
def test_a_sentence_says_what_binds_and_what_to_change():
    assert bound('launches') == (
        '98% of a step is policy: decode, limited by kernel launches: 8 of 8 slots decode in a call; more slots cost '
        'little and need fewer calls: set rollout.slots=64.'
    )
    assert bound('memory', trajectories=8, rows=3).endswith(
        'bytes of memory: 3 of 8 slots decode in a call; a larger rollout.questions costs little more.'
    )
    assert bound('collectives', trajectories=8).endswith(
        '; 100% of its time is exchange, rollout.mesh=8,1,1 has less, if it fits.'
    )
    simulator = bound('links', 'simulator: decode', trajectories=8)
    assert simulator.endswith('simulator.mesh=2,1,4 has less, if it fits.')  # it has four heads
    assert 'a mesh with fewer parts along fsdp' in bound('collectives', 'update')
    assert 'rl.remat=dots' in bound('arithmetic', 'update', remat='full')
    assert 'more devices' in bound('arithmetic', 'update')
    assert 'shorter prompts' in bound('arithmetic', 'policy: prefill')


def test_meshes_to_generate_on_are_said_as_options():
    cfg = config((1, 8, 1))
    copy = dataclasses.replace(cfg.simulator, kind='self', live=False, model='tiny', adapter='')
    for changed in (cfg, dataclasses.replace(cfg, simulator=copy)):  # a frozen copy of the policy has an engine too
        assert planner.generation_meshes(changed, 8) == ((8, 1, 1), (2, 1, 4))
    on = generating_on(cfg, (8, 1, 1), (2, 1, 4))
    assert planner.options(on, cfg).endswith('--config.rollout.mesh=8,1,1 --config.simulator.mesh=2,1,4')
    fitted = planner.fitted(on, hardware.parse('v5e:4x4'))  # the old meshes do not have these devices
    assert (fitted.rollout.mesh, fitted.simulator.mesh) == ((), ())
    said = planner.options(fitted, on).split()
    assert {"--config.rollout.mesh='()'", "--config.simulator.mesh='()'"} < {*said}


@pytest.mark.thorough
def test_suggestions_fit_and_say_how_to_get_them():
    cfg = config((1, 1, 1))
    found = list(planner.suggest(cfg, TARGET, *hardware.devices(TARGET), planner.Workload.of(cfg)))
    assert {changed.mesh for changed, _ in found} == {(1, 8, 1), (1, 4, 2), (1, 2, 4)}  # 4 heads: not 8
    for changed, made in found:
        assert made.fits and made.mesh == changed.mesh
        assert changed.rl.rows_per_micro == changed.mesh[1] and not changed.rollout.slots % changed.mesh[1]
        apart = {'policy': (8, 1, 1), 'simulator': (2, 1, 4)}
        assert made.meshes == (apart if changed.rollout.mesh else dict.fromkeys(apart, changed.mesh))
    said = {changed.mesh: planner.options(changed, cfg) for changed, _ in found}  # the last of each mesh
    assert said[1, 4, 2].startswith('--config.mesh=1,4,2 --config.rl.rows_per_micro=4')
    assert '--config.rollout.mesh=8,1,1' in said[1, 4, 2] and said[1, 4, 2].endswith('--config.simulator.mesh=2,1,4')
    none = TARGET._replace(chip=TARGET.chip._replace(memory_gib=1e-4))
    assert not list(planner.suggest(cfg, none, *hardware.devices(TARGET), planner.Workload.of(cfg)))


# ---------------------------------------------------------------- names


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
    assert programs.model_config(name) == programs.PRESETS[preset]


def test_what_is_unknown_is_told():
    with pytest.raises(ValueError, match='its sizes are not known'):
        programs.model_config('somebody/else-7B')
    with pytest.raises(ValueError, match='its sizes are not known'):
        programs.model_config('TinyLlama/TinyLlama-1.1B-Chat-v1.0')
    for text, message in (
        ('mi300:8', 'unknown chip'),
        ('v5e', 'how many'),
        ('v5e:4x', 'how many'),
        ('l4:0', 'how many'),
    ):
        with pytest.raises(ValueError, match=message):
            hardware.parse(text)
    with pytest.raises(ValueError, match='as many CPU devices'):
        hardware.devices(hardware.parse('a100-40gb:64'))
    assert str(hardware.parse('v5e:8x8')) == 'v5e:8x8' and hardware.parse('v5e:8x8').count == 64


# as the makers' data sheets have them: memory in GB, bfloat16 TFLOP/s without sparsity, GB/s of memory
SHEETS = {
    't4': (16, 8.1, 320),
    'a10': (24, 125, 600),
    'l4': (24, 121, 300),
    'h20': (96, 148, 4000),
    'h200': (141, 989, 4800),
    'b200': (180, 2250, 8000),
    'v5e': (16, 197, 819),
    'v5p': (95, 459, 2765),
    'v6e': (32, 918, 1640),
}


@pytest.mark.parametrize('name', SHEETS)
def test_a_chip_is_planned_with_its_data_sheet_and_its_own_price(name):
    target = hardware.parse(f'{name}:4')
    assert target.chip[:3] == SHEETS[name] and target.memory == SHEETS[name][0] * 2**30
    prices = dataclasses.replace(config((1, 1, 1)).prices, **{f'{name}_hour': 2.0})
    cfg = dataclasses.replace(config((1, 1, 1)), prices=prices)
    assert planner.dollars(3600, target, cfg) == 8
    assert planner.dollars(3600, TARGET, cfg) == pytest.approx(8 * 1.475)  # another chip's price is as it was


@pytest.mark.parametrize('name', hardware.GPUS)
def test_a_gpu_that_is_compiled_for_is_described_by_its_own_figures(name):
    told = hardware._target(hardware.parse(f'{name}:8'))
    gpu, chip = hardware.GPUS[name], hardware.CHIPS[name]
    assert f'core_count: {gpu.cores} ' in told and f'memory_bandwidth: {int(chip.memory_gbs * 1e9)} ' in told


@pytest.mark.thorough
def test_a_plan_says_in_one_line_that_a_chip_has_no_bfloat16():
    made = config((1, 1, 1))
    both = dataclasses.replace(
        made,
        policy=dataclasses.replace(made.policy, dtype='bfloat16'),
        simulator=dataclasses.replace(made.simulator, dtype='bfloat16'),
    )
    policy = dataclasses.replace(both, simulator=dataclasses.replace(both.simulator, kind='oracle'))
    t4 = hardware.parse('t4:1')
    (line,) = report._dtypes(t4, both)
    assert line.startswith('t4 has no bfloat16') and 'set policy.dtype=float32 and simulator.dtype=float32' in line
    (line,) = report._dtypes(t4, policy)
    assert 'set policy.dtype=float32, or' in line
    plan = planner.plan(both, t4, *hardware.devices(t4))
    assert 't4 has no bfloat16' in report.table(plan, t4, both, schedule.Workload.of(both))
    assert not [*report._dtypes(t4, made)] and not [*report._dtypes(TARGET, both)]
