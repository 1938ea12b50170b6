"""A run that was killed with SIGKILL and started again ends bit-identical to one that was not."""

import json
import random
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import orbax.checkpoint as ocp
import pytest
from helpers import ENVIRONMENT, FIXTURES, ROOT
from test_two_process import free_port

from zerosearch_jax.run import jsonl, trained
from zerosearch_jax.weights import trees

pytestmark = pytest.mark.thorough

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


def command(workdir, **more):
    # entropy and a high rate: random weights earn no reward, but here they change, and the samples with them
    overrides = {'rl.steps': STEPS, 'rl.entropy': 0.5, 'optimizer.learning_rate': 0.05, 'evaluation.every': 2}
    flags = [f'--config.{name}={value}' for name, value in (overrides | DATA | more).items()]
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
    summaries = [json.loads((where / 'summary.json').read_text()) for where in (got, expected)]
    counted = [(s['cost']['queries'], s['cost']['tokens']) for s in summaries]
    assert counted[0] == counted[1] and [s.pop('cost') for s in summaries]  # the time is another one
    assert summaries[0] == summaries[1]


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


@pytest.mark.timeout(900)
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
    (ahead / 'evaluation' / f'step_{STEPS:06d}.jsonl').write_text('{"em": "of weights that are gone"}\n')
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


def test_told_to_stop_it_saves_after_the_step_and_ends_well(whole, tmp_path):
    for _ in range(5):
        shutil.rmtree(tmp_path / 'run', ignore_errors=True)
        running = subprocess.Popen(
            command(tmp_path / 'run', **{'run.checkpoint_every': 100}),
            cwd=ROOT,
            env=ENVIRONMENT,
            stderr=subprocess.PIPE,
        )
        metrics = tmp_path / 'run' / 'metrics.jsonl'
        while running.poll() is None and (not metrics.exists() or '"step": 1,' not in metrics.read_text()):
            time.sleep(0.01)
        running.send_signal(signal.SIGTERM)
        said = running.communicate(timeout=120)[1].decode()
        assert running.returncode == 0, said[-3000:]
        if 'SIGTERM: saved after step' in said:  # a fast machine may have been at the end already
            break
    (saved,) = checkpoint_steps(tmp_path / 'run')
    assert 0 < saved < STEPS and f'saved after step {saved}' in said
    config = json.loads((tmp_path / 'run' / 'config.json').read_text())
    config['run']['checkpoint_every'] = 1
    (tmp_path / 'run' / 'config.json').write_text(json.dumps(config, indent=2, sort_keys=True))
    run(tmp_path / 'run')
    assert_same_run(tmp_path / 'run', whole)


@pytest.mark.timeout(900)
def test_a_run_of_four_devices_continues_on_two_processes_of_one(tmp_path):
    """The same metrics, to rounding, as of a run that stays on one device."""
    options = {'rl.steps': 3, 'rl.entropy': 0.01, 'optimizer.learning_rate': 1e-3, 'evaluation.questions': 0}
    one, moved = tmp_path / 'one', tmp_path / 'moved'
    subprocess.run(command(one, **options), cwd=ROOT, env=ENVIRONMENT, check=True, capture_output=True)
    four = ENVIRONMENT | {'XLA_FLAGS': '--xla_force_host_platform_device_count=4'}
    arguments = command(moved, **options, mesh='1,4,1', **{'rl.rows_per_micro': 4})
    running = subprocess.Popen(arguments, cwd=ROOT, env=four, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while running.poll() is None and not checkpoint_steps(moved):
        time.sleep(0.01)
    running.kill()
    assert running.wait() == -9
    assert max(checkpoint_steps(moved)) < 3
    port = free_port()
    arguments = command(moved, **options, mesh='1,2,1', **{'rl.rows_per_micro': 2})
    arguments += ['--coordinator', f'127.0.0.1:{port}', '--processes', '2', '--process']
    two = [subprocess.Popen([*arguments, str(i)], cwd=ROOT, env=ENVIRONMENT, stderr=subprocess.PIPE) for i in range(2)]
    try:
        said = [process.communicate(timeout=600)[1].decode() for process in two]
    finally:
        for process in two:
            process.kill()
    assert [process.returncode for process in two] == [0, 0], said[0][-3000:] + said[1][-3000:]
    assert 'resuming after step' in said[0] and 'resuming' not in said[1]  # one of them talks
    expected, got = rows_of(one, 'metrics.jsonl'), rows_of(moved, 'metrics.jsonl')
    assert [row['step'] for row in got] == [1, 2, 3]
    for mine, theirs in zip(got, expected, strict=True):
        assert mine.keys() == theirs.keys()
        for name, value in theirs.items():
            assert mine[name] == pytest.approx(value, rel=1e-3, abs=1e-4), name


# ---------------------------------------------------------------- a run of an earlier version


def test_a_run_of_an_earlier_version_goes_on_and_its_adapter_loads(tmp_path):
    """tests/fixtures/run_bead730: two steps of configs/tiny.py by that commit, stopped after the first; its adapter is
    of the second."""
    workdir = shutil.copytree(FIXTURES / 'run_bead730', tmp_path / 'run')
    (workdir / 'adapter.safetensors').unlink()
    flags = ['--config', 'configs/tiny.py', '--config.rl.steps=2', '--workdir', str(workdir)]
    done = subprocess.run(
        [sys.executable, '-m', 'launch.train', *flags], cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True
    )
    assert done.returncode == 0 and 'resuming after step 1' in done.stderr, done.stderr[-3000:]
    assert [row['step'] for row in jsonl.read_jsonl(workdir / 'metrics.jsonl') if 'reward/mean' in row] == [1, 2]
    found, then = (trained.find(str(path)) for path in (workdir, FIXTURES / 'run_bead730'))
    assert (found.base, then.base, found.documents(9)) == ('tiny', 'tiny', then.documents(9))
    new, old = (trees.load_tree(each.reference)[0]['layers'] for each in (found, then))
    assert new.keys() == old.keys()
    for name in new:  # another processor rounds otherwise; a step moves a weight by up to the learning rate, 1e-3
        # that version rounded to bfloat16
        np.testing.assert_allclose(np.float32(new[name]), np.float32(old[name]), atol=5e-4, rtol=2**-8)
