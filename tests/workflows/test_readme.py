"""The README's commands, as written there: the long one with one short step, then those that look at its run; the
tests with one file."""

import json
import os
import re
import subprocess
import sys

import pytest
from helpers import ROOT


def readme_command(number):
    return subprocess.run(
        [sys.executable, ROOT / '.ci' / 'readme_command.py', str(number)], capture_output=True, text=True, check=True
    ).stdout.strip()


def run(command, tmp_path):
    """Runs a shell command of the README in the repository, in a virtual environment outside of it."""
    env = {key: value for key, value in os.environ.items() if key not in ('XLA_FLAGS', 'JAX_COMPILATION_CACHE_DIR')}
    env['ZEROSEARCH_CACHE'] = os.environ.get('ZEROSEARCH_CACHE', str(tmp_path / 'cache'))
    return subprocess.run(
        ['bash', '-euo', 'pipefail', '-c', command], cwd=ROOT, env=env, capture_output=True, text=True
    )


@pytest.fixture(autouse=True, scope='module')
def fresh_environment(tmp_path_factory):
    os.environ.setdefault('ZEROSEARCH_FRESH_VENV', str(tmp_path_factory.mktemp('venv') / '.venv'))


@pytest.fixture(scope='module')
def trained(tmp_path_factory):
    """The first command's run, of one step on one question, in a directory with nothing else in it."""
    directory = tmp_path_factory.mktemp('trained')
    shorter = '--config.rl.steps=1 --config.rollout.questions=1 --config.evaluation.questions=4'
    shorter += ' --config.rl.drop_zero_variance=False'  # so that a group of equal rewards is trained on too
    done = run(f'{readme_command(1)} {shorter} --workdir {directory}/run', directory)
    assert done.returncode == 0, done.stderr[-3000:]
    return directory


@pytest.mark.readme
@pytest.mark.timeout(1500)
def test_the_first_command_trains_the_real_model(trained):
    summary = json.loads((trained / 'run' / 'summary.json').read_text())
    assert summary['steps'] == 1
    assert set(summary['evaluations']) == {'0', '1'}
    assert (trained / 'run' / 'curves.png').stat().st_size > 1000


@pytest.mark.readme
@pytest.mark.timeout(1500)
def test_what_looks_at_a_run_does(trained):
    readme = (ROOT / 'README.md').read_text()
    view, ask, export = re.findall(r'`(python -m launch\.\w+ [^`]*\bruns/quickstart\b[^`]*)`', readme)
    python = f'{os.environ["ZEROSEARCH_FRESH_VENV"]}/bin/python'
    for command in (view, ask, export, f'{export}_whole --merge'):
        here = command.replace('python', python, 1).replace('runs/quickstart', f'{trained}/run')
        done = run(here.replace(' exported', f' {trained}/exported'), trained)
        assert done.returncode == 0, done.stderr[-3000:]
        if command == ask:
            assert re.search(r'<think>.*\n(no )?answer: .* tokens, ', done.stdout, re.DOTALL), done.stdout
    assert (trained / 'run' / 'index.html').stat().st_size > 10_000
    assert (trained / 'exported' / 'adapter_model.safetensors').exists()
    assert (trained / 'exported_whole' / 'model.safetensors').exists()


@pytest.mark.readme
@pytest.mark.timeout(1500)
def test_the_second_command_runs_tests(tmp_path):
    done = run(f'{readme_command(2)} tests/simulator/test_curriculum.py', tmp_path)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    assert 'passed' in done.stdout
