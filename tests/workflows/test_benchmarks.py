"""The benchmarks run by their own flags, and the tables of their README are those of the committed results."""

import copy
import json
import math
import pathlib
import re
import shlex
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
from helpers import ENVIRONMENT, ROOT
from scripted import BYTES, CFG, EOS, FakeEngine, play

pytest.importorskip(
    'benchmarks.common', reason='benchmarks are not installed with the package; run from the repository'
)

from benchmarks import common, decode, same_results, search_step, table, update
from zerosearch_jax.simulator.config import SimulatorConfig
from zerosearch_jax.simulator.simulator import SimulatedSearch
from zerosearch_jax.simulator.writers import EngineWriter

HOME = pathlib.Path(table.__file__).parent
RESULTS = sorted((HOME / 'results').glob('*.jsonl'))


def test_the_tables_are_those_of_the_committed_results():
    text = table.README.read_text()
    assert RESULTS
    assert table.filled(text, RESULTS) == text


@pytest.mark.parametrize(
    'program, flags, names',
    [
        (decode, '--batches 2 --prompt 9 --new 5', ['decode, batch 2', 'prefill, batch 2']),
        (update, '--rows 2 --length 128 --groups 1 --row 1024', ['update, full rows', 'update, packed trajectories']),
    ],
)
def test_a_program_prints_a_line_a_figure(monkeypatch, capsys, program, flags, names):
    monkeypatch.setattr(sys, 'argv', ['program', '--model', 'tiny', '--repeats', '1', *flags.split()])
    monkeypatch.setattr(common, 'limits', lambda dtype: {'gflops': 100.0, 'gbs': 10.0})
    program.main()
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line['name'] for line in lines] == names
    for line in lines:
        assert line['tokens_per_second']['low'] > 0
        assert line['share']['median'] > 0
        assert line['device'] and line['compiled'] > 0


WRITTEN_OF_ROME = BYTES.encode('Doc 1: Rome lies in Italy.')


def searched():
    """The record of a rollout with a search, whose documents the simulator writes at the second attempt."""
    simulator = FakeEngine(lambda handle, *_: [*(WRITTEN_OF_ROME if handle[2] == 2 else ()), EOS], stops=())
    simulated = search_step.listen(simulator)
    writer = EngineWriter(simulator, BYTES, prompt_tokens=10**4, max_tokens=200)
    search = SimulatedSearch(writer, SimulatorConfig(documents=1, attempts=2), seed=0, step=1, noise=0.0)
    trajectory, *_ = play(['nothing', '<search>Rome</search>', '<answer>Italy</answer>', ''], search)
    trainer = SimpleNamespace(model=SimpleNamespace(tokenizer=BYTES), cfg=SimpleNamespace(rollout=CFG))
    return search_step.recorded([trajectory], simulated, trainer), simulator.requests


def check_record(record, trajectories):
    """It has what peers/transformers_search.py reads, and the turns are those of the trajectories."""
    assert record.keys() == {'turn_tokens', 'prompts', 'turns', 'trajectories'} and record['turn_tokens'] > 0
    assert len(record['prompts']) == len(record['turns']) == len(record['trajectories']) == trajectories
    for prompt, turns, flat in zip(record['prompts'], record['turns'], record['trajectories'], strict=True):
        assert all(t.keys() == {'action', 'observation', 'simulator_prompt', 'simulator_tokens'} for t in turns)
        assert len(flat['tokens']) == len(prompt) + sum(t['action'] + len(t['observation']) for t in turns)
        assert sum(flat['weights']) == sum(t['action'] for t in turns) > 0


def test_a_record_has_what_the_simulator_was_asked_at_last():
    record, requests = searched()
    check_record(json.loads(json.dumps(record)), 1)
    before, asking, answer = record['turns'][0]
    assert len(requests) == 2 and tuple(asking['simulator_prompt']) == requests[1].prompt
    assert asking['simulator_tokens'] == len(WRITTEN_OF_ROME) + 1
    assert before['observation'] and not before['simulator_prompt'] and not answer['simulator_prompt']


# ---------------------------------------------------------------- every program, by its command line

TINY = '--model tiny --repeats 1'
SMALL = f'{TINY} --questions 1 --group 4 --slots 4'
# {program and flags: the names of its lines}; `{tmp}` is a directory
PROGRAMS = {
    f'decode {TINY} --batches 1 2 --new 8': [
        'decode, batch 1',
        'prefill, batch 1',
        'decode, batch 2',
        'prefill, batch 2',
    ],
    f'update {TINY} --length 512': ['update, full rows', 'update, packed trajectories'],
    f'compile_time {TINY}': ['compilation of the update, 28 layers'],
    'decode_attention': ['decode_attention'] * 3,
    'train_attention': ['train_attention_gradient'] * 2,
    'linear_gradient': ['linear_gradient'],
    'startup --config configs/tiny.py': ['start-up, cold cache', 'start-up, warm cache'],
    f'search_step {SMALL} --record {{tmp}}/record.json': ['search step, 1 x 4'],
    f'peers.grpo_step {TINY} --new 8': ['GRPO step'],
    "plan_memory --experiment tiny --only 'an adapter is trained'": ['an adapter is trained'],
    "gpu_run --model tiny --questions 1 --only '1.5B, an adapter is trained'": ['1.5B, an adapter is trained'],
}
WRITTEN = {  # what writes its lines to a file
    f'all --only decode {TINY} --batches 2 --new 8 --out {{out}}': ['decode, batch 2', 'prefill, batch 2'],
    'gpu --models tiny --batches 2 --length 1024 --out {out}': [
        *('decode, batch 2', 'prefill, batch 2', 'update, full rows', 'update, packed trajectories'),
    ],
    'peers.run --ours --model tiny --batches 2 --new 8 --questions 1 --venvs {tmp}/venvs --out {out}': [
        *('decode, batch 2', 'prefill, batch 2', 'GRPO step', 'search step, 1 x 8'),
        *('update, full rows', 'update, packed trajectories'),
    ],
}
# {a peer's program and flags: the package that it needs, a model that it can load, the names of its lines}
PEERS = {
    'peers.torch_update --rows 2 --length 64': ('torch', 'tiny', ['update, full rows']),
    'peers.torch_update --trajectories {tmp}/trajectories.json': ('torch', 'tiny', ['update, packed trajectories']),
    'peers.transformers_decode --batch 2 --prompt 16 --new 8': ('torch', 'tiny', ['decode, batch 2']),
    'peers.transformers_search --record {tmp}/record.json --kind --update': (
        *('torch', 'tiny', ['search step, to the limit', 'search step, stops known']),
    ),
    'peers.trl_step --group 2 --prompt 16 --new 4': ('trl', common.MODEL, ['GRPO step']),
    'peers.tunix_decode --batch 2 --prompt 16 --new 4': ('tunix', common.MODEL, ['decode, batch 2']),
    'peers.tunix_step --group 2 --prompt 16 --new 4': ('tunix', common.MODEL, ['GRPO step']),
}


def run(command, **places):
    """What a program prints, by its command line."""
    words = [part.format(**places) for part in shlex.split(command)]
    done = subprocess.run(
        [sys.executable, '-m', f'benchmarks.{words[0]}', *words[1:]],
        cwd=ROOT,
        env=ENVIRONMENT | {'JAX_PLATFORMS': 'cpu'},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def lines_of(text):
    return [json.loads(line) for line in text.splitlines() if line.startswith('{"')]


def numbers(value):
    """Every number of a line."""
    if isinstance(value, dict | list):
        return [n for item in (value.values() if isinstance(value, dict) else value) for n in numbers(item)]
    return [value] if isinstance(value, int | float) else []


def check(found, names):
    assert [line['name'] for line in found] == names
    for line in found:
        figures = [n for key, item in line.items() if key != 'load' for n in numbers(item)]
        assert figures and all(math.isfinite(n) and n >= 0 for n in figures), line


@pytest.mark.slow
@pytest.mark.parametrize('command', PROGRAMS)
def test_a_program_runs_by_its_command_line(command, tmp_path):
    check(lines_of(run(command, tmp=tmp_path)), PROGRAMS[command])
    if '--record' in command:
        check_record(json.loads((tmp_path / 'record.json').read_text()), 4)


@pytest.mark.slow
@pytest.mark.parametrize('command', WRITTEN)
def test_a_program_writes_its_lines(command, tmp_path):
    out = tmp_path / 'out.jsonl'
    run(command, tmp=tmp_path, out=out)
    check(lines_of(out.read_text()), WRITTEN[command])


@pytest.mark.slow
@pytest.mark.parametrize('command', PEERS)
def test_a_program_of_the_peers_runs(command, tmp_path):
    """In the environment of the tests, where it has the package; benchmarks.peers.run makes environments of theirs."""
    package, model, names = PEERS[command]
    pytest.importorskip(package, reason=f'needs {package}')
    record, _ = searched()
    (tmp_path / 'record.json').write_text(json.dumps(record))
    (tmp_path / 'trajectories.json').write_text(json.dumps(record['trajectories']))
    run(f'peers.export --model {model} --out {tmp_path}')
    check(lines_of(run(f'{command} --weights {tmp_path} --repeats 1', tmp=tmp_path)), names)


@pytest.mark.slow
def test_the_tables_are_written(tmp_path):
    page = tmp_path / 'page.md'
    page.write_text(table.filled(table.README.read_text(), []))
    run(f'table --page {page} {shlex.join(map(str, RESULTS))}')
    assert page.read_text() == table.README.read_text()


@pytest.mark.slow
def test_recall_is_that_of_bm25s_itself(tmp_path):
    corpus, questions = tmp_path / 'corpus.jsonl', tmp_path / 'cities.jsonl'
    texts = ['Rome lies in Italy', 'Oslo lies in Norway', 'nothing of note']
    corpus.write_text('\n'.join(json.dumps({'id': str(i), 'text': text}) for i, text in enumerate(texts)))
    asked = {'where is Rome': ['Italy'], 'where is Oslo': ['Sweden'], 'is Oslo large': ['yes']}
    rows = [{'question': question, 'golden_answers': golds} for question, golds in asked.items()]
    questions.write_text('\n'.join(map(json.dumps, rows)))
    (line,) = lines_of(run(f'recall --k 2 --corpus {corpus} --questions {questions}'))
    assert line == {'set': 'cities', 'questions': 2, 'recall@2': 0.5, 'recall@2 of bm25s': 0.5, 'same documents': 1.0}


@pytest.mark.parametrize(
    'other',
    [
        {'rows': [{'reward': 0.5}], 'state': {'w': np.array([0.0, 1.0], np.float32)}},
        {'rows': [{'reward': 0.25}], 'state': {'w': np.array([-0.0, 1.0], np.float32)}},
        {'rows': [{'reward': 0.25}], 'state': {'w': np.array([0.0, 1.0], np.float64)}},
        {'rows': [{'reward': 0.25}, {}], 'state': {'w': np.array([0.0, 1.0], np.float32)}},
        {'rows': [{'reward': 0.25}], 'state': {'v': np.array([0.0, 1.0], np.float32)}},
        {'rows': [{'reward': 0.25}], 'state': None},
    ],
)
def test_results_that_differ_are_not_the_same(other):
    made = {'rows': [{'reward': 0.25}], 'state': {'w': np.array([0.0, 1.0], np.float32)}}
    assert same_results.same(made, copy.deepcopy(made)) and not same_results.same(made, other)


def test_only_times_are_left_out_of_a_comparison():
    row = {'step': 1, 'loss/policy': 0.5, 'speed/tokens': 9.0, 'cost': [{'seconds': 2.0, 'dollars': 1.0}]}
    assert same_results.timeless(row) == {'step': 1, 'loss/policy': 0.5, 'cost': [{'dollars': 1.0}]}


@pytest.mark.slow
def test_a_commit_has_the_results_of_itself():
    changes = ['git', 'diff', '--quiet', 'HEAD', '--', 'zerosearch_jax', 'configs', 'launch']
    if subprocess.run(changes, cwd=ROOT, check=False).returncode:
        pytest.skip('needs a git checkout without changes: what they change may be results')
    found = run('same_results HEAD --config.evaluation.questions=2 --config.rollout.questions=1').splitlines()
    assert len(found) >= 8 and all(line.startswith('the same  ') for line in found)


@pytest.mark.slow
def test_what_is_injected_into_a_run_loses_nothing():
    found = run('faults --only doubled,hostile').splitlines()
    rows = [line.split(' | ') for line in found if line.startswith('| ') and not line.startswith('| fault')]
    assert len(rows) == 2 and all(row[-1] == 'nothing lost |' for row in rows), found


@pytest.mark.slow
def test_the_model_is_written_for_the_peers(tmp_path):
    run(f'peers.export --model tiny --out {tmp_path}')
    assert {'model.safetensors', 'config.json', 'tokenizer.json'} <= {path.name for path in tmp_path.iterdir()}


def test_every_program_is_run_here():
    programs = {
        '.'.join(path.relative_to(HOME).with_suffix('').parts)
        for path in HOME.rglob('*.py')
        if re.search(r'^def main\(', path.read_text(), re.MULTILINE)
    }
    by_themselves = re.findall(r"\brun\(f?'([\w.]+) ", pathlib.Path(__file__).read_text())
    assert programs == {command.split()[0] for command in (*PROGRAMS, *WRITTEN, *PEERS)} | set(by_themselves)
