"""What the compilers of real targets make of our programs: `pytest -m targets`.

No accelerator is needed, only its compiler: `pip install -e '.[test,cuda]'`, `'.[test,tpu]'`, or both. Minutes each.
"""

import dataclasses
import functools
import importlib.util
import math
import os
import re
from typing import NamedTuple

import jax
import numpy as np
import pytest

from configs import qwen2_5_3b, qwen2_5_7b
from zerosearch_jax import sharding
from zerosearch_jax.generate import programs as generation
from zerosearch_jax.generate import serving
from zerosearch_jax.models import cache as kv
from zerosearch_jax.models import transformer
from zerosearch_jax.models.config import PRESETS
from zerosearch_jax.plan import compiled, hardware, hlo, programs
from zerosearch_jax.train import config as train_config

pytestmark = [pytest.mark.targets, pytest.mark.timeout(3600)]


class Case(NamedTuple):
    """A published run on some hardware."""

    config: object
    hardware: str
    mesh: tuple[int, int, int]
    gib: float  # that each device may need at most


CASES = {
    '3b on 8 A100s': Case(qwen2_5_3b, 'a100-80gb:8', (1, 8, 1), 34),
    '7b on 8 A100s': Case(qwen2_5_7b, 'a100-80gb:8', (1, 8, 1), 53),
    '3b on a v5e-64': Case(qwen2_5_3b, 'v5e:8x8', (1, 64, 1), 10),
    '7b on a v5e-64': Case(qwen2_5_7b, 'v5e:8x8', (1, 16, 4), 9),
}
COMPILERS = {'XLA:GPU': 'jax_cuda12_plugin', 'XLA:TPU': 'libtpu'}


def devices(name):
    target = hardware.parse(name)
    compiler = 'XLA:TPU' if target.chip.tpu else 'XLA:GPU'
    if not importlib.util.find_spec(COMPILERS[compiler]):
        pytest.skip(f'needs {COMPILERS[compiler]}')
    os.environ.update(hardware.TPU_ENVIRONMENT)
    found, by = hardware.devices(target)
    assert by == compiler
    return found


@functools.cache
def run(name):
    """The run: its configuration and its programs."""
    case = CASES[name]
    made = case.config.get_config()
    made.mesh, made.rl.rows_per_micro = case.mesh, case.mesh[1]
    cfg = train_config.parse(made)
    return cfg, programs.run_programs(cfg, sharding.make_mesh(cfg.mesh, devices(case.hardware)))


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
        generates = program.name.split(':')[0] in whole.slots
        total = sum(whole.resident.values()) + sum(whole.generating.values()) * generates
        memory = made_of(name, program.name).memory_analysis()
        own = memory.temp_size_in_bytes + memory.output_size_in_bytes - memory.alias_size_in_bytes
        peak = total - program.arguments + memory.argument_size_in_bytes + own
        assert peak < CASES[name].gib * 2**30, (program.name, peak / 2**30)


def activations(model, rows, mesh):
    """Bytes of activations that a decode step moves to each device."""
    width, kv = model.num_heads * model.head_dim, 2 * model.num_kv_heads * model.head_dim
    _, fsdp, tensor = mesh
    layer = (2 * (width + kv + 2 * model.mlp_size) + width) / tensor + 2 * 2 * 2 * 2  # all-reduces count twice
    along_fsdp = 2 * (1 - 1 / fsdp) * (model.num_layers * layer + 2 * 2 * model.vocab_size / tensor)
    return rows * (along_fsdp + 2 * (1 - 1 / tensor) * model.num_layers * 2 * 2 * model.hidden_size / fsdp)


def test_on_meshes_to_generate_on_the_policy_moves_nothing_and_the_simulator_two_sums_a_layer():
    cfg, whole = run('3b on 8 A100s')
    rollout = dataclasses.replace(cfg.rollout, mesh=(8, 1, 1))
    cfg = dataclasses.replace(cfg, rollout=rollout, simulator=dataclasses.replace(cfg.simulator, mesh=(1, 1, 8)))
    own, received, sums = programs.run_programs(cfg, whole.mesh), {}, {}
    for program in own.programs:
        if program.name.endswith('decode'):
            with jax.set_mesh(mesh := own.mesh_of(program)):
                found = compiled.collectives(program.traced.lower().compile().as_text(), mesh)
            received[program.name] = sum(one.times * one.received for one in found)
            sums[program.name] = sum(one.times for one in found if 'while/body' in one.operation)
    model, steps = programs.model_config(cfg.simulator.model), cfg.rollout.decode_steps
    assert received['policy: decode'] < own.slots['policy'] * steps * 16  # what was sampled, for the host
    logits = own.slots['simulator'] * 2 * (1 - 1 / 8) * model.vocab_size  # gathered, so that every device samples
    expected = (activations(model, own.slots['simulator'], (1, 1, 8)) + logits) * steps
    assert expected / 2 < received['simulator: decode'] < 1.1 * expected
    assert sums['policy: decode'] == 0 and sums['simulator: decode'] <= 2.2 * model.num_layers * steps, sums


@pytest.mark.parametrize('role', ['policy', 'simulator'])
@pytest.mark.parametrize('name', CASES)
def test_a_decode_step_moves_activations_alone(name, role):
    """Of each layer: queries, keys and values, the attention's output, the MLP's inner activations, two norms.

    Along `tensor`, which divides these, what the attention and the MLP give back.
    """
    cfg, whole = run(name)
    model = programs.model_config(getattr(cfg, role).model)
    expected = activations(model, whole.slots[role], cfg.mesh) * cfg.rollout.decode_steps  # of a call
    found = moved(name, f'{role}: decode')
    assert {one.axes for one in found} == {axis for axis in ('fsdp', 'tensor') if whole.mesh.shape[axis] > 1}
    assert sum(one.times * one.received for one in found) < 1.1 * expected
    whole_ones = (one for one in found if one.kind != 'collective-permute')  # a TPU's compiler writes some as rings
    per_call = sum(one.times for one in whole_ones if 'while/body' in one.operation)
    assert per_call <= 9 * model.num_layers * cfg.rollout.decode_steps, per_call


@pytest.mark.parametrize('name', CASES)
def test_an_update_gathers_a_layer_at_a_time(name):
    """Kernels are gathered twice a layer and micro-batch, gradients reduced once; no table is in a loop over chunks.

    A micro-batch is gathered at most once, for the gradient of a table of embeddings that is split both ways.
    """
    cfg, _ = run(name)
    model = programs.model_config(cfg.policy.model)
    tensor, whole = cfg.mesh[2], {cfg.rl.rows_per_micro, cfg.rl.row_length, model.hidden_size}
    inner, words = model.mlp_size // tensor, model.vocab_size // tensor
    micro = -(-cfg.rollout.questions * cfg.rollout.group // cfg.rl.rows_per_micro)
    found = moved(name, 'update')
    kernels = [one for one in found if inner in elements(one) and model.hidden_size in elements(one)]
    gathers = [one for one in kernels if one.kind == 'all-gather']
    assert sum(one.times for one in gathers) <= 2 * 3 * model.num_layers * micro
    tables = [one for one in found if words in elements(one)]
    assert max(one.times for one in tables) <= micro
    batches = [one for one in found if whole <= {*elements(one)}]
    assert sum(one.times for one in batches) <= micro
    largest = max(one.received for one in found if one not in (*tables, *batches) and 'fsdp' in one.axes)
    assert largest <= 4 * 2 * 2 * model.hidden_size * inner  # no two layers at once


# ---------------------------------------------------------------- generation, of 1.5 billion parameters

STEPS, SMALL = 16, PRESETS['qwen2.5-1.5b']
FORMS = {
    'h100-80gb:1': 'cudnn',
    'h100-80gb:4': 'cudnn',
    'a100-80gb:1': 'cudnn',
    'v5e:1x1': 'ragged',
    'v6e:1x1': 'ragged',
}


@functools.cache
def generating(hardware_name, program, slots, capacity, span=None):
    """The text of a compiled program in bfloat16 on one device, or four."""
    found = devices(hardware_name)
    mesh = sharding.make_mesh((1, 1, 1) if len(found) == 1 else (1, 2, 2), found)
    assert kv.choose(SMALL, 'bfloat16', mesh) == FORMS[hardware_name]

    def array(*shape, kind=np.int32):
        return jax.ShapeDtypeStruct(shape, kind, sharding=sharding.named(mesh))

    with jax.set_mesh(mesh):
        base = sharding.abstract(transformer.layout(SMALL), mesh)
        params = serving.abstract(base, [{}], SMALL, mesh, dtype='bfloat16')
        cache = kv.abstract(SMALL, mesh, slots, capacity, 'bfloat16')
        if program == 'extend':
            each, tokens = array(1, 8), array(1, 8, 128)
            lowered = generation.extend.lower(
                params, cache, each, tokens, each, each, each, cfg=SMALL, dtype='bfloat16', span=span
            )
        else:
            rows = jax.tree.map(lambda x: array(*x.shape, kind=x.dtype), generation.idle_rows(slots))
            table = array(8, SMALL.vocab_size)
            sizes = dict(cfg=SMALL, dtype='bfloat16', steps=STEPS, span=capacity, eos_ids=(0,), first_accept=6)
            lowered = generation.decode.lower(params, cache, rows, None, table, **sizes)
        return lowered.compile().as_text()


class Line(NamedTuple):
    """An instruction of compiled text."""

    kind: str
    size: int  # bytes of its result
    operands: list[str]
    text: str


def instructions(text):
    """{computation: {name: Line}}, and the name of the entry."""
    bodies, entry = hlo.computations(text)
    found = {name: {} for name in bodies}
    for computation, lines in bodies.items():
        for line in lines:
            if made := re.match(r'\s*(?:ROOT )?%?([\w.-]+) = (.*?) ([a-z][\w-]*)\(([^)]*)\)', line):
                arrays = re.findall(r'(\w+)\[([\d,]*)\]', made[2])
                size = sum(
                    hlo.BITS[kind] // 8 * math.prod(map(int, filter(None, dims.split(','))))
                    for kind, dims in arrays
                    if kind in hlo.BITS
                )
                found[computation][made[1]] = Line(made[3], size, re.findall(r'%([\w.-]+)', made[4]), line)
    return found, entry


def bytes_moved(text):
    """Bytes that the kernels of a call read and write, and those among them that attention reads, at most.

    Of an array that is sliced or gathered from, what is taken; of one that is written into in place, what is written.
    """
    found, entry = instructions(text)

    def inside(line):
        return found[re.search(r'calls=%?([\w.-]+)', line.text)[1]]

    def read(lines, name):
        """Bytes of a parameter that a fused computation reads."""
        total = 0
        for user, line in ((user, line) for user, line in lines.items() if name in line.operands):
            first = line.operands[0] == name
            if line.kind in ('bitcast', 'reshape', 'slice'):
                total += line.size if 'ROOT' in line.text else read(lines, user)
            elif first and line.kind in ('dynamic-slice', 'gather'):
                total += line.size
            elif not (first and line.kind in ('scatter', 'dynamic-update-slice')):
                total += read_by(line, name) if line.kind == 'fusion' else lines[name].size
        return min(total, lines[name].size)

    def read_by(fusion, name):
        own = inside(fusion)
        numbers = {f'parameter({i})' for i, operand in enumerate(fusion.operands) if operand == name}
        return sum(read(own, one) for one, line in own.items() if any(x in line.text for x in numbers))

    def written(lines, name):
        """Bytes of a result."""
        line = lines[name]
        match line.kind:
            case 'tuple':
                return sum(written(lines, operand) for operand in line.operands)
            case 'bitcast' | 'reshape':
                return written(lines, line.operands[0])
            case 'dynamic-update-slice':
                return lines[line.operands[1]].size
            case 'scatter':
                return lines[line.operands[2]].size
            case 'fusion':
                return written(inside(line), root(inside(line)))
        return line.size

    def root(lines):
        return next(name for name, line in lines.items() if line.text.lstrip().startswith('ROOT'))

    def moved(name):
        lines, whole, attention = found[name], 0, 0
        for one, line in lines.items():
            if line.kind == 'while':
                body = re.search(r'body=%?([\w.-]+)', line.text)[1]
                turns = int(re.search(r'known_trip_count"?:\{"n":"(\d+)"', line.text)[1])
                more = moved(body)
                whole, attention = whole + turns * more[0], attention + turns * more[1]
            elif not hlo.NO_KERNEL.fullmatch(line.kind):
                by = read_by if line.kind == 'fusion' else lambda line, operand, lines=lines: lines[operand].size
                reads = sum(by(line, operand) for operand in dict.fromkeys(line.operands))
                whole += reads + written(lines, one)
                attention += reads * ('__cudnn$fmha' in line.text)
        return whole, attention

    return moved(entry)


def waits(text):
    """Lines for which a GPU waits for the host: a loop whose turns are not known, a branch, an array on its way."""
    kinds = r' (while|conditional|send|recv|infeed|outfeed)(-start)?\(|_callback|S\(5\)'
    return [line for line in text.splitlines() if re.search(kinds, line) and 'known_trip_count' not in line]


@pytest.mark.parametrize('slots', [8, 64])
@pytest.mark.parametrize('gpu', ['h100-80gb:1', 'a100-80gb:1'])
def test_a_decoded_token_takes_few_kernels_and_never_the_host(gpu, slots):
    text = generating(gpu, 'decode', slots, 1024)
    assert compiled.kernels(text) / STEPS <= 365
    assert waits(text) == []
    assert text.count('__cudnn$fmhaSoftmax') == SMALL.num_layers


def test_no_sum_along_a_sharded_dimension_becomes_a_loop():
    """As one over the vocabulary's blocks did: of 297 turns, for every token."""
    text = generating('h100-80gb:4', 'decode', 64, 1024)
    assert waits(text) == [] and len(re.findall(r' while\(', text)) == 1
    assert compiled.kernels(text) / STEPS <= 900


@pytest.mark.parametrize('slots, most', [(8, 1.1), (64, 1.5)])  # of more rows the logits and what lies between layers
@pytest.mark.parametrize('gpu', ['h100-80gb:1', 'a100-80gb:1'])
def test_a_decoded_token_reads_the_weights_once(gpu, slots, most):
    """And little beside, what attention reads of the cache left out: of a row that is as long as the row is."""
    weights = 2 * transformer.num_parameters(SMALL)
    moved, attention = bytes_moved(generating(gpu, 'decode', slots, 1024))
    assert weights < (moved - attention) / STEPS < most * weights
    assert attention / STEPS < 1.05 * slots * kv.slot_bytes(SMALL, sharding.make_mesh(), 1024, 'bfloat16')


@pytest.mark.parametrize('gpu', ['h100-80gb:1', 'a100-80gb:1'])
def test_writing_a_prompt_reads_what_is_written_not_the_capacity(gpu):
    small, large, whole = (
        bytes_moved(generating(gpu, 'extend', 64, *sizes))[0] for sizes in ((1024, 1024), (4608, 1024), (4608, 4608))
    )
    assert large <= 1.05 * small < whole
    assert waits(generating(gpu, 'extend', 64, 4608, 1024)) == []


@pytest.mark.parametrize('tpu', ['v5e:1x1', 'v6e:1x1'])
def test_a_tpu_reads_the_slots_in_place(tpu):
    """One kernel a layer, on the cache as it lies: neither decoding nor writing copies a layer of it."""
    for text in (generating(tpu, 'decode', 64, 1024), generating(tpu, 'extend', 64, 1024)):
        kernels = [line for line in text.splitlines() if ' custom-call(' in line and 'ragged_paged' in line]
        assert SMALL.num_layers - 1 <= len(kernels) <= SMALL.num_layers  # the last layer's is not needed by a write
        layer = r'bf16\[(?:64,1024|512,128),4,128\]'
        assert not re.search(rf'= \(?{layer}\S* (copy|copy-start|transpose|slice|gather)\(', text)
