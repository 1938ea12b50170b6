"""The SLURM script, as far as it can be run without a cluster: what it would start, with every argument intact."""

import pathlib
import subprocess

ROOT = pathlib.Path(__file__).parents[1]


def test_the_script_starts_the_command_with_its_arguments(tmp_path):
    srun = tmp_path / 'srun'
    srun.write_text('#!/bin/bash\nprintf "%s\\n" "$@"\nexit 3\n')
    srun.chmod(0o755)
    script = ['bash', str(ROOT / 'launch' / 'slurm.sbatch'), '--config', 'a b.py', '--config.mesh=1,16,1']
    done = subprocess.run(script, env={'PATH': f'{tmp_path}:/usr/bin:/bin'}, capture_output=True, text=True)
    started = ['python', '-m', 'launch.train', '--coordinator=auto', '--config']
    assert done.stdout.splitlines() == ['--kill-on-bad-exit=1', *started, 'a b.py', '--config.mesh=1,16,1']
    assert done.returncode == 3  # a failure of the job is one of the script


def test_the_options_are_read_before_the_first_command():
    lines = (ROOT / 'launch' / 'slurm.sbatch').read_text().splitlines()
    options = [i for i, line in enumerate(lines) if line.startswith('#SBATCH')]
    assert len(options) == 6 and all(line.startswith('#') for line in lines[: max(options) + 1])
