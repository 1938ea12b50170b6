"""The README's commands, as written there: the long one with a step override, the tests with one file."""

import json
import os
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[1]


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


@pytest.mark.readme
@pytest.mark.timeout(1500)
def test_the_first_command_trains_the_real_model(tmp_path):
    overrides = f'--config.rl.steps=1 --config.evaluation.questions=16 --workdir {tmp_path}/run'
    done = run(f'{readme_command(1)} {overrides}', tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    summary = json.loads((tmp_path / 'run' / 'summary.json').read_text())
    assert summary['steps'] == 1
    assert set(summary['evaluations']) == {'0', '1'}
    assert (tmp_path / 'run' / 'curves.png').stat().st_size > 1000


@pytest.mark.readme
@pytest.mark.timeout(1500)
def test_the_second_command_runs_tests(tmp_path):
    done = run(f'{readme_command(2)} tests/test_curriculum.py', tmp_path)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    assert 'passed' in done.stdout
