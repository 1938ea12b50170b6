"""The package as `pip install .` installs it: commands run in a directory that has no checkout."""

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import zipfile

import pytest
from helpers import ENVIRONMENT, ROOT

pytestmark = [pytest.mark.thorough, pytest.mark.timeout(1500)]


@pytest.fixture(scope='module')
def wheel(tmp_path_factory):
    """The wheel of the working tree, which is copied because setuptools writes into it."""
    here = tmp_path_factory.mktemp('wheel')
    ignored = shutil.ignore_patterns('.*', 'build', 'dist', 'runs', '*.egg-info', '__pycache__', 'tests')
    source = shutil.copytree(ROOT, here / 'source', ignore=ignored)
    subprocess.run([sys.executable, '-m', 'pip', 'wheel', '-q', '--no-deps', '-w', here, source], check=True)
    [made] = here.glob('*.whl')
    return made


@pytest.fixture(scope='module')
def launch(wheel, tmp_path_factory):
    """Runs `python -m launch.NAME …` in an empty directory, in a fresh environment with the wheel.

    The dependencies are those of the environment of the tests: a path in a .pth file gives access to its packages, and
    not to its editable installation of this one.
    """
    here, elsewhere = tmp_path_factory.mktemp('venv'), tmp_path_factory.mktemp('elsewhere')
    subprocess.run([sys.executable, '-m', 'venv', here], check=True)
    python = here / 'bin' / 'python'
    subprocess.run([python, '-m', 'pip', 'install', '-q', '--no-deps', wheel], check=True)
    [packages] = here.glob('lib/python*/site-packages')
    (packages / 'dependencies.pth').write_text(sysconfig.get_path('purelib'))
    environment = {key: value for key, value in ENVIRONMENT.items() if key != 'PYTHONPATH'}

    def run(*words):
        return subprocess.run([python, '-m', *words], cwd=elsewhere, env=environment, capture_output=True, text=True)

    run.directory, run.packages = elsewhere, packages
    return run


def test_the_wheel_has_the_files_that_are_no_modules_and_no_tests(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    for path in (ROOT / 'zerosearch_jax').rglob('*'):
        if path.is_file() and '__pycache__' not in path.parts:
            assert str(path.relative_to(ROOT)) in names
    assert {'launch/train.py', 'configs/quickstart.py', 'configs/ablations/curriculum.py'} <= set(names)
    assert not any(name.startswith(('tests/', 'benchmarks/', 'colab/', 'docs/')) for name in names)


def test_commands_find_the_installed_package(launch):
    assert os.listdir(launch.directory) == []
    done = launch('launch.train', '--help')
    assert 'Run directory; default: runs/NAME_OF_THE_CONFIG' in done.stdout, done.stderr
    done = launch('launch.train', '--config=configs/nope.py')
    assert done.returncode == 2 and done.stderr.count('\n') == 1, done.stderr
    assert 'configs/nope.py: no such file' in done.stderr and str(launch.packages) in done.stderr


def test_a_configuration_is_found_by_its_name(launch):
    done = launch('launch.train', '--config', 'configs/tiny.py', '--config.rl.steps=1')
    assert done.returncode == 0, done.stderr[-3000:]
    assert json.loads((launch.directory / 'runs' / 'tiny' / 'summary.json').read_text())['steps'] == 1
    done = launch('launch.train', '--config=configs/tiny.py', '--config.rl.step=1')
    assert done.returncode == 2 and "did you mean 'steps'?" in done.stderr, done.stderr


def test_a_file_of_the_current_directory_comes_first(launch):
    own = launch.directory / 'configs'
    own.mkdir()
    (own / 'tiny.py').write_text('raise ValueError("mine")')
    try:
        done = launch('launch.train', '--config=configs/tiny.py')
    finally:
        shutil.rmtree(own)
    assert done.returncode == 2 and 'mine' in done.stderr
