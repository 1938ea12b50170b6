"""The commands of the README and the pages, as written there, one after another like a reader's, only shorter.

What one needs of an earlier one (`runs/quickstart`, a simulator's adapter) it finds. Many minutes: `pytest -m slow`.
"""

import json
import os
import shutil
import subprocess
import sys

import pytest
from helpers import ENVIRONMENT, ROOT
from test_docs import LAUNCHED, write_examples

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]

# {a part of a command: why it is not run}; tests/workflows/test_docs.py sees that their flags are right
ELSEWHERE = {
    'launch.train --config configs/qwen2_5_3b.py': 'weights that are not here; tests/workflows/test_published.py',
    'reproduce/tables.py': 'weights that are not here; tests/workflows/test_reproduce.py',
    'quickstart_t4': 'weights that are not here',
    'Qwen2.5-0.5B': 'weights that are not here',
    'kind=endpoint': 'a server; tests/simulator/test_simulator.py',
    'kind=search_r1': 'a server; tests/search/test_remote.py',
    'launch.serve_search': 'it does not end; tests/tools/test_serve_search.py',
    'launch.serve_model': 'it does not end; tests/tools/test_serve_model.py',
    'wandb=PROJECT': 'an account',
    '--coordinator': 'several machines; tests/workflows/test_two_process.py',
    '--hardware=CHIP': 'a placeholder',
    '--hardware=v5e': 'a compiler for TPUs; docs/plans.md',
    '--hardware=a100': 'minutes of compilation; tests/plan/test_targets.py',
    'launch.plan --config configs/qwen2_5_3b.py': 'minutes of compilation; tests/plan/test_targets.py',
    'launch.compare A B': 'a placeholder',
    'runs/NAME': 'a placeholder',
    'launch.view RUN': 'a placeholder',
    'runs/x': 'a run of more steps; tests/run/test_trained_checkpoints.py',
    '--step=3': 'a run of more steps; tests/run/test_trained_checkpoints.py',
}
TRAIN = ['rl.steps=1', 'rollout.questions=2', 'rollout.group=2', 'evaluation.questions=2']
# of the random model, because a study is many runs
TINY = [f'{role}.{value}' for role in ('policy', 'simulator') for value in ('model=tiny', 'adapter=')]
TINY += ['rollout.prompt_tokens=768', 'simulator.prompt_tokens=1024', 'rl.row_length=2048']
SHORT = {
    'launch.train': [f'--config.{value}' for value in TRAIN],
    'launch.sweep': ['--config.seeds=(0,)', *(f'--config.base.{value}' for value in (*TRAIN, *TINY))],
    'launch.sft': ['--config.sft.steps=2', '--config.demos.held_out=2'],
    'launch.collect': ['--config.collect.questions=2'],
    'launch.audit_simulator': ['--config.audit.queries=2'],
    'launch.evaluate': ['--config.evaluation.questions=2'],
}


def runnable():
    """{a command: its words} in the order of the pages, each once; a single word is the name of a program."""
    told = {' '.join(words): words for words in LAUNCHED.values() if len(words) > 1}
    return {text: words for text, words in told.items() if not any(part in text for part in ELSEWHERE)}


@pytest.fixture(scope='module')
def reader(tmp_path_factory):
    """A reader's directory: the configurations, the examples of docs/extending.md, his questions."""
    here = tmp_path_factory.mktemp('reader')
    (here / 'configs').symlink_to(ROOT / 'configs')
    (here / 'questions.jsonl').write_text('{"question": "Is it?", "golden_answers": ["yes"]}\n' * 4)
    return write_examples(here)


def needed(words, here):
    """Runs of other names and seeds that a command is about: copies of the one that was made."""
    made = {'a': 'eval', 'b': 'eval', 'quickstart_gpu_0': 'quickstart', 'quickstart_gpu_1': 'quickstart'}
    for seed, name in enumerate(name for name in made if f'runs/{name}' in words):
        copy = shutil.copytree(here / 'runs' / made[name], here / 'runs' / name)
        config = json.loads((copy / 'config.json').read_text())
        (copy / 'config.json').write_text(json.dumps(config | {'seed': seed}))


def test_nothing_is_left_out_that_is_not_there():
    for part in ELSEWHERE:
        assert any(part in ' '.join(words) for words in LAUNCHED.values()), part


@pytest.mark.parametrize('number', range(len(runnable())), ids=list(runnable()))
def test_commands_run(number, reader):
    text, words = list(runnable().items())[number]
    data = os.environ.get('ZEROSEARCH_DATA')
    if any(part in text for part in ('sft_searches', 'audit_simulator', 'eval_mini')) and not data:
        pytest.skip('needs ZEROSEARCH_DATA')
    needed(words, reader)
    command = [sys.executable, '-m', *words, *SHORT.get(words[0], [])]
    if words[0] == 'launch.train' and number and '--workdir' not in words:
        command += ['--workdir', f'runs/{number}']
    env = ENVIRONMENT | {'PYTHONPATH': f'{reader}:{ROOT}'}
    if 'mesh=1,8,1' in text:
        env['XLA_FLAGS'] = '--xla_force_host_platform_device_count=8'
    done = subprocess.run(command, cwd=reader, env=env, input='Where is Osaka?\n', capture_output=True, text=True)
    assert done.returncode == 0, f'{text}\n{done.stderr[-3000:]}'
