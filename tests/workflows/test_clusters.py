"""The scripts for clusters, as far as they run without one: what they would start, with every argument intact."""

import shlex
import subprocess

import pytest
from helpers import ROOT

LAUNCH = ROOT / 'launch'
ARGUMENTS = ['--config', 'a b.py', '--config.mesh=1,16,1', "--config.wandb=it's $HOME"]
TRAIN = ['python', '-m', 'launch.train', '--coordinator=auto', *ARGUMENTS]
GIVEN = {
    'tpu_vm.sh': {'TPU': 'slice', 'ZONE': 'a zone'},
    'gke.sh': {'CLUSTER': 'c', 'TYPE': 'v5litepod-64', 'IMAGE': 'i', 'NAME': 'n', 'STORAGE': 's'},
}


def start(script, program, tmp_path, **environment):
    """The arguments that a script calls a program with, and how it ended when that program failed with 3."""
    stand_in = tmp_path / program
    stand_in.write_text('#!/bin/bash\nprintf "%s\\0" "$@"\nexit 3\n')
    stand_in.chmod(0o755)
    command = ['bash', str(LAUNCH / script), *ARGUMENTS]
    environment = {'PATH': f'{tmp_path}:/usr/bin:/bin', **environment}
    return subprocess.run(command, env=environment, capture_output=True, text=True)


def test_slurm_starts_the_command_with_its_arguments(tmp_path):
    done = start('slurm.sbatch', 'srun', tmp_path)
    assert done.stdout.split('\0')[:-1] == ['--kill-on-bad-exit=1', *TRAIN]
    assert done.returncode == 3  # a failure of the job is one of the script


def test_slurms_options_are_read_before_the_first_command():
    lines = (LAUNCH / 'slurm.sbatch').read_text().splitlines()
    options = [i for i, line in enumerate(lines) if line.startswith('#SBATCH')]
    assert len(options) == 6 and all(line.startswith('#') for line in lines[: max(options) + 1])


@pytest.mark.parametrize(('script', 'program'), [('tpu_vm.sh', 'gcloud'), ('gke.sh', 'xpk')])
def test_a_remote_shell_gets_the_command_with_its_arguments(script, program, tmp_path):
    done = start(script, program, tmp_path, **GIVEN[script])
    *flags, command = done.stdout.split('\0')[:-1]
    words = shlex.split(command.removeprefix('--command='))
    assert words[-len(TRAIN) + 1 :] == TRAIN[1:] and 'exec' in words
    assert any('=a zone' in flag for flag in flags) or '--tpu-type=v5litepod-64' in flags
    assert done.returncode == 3


@pytest.mark.parametrize('script', GIVEN)
def test_what_is_missing_is_named(script, tmp_path):
    for name in GIVEN[script]:
        given = {key: value for key, value in GIVEN[script].items() if key != name}
        done = start(script, 'none', tmp_path, **given)
        assert done.returncode and f'{name}: ' in done.stderr and not done.stdout
