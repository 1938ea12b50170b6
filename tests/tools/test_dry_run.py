"""A dry run counts what runs need, shares their plans, and has a line for each problem that would stop one."""

import re
import subprocess
import sys

import jax
import numpy as np
import pytest
from helpers import ENVIRONMENT, ROOT
from ml_collections import ConfigDict

from configs import tiny
from zerosearch_jax.models import transformer
from zerosearch_jax.models.config import PRESETS
from zerosearch_jax.plan import hardware, planner
from zerosearch_jax.run import disk
from zerosearch_jax.run.checkpoint import Checkpoints
from zerosearch_jax.study import sweep
from zerosearch_jax.tools import dry_run
from zerosearch_jax.train.config import share_base

TARGET = hardware.parse('a100-80gb:8')
GIB = 2**30


def study(variants, **changes):
    base = tiny.get_config()
    base.mesh, base.rl.rows_per_micro, base.policy.lora_rank, base.simulator.words = (1, 8, 1), 8, 0, 2
    for name, value in changes.items():
        section, field = name.split('__')
        base[section][field] = value
    return sweep.parse(ConfigDict({'base': base, 'baseline': 'a', 'variants': variants, 'seeds': (0,)}))


class Planner:
    """A planner that takes no time: a step takes 20 s, 4 of them the policy's; it keeps the configurations."""

    def __init__(self, peak=30 * GIB, refused=False):
        self.asked, self._peak, self._refused = [], peak, refused

    def __call__(self, cfg, *where):
        self.asked.append(cfg)
        needs = [('policy: decode', 2 * GIB, 4.0), ('update', self._peak - 5 * GIB, 16.0)]
        costs = [
            planner.ProgramCost(name, GIB, GIB, own, self._refused, {'memory': s}, {'memory': s}, {})
            for name, own, s in needs
        ]
        times, resident = {name: 1.0 for name, *_ in needs}, {'policy': GIB, 'optimizer': 3 * GIB}
        own = {'policy': 8}, {}, cfg.rollout.questions * cfg.rollout.group
        meshes = (1, 8, 1), {'policy': (1, 8, 1)}
        return planner.Plan(resident, {}, tuple(costs), *own, times, *meshes, 'a stub', TARGET.memory)


def dried(made, plan=None, runs=slice(None)):
    """Rows of the table by the first word of their names, the problems, and the text."""
    text, problems = dry_run.dry_run(made, runs, TARGET, jax.devices(), 'a stub', plan or Planner())
    rows = [[cell.strip() for cell in line.split('|')[1:-1]] for line in text.splitlines() if line.startswith('|')]
    return {row[0].split()[0]: row[1:] for row in rows[2:]}, problems, text


# ---------------------------------------------------------------- what runs take


def test_a_run_takes_its_steps_its_evaluations_and_searches():
    variants = {'a': {}, 'b': {'simulator': {'kind': 'engine'}, 'engine': {'kind': 'serpapi'}}}
    variants |= {method: {'evaluation': {'methods': method}} for method in ('direct', 'agent')}
    rows, problems, text = dried(study(variants, rl__steps=180, evaluation__questions=40))
    assert problems == [] and 'On a100-80gb:8, one after the other. Nothing was run.' in text
    hours = (180 * 20 + 2 * 40 * 4 / 4) / 3600  # before and after; a step has four trajectories
    dollars = f'{8 * 1.475 * hours:.0f}'
    assert rows['a'] == ['tiny', 'tiny', '30.0', '0', f'{hours:.1f}', f'{8 * hours:.0f}', dollars, '80', '0']
    assert rows['b'][1] == 'engine' and rows['b'][7:] == ['800', f'{800 * 0.00917:.0f}']
    asked = {method: (rows[method][1:4], rows[method][7]) for method in ('direct', 'agent')}
    assert asked == {
        'direct': (['asked: direct', '4.0', '0'], '0'),  # it does not search
        'agent': (['asked: agent', '4.0', '0'], '40'),
    }
    assert rows['all'][7:] == ['920', f'{800 * 0.00917:.0f}'] and rows['all'][2] == '30.0'


@pytest.mark.parametrize(
    ('every', 'keep', 'algorithm', 'expected'),
    [
        (1, 0, 'reinforce', 4 * 12 + 4),
        (100, 0, 'reinforce', 3 * 12 + 4),
        (1, 50, 'reinforce', 8 * 12 + 4),
        (1, 0, 'ppo', 4 * 24 + 4),
    ],
)
def test_the_disk_is_what_a_run_will_ask_for(tmp_path, monkeypatch, every, keep, algorithm, expected):
    made, asked = study({'a': {}}, rl__steps=203, rl__algorithm=algorithm), []
    made.base.run.update(checkpoint_every=every, keep_every=keep)
    count = transformer.num_parameters(PRESETS['tiny'])
    assert dry_run.disk_bytes(made.parse('a', 0)) == expected * count
    monkeypatch.setattr(disk, 'require', lambda directory, needed, what: asked.append(needed) or '')
    weights = {'w': np.zeros(count, np.float32)}
    checkpoints = Checkpoints(tmp_path / 'checkpoints', keep_every=keep)
    checkpoints.require_space([weights] * (6 if algorithm == 'ppo' else 3), weights, 203, every)
    checkpoints.close()
    assert asked == [expected * count]


def test_runs_that_differ_in_nothing_that_counts_share_a_plan():
    same = {'a': {}, 'b': {'curriculum': {'end': 0.1}}, 'c': {'simulator': {'template': 'prompted'}}}
    same |= {'d': {'rl': {'kl': -0.001}}, 'e': {'rl': {'algorithm': 'rloo'}}, 'f': {'seed': 7}}
    rows, *_ = dried(study(same), plan := Planner())
    assert len(plan.asked) == 1 and len(rows) == len(same) + 1
    others = {'b': {'rl': {'algorithm': 'ppo'}}, 'c': {'rollout': {'group': 4}}, 'd': {'simulator': {'max_tokens': 25}}}
    dried(study(same | others), plan := Planner())
    assert len(plan.asked) == 4
    rows, *_ = dried(study(same | others), plan := Planner(), runs=slice(1, None, 3))
    assert rows.keys() == {'b', 'e', 'all'} and len(plan.asked) == 2


@pytest.mark.thorough
def test_the_shared_plan_is_that_of_each():
    where = hardware.devices(TARGET)
    slots = {'rollout': {'slots': 8}, 'simulator': {'slots': 8}}
    other = {'curriculum': {'end': 0.1}, 'rl': {'algorithm': 'rloo', 'kl': -0.5}, 'seed': 3}
    made = study({'a': slots, 'b': slots | other})
    plans = [planner.plan(made.parse(name, 0), TARGET, *where) for name in 'ab']
    shared = planner.plan(planner.essence(made.parse('b', 0)), TARGET, *where)
    assert plans[0] == plans[1] == shared


@pytest.mark.parametrize(('model', 'shared'), [('smollm2-135m', True), ('smollm2-135m-instruct', False)])
def test_another_model_of_equal_sizes_shares_no_base_in_a_plan(model, shared):
    policy = {'model': 'smollm2-135m', 'lora_rank': 4}
    cfg = study({'a': {'policy': policy, 'simulator': {'model': model}}}).parse('a', 0)
    assert share_base(cfg) is share_base(planner.essence(cfg)) is shared


# ---------------------------------------------------------------- what would stop them


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        ({'policy': {'model': 'Qwen/Qwen2.5-3'}}, 'Qwen/Qwen2.5-3: its sizes are not known'),
        ({'simulator': {'model': 'somebody/else'}}, 'somebody/else: its sizes are not known'),
        ({'simulator': {'template': 'nowhere.json'}}, "config.simulator.template = 'nowhere.json' is no file"),
        ({'simulator': {'prompt_tokens': 4090}}, 'simulator.model has 4096 positions, but prompt and .* may have 4114'),
        ({'rollout': {'turn_tokens': 60}}, 'response_tokens = 160, but a search and an answer need up to 184'),
        ({'simulator': {'words': 9}}, 'max_tokens = 24, but 3 documents of 9 words have more'),
        ({'rollout': {'observation_tokens': 5}}, 'observation_tokens = 5, but 3 documents of 2 words have more'),
        ({'rl': {'rows_per_micro': 12}}, 'rows_per_micro = 12 is not a multiple of data x fsdp = 8'),
        (
            {'policy': {'model': 'smollm2-135m'}, 'mesh': (1, 2, 4)},
            r'does not divide config.policy.model, 576 wide with 9',
        ),
        ({'mesh': (1, -1, 3)}, 'does not fit 8 devices'),
    ],
)
def test_what_would_stop_a_run_is_a_line_and_costs_no_plan(change, message):
    rows, [problem], _ = dried(study({'a': {}, 'b': change}), plan := Planner())
    assert problem.startswith('b: ') and '\n' not in problem
    assert re.search(message, problem)
    assert len(plan.asked) == 1 and rows['b'][2:5] == ['0.0', '0', '0.0']


def test_a_run_that_does_not_fit_is_reported_with_the_missing_memory():
    made = study({'a': {}, 'b': {'evaluation': {'methods': 'direct'}}})
    _, problems, _ = dried(made, Planner(peak=75 * GIB))
    assert problems == ['a: 1.4 GiB are missing on a100-80gb:8']  # of 73.6 without the reserve
    assert dried(made, Planner(refused=True))[1][0].startswith('a: ')


def test_published_simulators_that_are_asked_in_our_words_are_named():
    model = 'Alibaba-NLP/Simulation_LLM_google_3B_V2'
    _, problems, text = dried(study({'a': {'simulator': {'model': model}}, 'b': {}}))
    assert problems == [] and f'(simulator.template): {model}.' in text
    assert '(simulator.template): none.' in dried(study({'a': {}}))[2]


STUDY = """
from ml_collections import ConfigDict
from configs import tiny

def get_config():
    base = tiny.get_config()
    base.simulator.words = 2
    base.policy.lora_rank = 0
    variants = {'a': {}, 'b': {'evaluation': {'methods': 'direct'}}}
    return ConfigDict({'base': base, 'baseline': 'a', 'variants': variants, 'seeds': (0,)})
"""


@pytest.mark.thorough
def test_the_command_plans_and_ends_with_one_where_something_is_wrong(tmp_path):
    (tmp_path / 'mine.py').write_text(STUDY)
    words = [sys.executable, '-m', 'launch.sweep', '--config', 'mine.py', '--dry-run', '--hardware=a100-80gb:2']
    env = ENVIRONMENT | {'PYTHONPATH': f'{ROOT}', 'ZEROSEARCH_CACHE': str(tmp_path / 'cache')}

    def run(*more):
        return subprocess.run([*words, *more], cwd=tmp_path, env=env, capture_output=True, text=True)

    done = run()
    assert done.returncode == 0, done.stderr
    assert '| a (0) | tiny | tiny |' in done.stdout and '| b (0) | tiny | asked: direct |' in done.stdout
    assert 'forecasts of the planner, by XLA:CPU, as a stand-in' in done.stdout
    assert not (tmp_path / 'runs').exists()
    done = run('--config.base.simulator.template=none', '--config.base.simulator.words=9')
    assert done.returncode == 1 and 'Traceback' not in done.stderr
    lines = [line for line in done.stderr.splitlines() if line.startswith(('problem', 'error'))]
    assert [line.split(':')[0] for line in lines] == ['problem', 'error']
    assert (
        lines[1] == 'error: 1 problems; change the study; nothing was run'
        and "template = 'none' is no file" in lines[0]
    )
