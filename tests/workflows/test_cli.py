"""The command line as people meet it: every mistake is one clear line, and Ctrl-C leaves a usable run behind."""

import json
import re
import signal
import subprocess
import sys
import time

import pytest
from helpers import ENVIRONMENT, ROOT

TINY = ('--config', 'configs/tiny.py')
FEW, UNTESTED = '--config.data.train=DIR/few.jsonl', '--config.evaluation.questions=0'

# name: arguments, exit code, what the one line must say; DIR is the directory of the fixture below
MISTAKES = {
    'unknown field': ((*TINY, '--config.rl.algoritm=grpo'), 2, ["no field 'algoritm'", "did you mean 'algorithm'?"]),
    'unknown section': ((*TINY, '--config.optimiser.b1=0.5'), 2, ["no field 'optimiser'", "'optimizer'"]),
    'unknown flag': ((*TINY, '--workdri=x'), 2, ["'workdri'", 'workdir']),
    'wrong type': ((*TINY, '--config.rl.steps=many'), 2, ['config.rl.steps', "'many'"]),
    'wrong choice': ((*TINY, '--config.rl.remat=best'), 1, ['config.rl.remat must be', "'full'", "'best'"]),
    'no such algorithm': ((*TINY, '--config.rl.algorithm=best'), 1, ["config.rl: algorithm = 'best'", "'grpo'"]),
    'no such engine': ((*TINY, '--config.engine.kind=bm52'), 1, ["config.engine: kind = 'bm52'", "'bm25'"]),
    'forgotten dashes': ((*TINY, 'config.rl.steps=3'), 2, ["'config.rl.steps=3'", '--config.rl.steps=3']),
    'no experiment': ((), 2, ['--config configs/quickstart.py']),
    'no such experiment': (('--config', 'configs/nope.py'), 2, ['configs/nope.py', 'no such file']),
    'a page': (('--config', 'docs/claim.md'), 2, ['(claim.md, line ']),
    'a study': (('--config', 'configs/ablations/engine.py'), 1, ['launch.sweep']),
    'negative number': ((*TINY, '--config.optimizer.learning_rate=-1'), 1, ['learning_rate must not be negative']),
    'no such preset': (('--config', 'configs/sft.py:nope'), 2, ["no preset 'nope'"]),
    'no data file': ((*TINY, '--config.data.train=DIR/none.jsonl'), 1, ['DIR/none.jsonl is not here']),
    'malformed row': ((*TINY, '--config.data.train=DIR/bad.jsonl'), 1, ['DIR/bad.jsonl:2:', 'golden_answers']),
    'prompt too long': (
        (*TINY, '--config.data.train=DIR/long.jsonl', UNTESTED),
        1,
        ['question q1', 'prompt_tokens = 768'],
    ),
    'mesh that does not fit': (
        (*TINY, '--config.mesh=(1, 64, 1)', FEW, UNTESTED),
        1,
        ['mesh (1, 64, 1) needs 64 devices'],
    ),
    'unknown model': (
        (*TINY, '--config.policy.model=smolm2-135m-instruct', FEW, UNTESTED),
        1,
        ["'smolm2-135m-instruct'"],
    ),
    'rows too short': ((*TINY, '--config.rl.row_length=512'), 1, ['config.rl.row_length = 512', '928']),
    'processes without coordinator': ((*TINY, '--processes=2', '--process=0'), 1, ['--coordinator=HOST:PORT']),
    'coordinator without port': ((*TINY, '--coordinator=host'), 1, ['--coordinator=host must be HOST:PORT']),
    'process beyond processes': (
        (*TINY, '--coordinator=host:1', '--processes=2', '--process=2'),
        1,
        ['--process=2 must be one of 0 to 1'],
    ),
    'workdir of another run': ((*TINY, '--workdir', 'DIR/other'), 1, ['DIR/other', 'another configuration', 'seed']),
}


# runs `python -m launch.train ARGUMENTS` once for every job, in forks of a process that has imported jax already
FORKS = """
import json, os, runpy, sys
import transformers, zerosearch_jax.train.rl
codes = []
for number, arguments in enumerate(json.loads(sys.argv[1])):
    child = os.fork()
    if not child:
        for kind, descriptor in (('out', 1), ('err', 2)):
            os.dup2(os.open(f'{sys.argv[2]}/{number}.{kind}', os.O_WRONLY | os.O_CREAT), descriptor)
        sys.argv[1:] = arguments
        runpy.run_module('launch.train', run_name='__main__', alter_sys=True)
        sys.exit()
    codes.append(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
print(json.dumps(codes))
"""


def command(*arguments):
    return [sys.executable, '-m', 'launch.train', *map(str, arguments)]


@pytest.fixture(scope='module')
def outcomes(tmp_path_factory):
    """{name: (exit code, stdout, stderr)} of every mistake; and the directory that stands for DIR.

    They share one fresh workdir: a mistake does not occupy it.
    """
    directory = tmp_path_factory.mktemp('mistakes')
    questions = [{'id': f'q{i}', 'question': 'why ' * 200 * i + '?', 'golden_answers': ['b']} for i in (0, 1)]
    (directory / 'long.jsonl').write_text('\n'.join(map(json.dumps, questions)))
    (directory / 'few.jsonl').write_text('\n'.join(json.dumps(q | {'question': 'why?'}) for q in questions))
    (directory / 'bad.jsonl').write_text(json.dumps(questions[0]) + '\n{"question": "c"}\n')
    (directory / 'other').mkdir()
    (directory / 'other' / 'config.json').write_text('{"seed": 1}')
    (directory / 'other' / 'metrics.jsonl').write_text('{"step": 1}\n')

    jobs = []
    for arguments, _, _ in MISTAKES.values():
        given = [argument.replace('DIR', str(directory)) for argument in arguments]
        if arguments and '--workdir' not in arguments:
            given += ['--workdir', str(directory / 'fresh')]
        jobs.append(given)
    done = subprocess.run(
        [sys.executable, '-c', FORKS, json.dumps(jobs), str(directory)],
        cwd=ROOT,
        env=ENVIRONMENT,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        check=True,
    )
    codes = json.loads(done.stdout)
    written = [[(directory / f'{i}.{kind}').read_text() for kind in ('out', 'err')] for i in range(len(jobs))]
    return {name: (code, *texts) for name, code, texts in zip(MISTAKES, codes, written, strict=True)}, directory


@pytest.mark.parametrize('name', MISTAKES)
def test_a_mistake_is_told_in_one_clear_line(outcomes, name):
    finished, directory = outcomes
    code, said = MISTAKES[name][1:]
    got, out, err = finished[name]
    assert err.count('\n') == 1, err[-2000:]
    assert err.startswith('error: ')
    assert all(part.replace('DIR', str(directory)) in err for part in said), err
    assert (got, out) == (code, '')


def test_help_shows_the_commands():
    done = subprocess.run(command('--help'), cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True)
    assert 'python -m launch.train --config configs/quickstart.py' in done.stdout
    assert '--workdir' in done.stdout
    assert 'Traceback' not in done.stdout + done.stderr


@pytest.mark.thorough
def test_interrupting_a_run_leaves_a_summary_and_the_way_to_continue(tmp_path):
    rows = [json.dumps({'question': f'why {i}?', 'golden_answers': ['b']}) for i in range(4)]
    (tmp_path / 'few.jsonl').write_text('\n'.join(rows))  # the built-in world takes seconds to build
    settings = {'rl.steps': 1000, 'evaluation.questions': 0, 'data.train': tmp_path / 'few.jsonl'}
    flags = [f'--config.{name}={value}' for name, value in settings.items()]
    tmp_path = tmp_path / 'run'
    arguments = command(*TINY, *flags, '--workdir', tmp_path)
    running = subprocess.Popen(
        arguments,
        cwd=ROOT,
        env=ENVIRONMENT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(
            signal.SIGINT, signal.SIG_DFL
        ),  # a background job ignores it, and passes that on
    )
    try:
        metrics = tmp_path / 'metrics.jsonl'
        while running.poll() is None and not (metrics.exists() and metrics.read_text().count('\n') >= 2):
            time.sleep(0.1)
        running.send_signal(signal.SIGINT)
        _, told = running.communicate(timeout=120)
    finally:
        running.kill()
    assert running.returncode == 130, told[-2000:]
    assert 'interrupted; run the same command again' in told
    steps = [int(number) for number in re.findall(r'^step (\d+)/1000  reward ', told, re.MULTILINE)]
    assert steps == [*range(1, len(steps) + 1)] and steps  # a line a step ...
    assert '\r' not in told and '%|' not in told  # ... and no bars where stderr is no terminal
    assert 'Traceback' not in told
    summary = json.loads((tmp_path / 'summary.json').read_text())
    assert summary['steps'] >= 2
    assert any((tmp_path / 'checkpoints').iterdir())
