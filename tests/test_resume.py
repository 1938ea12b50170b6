"""A run that was killed with SIGKILL and started again ends bit-identical to one that was not."""

import json
import os
import pathlib
import random
import shutil
import subprocess
import sys
import time

import numpy as np
import orbax.checkpoint as ocp
import pytest

ROOT = pathlib.Path(__file__).parents[1]
ENVIRONMENT = {key: value for key, value in os.environ.items() if key != 'XLA_FLAGS'}
STEPS = 6  # epochs of four steps
DATA = {}


@pytest.fixture(scope='module', autouse=True)
def small_data(tmp_path_factory):
    """A few questions and passages instead of the built-in world, which takes seconds to build."""
    directory = tmp_path_factory.mktemp('data')
    questions = [{'id': f'q{i}', 'question': f'why {i}?', 'golden_answers': ['b']} for i in range(8)]
    (directory / 'questions.jsonl').write_text(''.join(json.dumps(row) + '\n' for row in questions))
    (directory / 'corpus.jsonl').write_text(json.dumps({'id': 'p', 'title': 'because', 'text': 'of everything'}) + '\n')
    DATA.update({'data.train': directory / 'questions.jsonl', 'data.corpus': directory / 'corpus.jsonl'})
    DATA['data.test'] = DATA['data.train']


def command(workdir):
    # entropy and a high rate: random weights earn no reward, but here they change, and the samples with them
    overrides = {'rl.steps': STEPS, 'rl.entropy': 0.5, 'optimizer.learning_rate': 0.05, 'evaluation.every': 2}
    flags = [f'--config.{name}={value}' for name, value in (overrides | DATA).items()]
    return [sys.executable, '-m', 'launch.train', '--config', 'configs/tiny.py', *flags, '--workdir', str(workdir)]


def run(workdir):
    done = subprocess.run(command(workdir), cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return done


def checkpoint_steps(workdir):
    """Numbers of the complete checkpoints."""
    directory = workdir / 'checkpoints'
    return sorted(int(p.name) for p in directory.iterdir() if p.name.isdigit()) if directory.exists() else []


def kill_after(workdir, step, delay):
    """Starts the run and kills it `delay` seconds after its checkpoint of `step` is complete, if it still runs."""
    running = subprocess.Popen(
        command(workdir), cwd=ROOT, env=ENVIRONMENT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        while running.poll() is None and max(checkpoint_steps(workdir), default=0) < step:
            time.sleep(0.01)
        time.sleep(delay)
    finally:
        running.kill()
        running.wait()
    return running.returncode


@pytest.fixture(scope='module')
def whole(tmp_path_factory):
    workdir = tmp_path_factory.mktemp('whole')
    run(workdir)
    return workdir


def state_of(workdir, step):
    """Every array of a checkpoint, by path, and the host's item."""
    with ocp.CheckpointManager(workdir.absolute() / 'checkpoints') as manager:
        items = ocp.args.Composite(state=ocp.args.StandardRestore(), host=ocp.args.JsonRestore())
        restored = manager.restore(step, args=items)
    leaves = {}

    def walk(tree, path):
        if isinstance(tree, dict):
            for key, value in tree.items():
                walk(value, (*path, key))
        elif isinstance(tree, list | tuple):
            for i, value in enumerate(tree):
                walk(value, (*path, i))
        elif tree is not None:
            leaves[path] = np.asarray(tree)

    walk(restored.state, ())
    return leaves, restored.host


def rows_of(workdir, name):
    rows = [json.loads(line) for line in (workdir / name).read_text().splitlines()]
    return [{key: value for key, value in row.items() if not key.startswith('speed/')} for row in rows]


def assert_same_run(got, expected):
    got_state, got_host = state_of(got, STEPS)
    expected_state, expected_host = state_of(expected, STEPS)
    assert got_host == expected_host
    assert got_state.keys() == expected_state.keys()
    for path, value in expected_state.items():
        assert got_state[path].dtype == value.dtype
        assert got_state[path].tobytes() == value.tobytes(), path
    for name in ('metrics.jsonl', 'trajectories.jsonl'):
        assert rows_of(got, name) == rows_of(expected, name), name
    evaluations = sorted(p.name for p in (expected / 'evaluation').iterdir())
    assert sorted(p.name for p in (got / 'evaluation').iterdir()) == evaluations
    for name in evaluations:
        assert (got / 'evaluation' / name).read_bytes() == (expected / 'evaluation' / name).read_bytes(), name
    assert (got / 'summary.json').read_text() == (expected / 'summary.json').read_text()


def test_the_run_changes_weights_and_samples_so_that_resuming_can_go_wrong(whole):
    early, late = state_of(whole, STEPS - 1)[0], state_of(whole, STEPS)[0]
    names = [path for path in early if any('lora' in str(part) for part in path)]
    assert len(names) == 3 * 14  # weights and two moments of seven kernels' A and B
    assert all((early[path] != late[path]).any() for path in names)
    rows = rows_of(whole, 'metrics.jsonl')
    assert [row['step'] for row in rows if 'eval/em' in row] == [0, 2, 4, STEPS]
    steps = [row for row in rows if 'reward/mean' in row]
    assert [row['step'] for row in steps] == list(range(1, STEPS + 1))
    assert len({row['loss/entropy'] for row in steps}) == STEPS
    episodes = rows_of(whole, 'trajectories.jsonl')
    assert [row['step'] for row in episodes] == [step for step in range(1, STEPS + 1) for _ in range(4)]
    assert len({json.dumps(row['segments']) for row in episodes}) == 4 * STEPS


@pytest.mark.timeout(300)
def test_killed_at_a_random_moment_and_resumed_is_bit_identical(whole, tmp_path):
    step, longest = random.SystemRandom().randrange(STEPS - 1), 0.5
    for attempt in range(5):  # a fast machine may reach the end within the delay: another try, with half of it
        workdir = tmp_path / str(attempt)
        delay = random.SystemRandom().uniform(0, longest / 2**attempt)
        code, found = kill_after(workdir, step, delay), checkpoint_steps(workdir)
        if code == -9 and max(found, default=0) < STEPS:
            break
    else:
        pytest.fail(f'every run ended before it was killed: {step=}')
    done = run(workdir)
    assert not found or f'resuming after step {max(found)}' in done.stderr, (step, delay, found)
    assert_same_run(workdir, whole)


def test_resuming_an_old_copy_whose_files_run_ahead_of_the_checkpoint(whole, tmp_path):
    """Killed late: metrics, trajectories and evaluations of steps whose checkpoint was never completed."""
    ahead = tmp_path / 'ahead'
    shutil.copytree(whole, ahead)
    shutil.rmtree(ahead / 'checkpoints' / str(STEPS))
    (ahead / 'evaluation' / f'step_{STEPS:06d}.jsonl').unlink()
    with open(ahead / 'metrics.jsonl', 'a') as file:
        file.write('{"step": 7, "rew')  # torn
    done = run(ahead)
    assert f'resuming after step {STEPS - 1}' in done.stderr
    assert_same_run(ahead, whole)


def test_running_a_finished_run_again_changes_nothing(whole, tmp_path):
    again = tmp_path / 'again'
    shutil.copytree(whole, again)
    run(again)
    assert_same_run(again, whole)
