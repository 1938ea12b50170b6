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

from benchmarks import common, decode, drafts, gpu, old_new, same_results, search_step, table, update
from benchmarks.peers import export
from zerosearch_jax.simulator import prompts
from zerosearch_jax.simulator.config import SimulatorConfig
from zerosearch_jax.simulator.simulator import SimulatedSearch
from zerosearch_jax.simulator.writers import EngineWriter
from zerosearch_jax.text import protocol

HOME = pathlib.Path(table.__file__).parent
RESULTS = sorted((HOME / 'results').glob('*.jsonl'))


def test_the_tables_are_those_of_the_committed_results():
    text = table.README.read_text()
    assert RESULTS
    assert table.filled(text, RESULTS) == text


@pytest.mark.thorough
@pytest.mark.parametrize(
    'program, flags, names',
    [
        (decode, '--batches 2 --prompt 9 --new 6 --calls 3', ['decode, batch 2', 'prefill, batch 2']),
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


def part(program, seconds=60.0, **more):
    return gpu.Part('what', seconds, [[sys.executable, '-c', program]], **more)


LINE = """print('{"name": "a", "model": "m", "seconds": {"median": 6.0}, "versions": {}}', flush=True)\n"""


@pytest.mark.parametrize(
    'asked, figures, why',
    [
        (part(LINE), 1, ''),
        (part(f'{LINE}raise ValueError("no memory")'), 1, ' ended with 1: ValueError: no memory'),
        (part(f'import os\n{LINE}os.fork()\nwhile True: pass', 0.5), 1, ' ended with -9'),
        (part(LINE, 1000.0), 0, '100 s are left, it takes up to 1000'),
        (part(LINE, needs='not_there'), 0, 'no not_there'),
    ],
)
def test_a_part_that_fails_or_takes_too_long_says_so_and_loses_nothing(asked, figures, why, tmp_path):
    found = list(gpu.lines(asked, gpu.time.monotonic() + 100.5, tmp_path / 'log', {}))
    assert [line['name'] for line in found] == ['a'] * figures + ['what'] * bool(why)
    assert not why or why in found[-1]['not_run']


def test_a_peer_is_set_beside_ours(tmp_path):
    mine, until = {'a': {'name': 'a', 'model': 'm', 'seconds': {'median': 3.0}}}, gpu.time.monotonic() + 100
    line, beside = gpu.lines(part(LINE, peer='another'), until, tmp_path / 'log', mine)
    assert line['name'] == 'a: another' and beside['name'] == 'a, m: ours / another'
    assert beside['ratio']['median'] == 2.0 and mine['a']['seconds'] == {'median': 3.0}


def test_calls_are_told_from_tokens():
    seconds = {tokens: [0.002 + 0.003 * tokens] * (128 // tokens) for tokens in (1, 16, 64)}
    assert decode.fit(seconds) == pytest.approx({'call_ms': 2.0, 'token_ms': 3.0})


def test_with_the_invented_tokenizer_random_tokens_are_actions_and_documents():
    tokenizer = export.talking(4096)
    assert tokenizer.vocab_size == 4096
    tokenizer.require_fit(4096, '')
    texts = [tokenizer.decode([i]) for i in range(4096)]
    searches, answers = (sum(f'</{tag}>' in text for text in texts) for tag in ('search', 'answer'))
    assert 10 < answers < searches < 4096 / 40
    for text in texts:
        assert ('</search>' in text) == bool(protocol.parse_query(text))
    lists = [text for text in texts if text.startswith('\nDoc 1')]
    assert len(lists) > 4096 / 25 and all(prompts.parse_documents(text, 2, 25)[0] for text in lists)
    prompt = 'Search the web for what you do not know, and give the answer to the question'
    assert len(tokenizer.encode(prompt)) < len(prompt) / 2


def test_trajectories_that_two_commits_sampled_otherwise_are_counted(tmp_path):
    def written(name, *texts):
        segments = [[{'kind': 'action', 'tokens': 1, 'text': text, 'gaps': [len(name)]}] for text in texts]
        rows = [{'step': 1 + i // 2, 'id': 'q', 'sample': i % 2, 'segments': s} for i, s in enumerate(segments)]
        (tmp_path / name).write_text('\n'.join(map(json.dumps, rows)))
        return tmp_path / name

    before, now = written('before', 'a', 'b', 'c', 'd'), written('now', 'a', 'b', 'c', 'x')
    assert old_new.differences(before, now) == {'step 1': '0 of 2', 'step 2': '1 of 2'}


def test_the_table_leaves_out_what_was_not_run(tmp_path):
    results, text = tmp_path / 'some.jsonl', table.filled(table.README.read_text(), [])
    results.write_text(json.dumps({'name': 'decode', 'not_run': 'no torch'}))
    assert table.filled(text, [results]) == text


# ---------------------------------------------------------------- every program, by its command line

TINY = '--model tiny --repeats 1'
SMALL = f'{TINY} --questions 1 --group 4 --slots 4'
# {program and flags: the names of its lines}; `{tmp}` is a directory
PROGRAMS = {
    f'compile_time {TINY}': ['compilation of the update, 28 layers'],
    'decode_attention': ['decode_attention'] * 3,
    'train_attention': ['train_attention_gradient'] * 2,
    'linear_gradient': ['linear_gradient'],
    'forecast --model tiny --batch 4 --config configs/tiny.py --measured benchmarks/results/cpu.jsonl': [
        *('forecast: decode, batch 4', 'forecast: prefill, batch 4', 'forecast: update, full rows'),
        'forecast: a step of configs/tiny.py',
    ],
    f'search_step {SMALL} --record {{tmp}}/record.json': ['search step, 1 x 4'],
    "plan_memory --experiment tiny --only 'an adapter is trained'": ['an adapter is trained'],
    f'decode {TINY} --batches 2 --prompt 9 --new 8 --capacity 128 --calls 4 1': [
        *('decode, batch 2, capacity 128', 'prefill, batch 2, capacity 128', 'decode, batch 2, capacity 128, of calls')
    ],
}
STARTED = {'startup', 'update', 'peers.grpo_step'}  # by gpu and peers.run, with the lines that are checked below
WRITTEN = {  # what writes its lines to a file
    f'all --only decode {TINY} --batches 2 --new 8 --out {{out}}': ['decode, batch 2', 'prefill, batch 2'],
    'gpu --model tiny --minutes 20 --only decode start-up update forecast --out {out}': [
        *('decode, batch 4', 'prefill, batch 4', 'decode, batch 4, of calls'),
        *('decode, batch 1', 'prefill, batch 1', 'decode, batch 1, of calls'),
        *('start-up, cold cache', 'start-up, warm cache'),
        *('update, full rows, 1 a micro-batch, remat none', 'update, full rows, 1 a micro-batch, remat full'),
        *('update, packed trajectories', 'forecast: decode, batch 4', 'forecast: prefill, batch 4'),
        'forecast: update, full rows, 1 a micro-batch, remat none',
        'forecast: a step of configs/tiny.py',
    ],
    'old_new --old HEAD --config configs/tiny.py --rounds 1 --steps 2 --out {out}': [
        f'tiny, {name}: ours / HEAD' for name in old_new.FIGURES
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
    'peers.transformers_batching --batch 2 --prompt 16 --new 8': ('torch', 'tiny', ['decode, batch 2']),
    'peers.transformers_decode --batch 2 --prompt 16 --new 8': ('torch', 'tiny', ['decode, batch 2']),
    'peers.transformers_search --record {tmp}/record.json --update': (
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


@pytest.mark.thorough
@pytest.mark.parametrize('command', PROGRAMS)
def test_a_program_runs_by_its_command_line(command, tmp_path):
    check(lines_of(run(command, tmp=tmp_path)), PROGRAMS[command])
    if '--record' in command:
        check_record(json.loads((tmp_path / 'record.json').read_text()), 4)


@pytest.mark.thorough
@pytest.mark.parametrize('command', WRITTEN)
def test_a_program_writes_its_lines(command, tmp_path):
    out = tmp_path / 'out.jsonl'
    run(command, tmp=tmp_path, out=out)
    check(lines_of(out.read_text()), WRITTEN[command])


@pytest.mark.thorough
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


@pytest.mark.thorough
def test_the_tables_are_written(tmp_path):
    page = tmp_path / 'page.md'
    page.write_text(table.filled(table.README.read_text(), []))
    run(f'table --page {page} {shlex.join(map(str, RESULTS))}')
    assert page.read_text() == table.README.read_text()


def test_drafts_yield_the_tokens_that_a_look_up_predicts():
    repeating, other = ([1, 2, 3, 1, 2], [3, 1, 2, 3]), ([7, 8, 1, 2], [3, 1, 9])
    # [1, 2] was followed by [3, 1]: both agree, one more is sampled; then the fourth token agrees
    assert drafts.tokens_a_call([repeating], 3, shared=False) == 4 / 2
    assert drafts.tokens_a_call([other], 3, shared=False) == 3 / 3
    # the last [1, 2] of the first one was followed by [3], its end
    assert drafts.tokens_a_call([repeating, other], 3, shared=True) == 7 / 4
    assert drafts.tokens_a_call([repeating, other], 1, shared=True) == 1


@pytest.mark.thorough
def test_drafts_are_counted_for_both_roles_of_a_run(tmp_path):
    (tmp_path / 'config.json').write_text(json.dumps({'policy': {'model': 'tiny'}}))
    spoken = [{'kind': 'prompt', 'text': 'abcabc'}, {'kind': 'action', 'text': 'abcabc'}]
    searches = [{'query': 'ab', 'documents': ['abab']}]
    row = {'segments': spoken, 'searches': searches, 'question': 'q', 'golden_answers': ['g']}
    (tmp_path / 'trajectories.jsonl').write_text(json.dumps(row) + '\n')
    policy, simulator = lines_of(run(f'drafts {tmp_path} --width 4'))
    assert policy == {'role': 'policy', 'tokens': 6, 'width': 4, 'own': 3.0, 'all': 3.0}
    assert simulator['tokens'] == len('Doc 1: abab') and simulator['own'] <= simulator['all']


@pytest.mark.thorough
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


@pytest.mark.thorough
def test_a_commit_has_the_results_of_itself():
    changes = ['git', 'diff', '--quiet', 'HEAD', '--', 'zerosearch_jax', 'configs', 'launch']
    if subprocess.run(changes, cwd=ROOT, check=False).returncode:
        pytest.skip('needs a git checkout without changes: what they change may be results')
    found = run('same_results HEAD --config.evaluation.questions=2 --config.rollout.questions=1').splitlines()
    assert len(found) >= 8 and all(line.startswith('the same  ') for line in found)


@pytest.mark.thorough
def test_what_is_injected_into_a_run_loses_nothing():
    found = run('faults --only doubled,hostile').splitlines()
    rows = [line.split(' | ') for line in found if line.startswith('| ') and not line.startswith('| fault')]
    assert len(rows) == 2 and all(row[-1] == 'nothing lost |' for row in rows), found


@pytest.mark.thorough
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
    assert programs == {command.split()[0] for command in (*PROGRAMS, *WRITTEN, *PEERS)} | STARTED | set(by_themselves)
