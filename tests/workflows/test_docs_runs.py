"""What the documentation says of runs, by small runs: the metrics that they write, and the worked examples."""

import importlib
import json
import pathlib
import re
import sys
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from helpers import FIXTURES, TOLERANCE, full_logits, worst
from scripted import BYTES, CFG, OSLO, ROME, FakeEngine, FakeSearch
from test_docs import DOCS, EXAMPLES, section, tables, write_examples

from configs import tiny, toy_sft
from configs.common import sections
from zerosearch_jax import settings, sharding
from zerosearch_jax.evaluate import evaluation
from zerosearch_jax.models import config
from zerosearch_jax.rollout.rollout import rollout
from zerosearch_jax.run import alarms, jsonl
from zerosearch_jax.search.journal import Journal
from zerosearch_jax.search.remote import EngineConfig, open_search_engine
from zerosearch_jax.search.search import Query, Result, SearchFailed, engine_search
from zerosearch_jax.simulator.config import SimulatorConfig
from zerosearch_jax.simulator.prompts import request, simulator_template
from zerosearch_jax.train import config as train_config
from zerosearch_jax.train import rl, sft
from zerosearch_jax.train.learner import Learned
from zerosearch_jax.weights import huggingface, loading

pytestmark = pytest.mark.thorough


def train(workdir, **fields):
    """Two steps of configs/tiny.py on the toy's questions; its metrics."""
    made = tiny.get_config()
    made.data.update(train='toy', test='toy', corpus='toy')
    made.simulator.kind = 'oracle'
    made.rl.steps = made.evaluation.questions = 2
    for name, value in fields.items():
        group, field = name.split('__')
        made[group][field] = value
    rl.train(train_config.parse(made), workdir, settings.to_json(made))
    return jsonl.read_jsonl(workdir / 'metrics.jsonl')


def documented(heading, number=0):
    """The names in the first column of a table under a heading of docs/metrics.md."""
    return [row[0].strip('`') for row in tables(section('metrics.md', heading))[number]]


def written(rows):
    return {name for row in rows for name in row}


# ---------------------------------------------------------------- metrics


@pytest.fixture(scope='module')
def run(tmp_path_factory):
    """PPO, for it writes what the others write and more."""
    workdir = tmp_path_factory.mktemp('ppo')
    return workdir, train(workdir, rl__algorithm='ppo')


def test_the_metrics_of_reinforcement_learning(run):
    names = {*documented('`metrics.jsonl` of reinforcement learning')}
    elsewhere = {'eval/failed'}  # of evaluations with failures alone
    elsewhere |= {'rollout/information', 'rollout/information_missing'}  # of rewarded searches: test_information.py
    assert elsewhere < names and sorted(names - elsewhere) == sorted(written(run[1]))


def test_the_summary(run):
    summary = json.loads((run[0] / 'summary.json').read_text())
    assert documented('`summary.json`') == list(summary)
    assert sorted(documented('`summary.json`', 1)) == sorted(summary['cost'])


def test_the_fields_of_episodes(run):
    rows = jsonl.read_jsonl(run[0] / 'trajectories.jsonl')
    assert sorted(documented('Episodes')) == sorted(written(rows))
    evaluated = jsonl.read_jsonl(run[0] / 'evaluation' / 'step_000000.jsonl')
    assert written(rows) - written(evaluated) == {'reward', 'turn_rewards', 'advantage'}


def test_the_metrics_of_fine_tuning(tmp_path):
    made = toy_sft.get_config()
    made.sft.update(steps=1, batch=2, evaluate_every=1)
    made.demos.update(count=2, held_out=2)
    sft.train(sft.parse(made), tmp_path, settings.to_json(made))
    rows = jsonl.read_jsonl(tmp_path / 'metrics.jsonl')
    assert sorted(documented('`metrics.jsonl` of supervised fine-tuning')) == sorted(written(rows))


def test_the_results_of_an_evaluation(tmp_path):
    made = sections(evaluation.Config)
    made.policy.model = 'tiny'
    made.evaluation.update(methods='direct', datasets='toy', corpus='toy', questions=2)
    made.rollout.update(prompt_tokens=768, response_tokens=32, turn_tokens=16, slots=2)
    evaluation.evaluate(evaluation.parse(made), tmp_path, settings.to_json(made))
    own = written(jsonl.read_jsonl(tmp_path / 'results.jsonl'))
    episode = {*documented('Episodes')} - {'step', 'reward', 'turn_rewards', 'advantage'}
    assert sorted(documented('`results.jsonl` of an evaluation')) == sorted(own - episode)
    assert episode <= own


def test_the_alarms_and_their_thresholds():
    table = tables(section('metrics.md', 'Alarms'))[0]
    told = {row[0].strip('`'): row[2] for row in table}
    assert told.keys() == alarms.ADVICE.keys()
    cfg = alarms.AlarmConfig()
    assert all(float(value) == getattr(cfg, name) for name, value in told.items() if name != 'not_finite')


def stepped(searcher, searches=lambda sample: sample):
    """Metrics and rows of a step whose trajectories search so many times before they answer."""

    def script(handle, number, engine):
        searching = number < searches(handle[1])
        return [*BYTES.encode('<search>rome</search>' if searching else '<answer>Italy</answer>'), 2**9]

    found = rollout((ROME, OSLO), 2, FakeEngine(script), searcher, BYTES, CFG, identity=(0, 1))
    trainer = SimpleNamespace(
        cfg=SimpleNamespace(rollout=SimpleNamespace(group=2), rl=SimpleNamespace(dynamic_sampling=0, deepest=1.0)),
        generated_tokens=0,
        collect_dynamic=lambda step, noise: (found, [], 0),
        score=SimpleNamespace(by_turn=lambda trajectory: np.ones(1)),
        learner=SimpleNamespace(learn=lambda *_: Learned({}, np.zeros(4), [None] * 4)),
        mesh=SimpleNamespace(size=1),
        model=SimpleNamespace(tokenizer=BYTES),
    )
    return rl.train_step(trainer, 1, noise=0.0)


def test_failed_searches_are_counted_though_their_trajectories_are_left_out():
    fails = engine_search(lambda queries, k: [SearchFailed('timeout') for _ in queries], 1)
    measured, _ = stepped(fails)
    assert (measured['rollout/failed'], measured['rollout/search_failed'], measured['rollout/searches']) == (
        0.5,
        1,
        0.5,
    )


def test_searches_that_belie_their_labels_and_attempts_are_counted_by_label():
    def answer(query):
        noisy, attempts, mislabelled = [(False, 3, True), (True, 2, None), (False, 1, False)][query.turn]
        return Result(query, ('x', 'y'), (noisy, False), '', attempts, mislabelled=mislabelled)

    measured, rows = stepped(FakeSearch(answer), searches=lambda sample: 2 + sample)
    names = ('noisy_share', 'mislabelled', 'attempts_useful', 'attempts_noisy')
    assert [measured[f'rollout/{name}'] for name in names] == pytest.approx([4 / 20, 4 / 6, (4 * 3 + 2 * 1) / 6, 2])
    assert [s['mislabelled'] for s in rows[1]['searches']] == [True, None, False]
    measured, _ = stepped(engine_search(lambda queries, k: [[] for _ in queries], 1))  # which has no labels
    assert [measured[f'rollout/{name}'] for name in names] == [0, 0, 0, 0]


# ---------------------------------------------------------------- worked examples


@pytest.fixture(scope='module')
def mine(tmp_path_factory):
    """A function that imports a module of docs/extending.md."""
    directory = write_examples(tmp_path_factory.mktemp('mine'))
    before = set(sys.modules)
    sys.path.insert(0, str(directory))
    yield importlib.import_module
    sys.path.remove(str(directory))
    config.FAMILIES.pop('mistral', None)
    for name in set(sys.modules) - before:
        if name.startswith('my_'):
            del sys.modules[name]


def test_a_reward_of_ones_own_trains(mine, tmp_path):
    rows = train(tmp_path, reward__answer='my_reward.frugal_f1', reward__format=0.5)
    assert [row['step'] for row in rows if 'reward/mean' in row] == [1, 2]
    trajectory = SimpleNamespace(answer='Italy', searches=[1, 2])
    assert mine('my_reward').frugal_f1(trajectory, ['Italy']) == pytest.approx(0.9)


def test_a_turn_reward_of_ones_own_trains(mine, tmp_path):
    rows = train(tmp_path, reward__turn='my_turns.new_documents', rl__credit='turn')
    assert [row['reward/earlier_turns'] >= 0 for row in rows if 'reward/mean' in row] == [True] * 2
    searches = [SimpleNamespace(documents=documents) for documents in (('a', 'b'), ('b', 'c'))]
    trajectory = SimpleNamespace(turns=4, search_turns=[0, 2], searches=searches)
    assert mine('my_turns').new_documents(trajectory) == [0.1, 0.0, 0.05, 0.0]


@pytest.mark.parametrize('name', ['median', 'plain'])
def test_an_algorithm_of_ones_own_trains(mine, tmp_path, monkeypatch, name):
    lengths = iter(range(100))
    monkeypatch.setattr('zerosearch_jax.rollout.answers.REWARDS', {'f1': lambda *_: next(lengths) % 3 / 2.0} | SCORES)
    rows = [row for row in train(tmp_path, rl__algorithm=f'my_algorithm.{name}', rl__kl=0.0) if 'loss/loss' in row]
    assert len(rows) == 2 and all(row['loss/grad_norm'] > 0 for row in rows)
    if name == 'plain':
        assert all(row['loss/loss'] == row['loss/policy'] for row in rows)


SCORES = {name: lambda *_: 0.0 for name in ('em', 'cover_em')}


def test_the_median_is_the_groups(mine):
    rewards, groups = np.array([0.0, 0.5, 1.0, 9.0, 0.2]), np.array([0, 0, 0, 0, 1])
    valid = np.array([True, True, True, False, True])
    np.testing.assert_array_equal(mine('my_algorithm').over_median(rewards, groups, valid), [-1, 0, 1, 0, 0])


def test_an_engine_of_ones_own_answers_an_episode(mine, monkeypatch):
    def script(handle, number, engine):
        return [*BYTES.encode('<answer>Italy</answer>' if number else '<search>where is Rome</search>'), 2**9]

    def play():
        engine = open_search_engine(EngineConfig('my_engine.titles', pause_s=0.0), log=Journal())
        search = engine_search(engine.search, 2)
        return rollout((ROME,), 1, FakeEngine(script), search, BYTES, CFG, identity=(0, 1))[0]

    trajectory = play()
    assert trajectory.searches[0].documents == ('rome. Rome is the capital of Italy.',)
    assert (trajectory.status, trajectory.answer) == ('answered', 'Italy')
    monkeypatch.setattr(mine('my_engine'), 'TITLES', {})
    assert (play().status, play().searches[0].failure) == ('search_failed', 'no_index')


def test_a_tool_answers_behind_the_search_tag(mine):
    search = open_search_engine(EngineConfig('my_tool.search_or_sum', retries=0), log=Journal()).search
    (total,), (first, *_) = search(['sum 12 30', 'number bade'], 2)
    assert total.text == '42' and first == mine('my_tool').corpus().search(['number bade'], 1)[0][0]
    assert search(['sum up'], 2) == [[]]


def test_a_policy_that_calls_a_tool_trains(tmp_path):
    rows = train(tmp_path, rollout__grammar='tool_call')
    assert [row['step'] for row in rows if 'loss/loss' in row] == [1, 2]
    episodes = jsonl.read_jsonl(tmp_path / 'trajectories.jsonl')
    observed = [s['text'] for row in episodes for s in row['segments'] if s['kind'] == 'observation']
    assert observed and all('<|im_start|>tool\n' in text for text in observed)


def test_a_template_of_ones_own_asks_a_simulator(tmp_path):
    template = simulator_template(str(write_examples(tmp_path) / 'my_template.json'))
    useful, noisy = (request(Query('', ROME, 0, 0, 'q'), SimulatorConfig(), template, n, 2) for n in (False, True))
    assert 'Answer: Italy' in useful and 'Italy' not in noisy and 'Query: q\n' in noisy


@pytest.fixture
def mistral(mine, tmp_path):
    """A saved model of the family, its configuration and weights, and the logits that it has as a Llama."""
    mesh = sharding.make_mesh()
    family = mine('my_family')
    source = FIXTURES / 'parity_llama'
    hf = json.loads((source / 'config.json').read_text()) | {'model_type': 'mistral', 'sliding_window': None}
    cfg = family.read(hf)
    with pytest.raises(ValueError, match='sliding_window'):
        family.read(hf | {'sliding_window': 4096})
    params = loading.load(source, cfg, mesh, progress=False)
    huggingface.save(params, cfg, tmp_path)
    return tmp_path, cfg, mesh, np.load(source / 'logits.npz')


def test_a_family_is_a_line(mistral):
    path, cfg, mesh, stored = mistral
    assert json.loads((path / 'config.json').read_text())['architectures'] == ['MistralForCausalLM']
    assert loading.read_config(path) == cfg and cfg.family == 'mistral'
    with jax.set_mesh(mesh):
        found = full_logits(loading.load(path, cfg, mesh, progress=False), stored['ids'], cfg)
    assert worst(found, stored['logits']) < TOLERANCE


def test_transformers_reads_what_the_family_saves(mistral):
    torch = pytest.importorskip('torch')
    from transformers import AutoModelForCausalLM

    path, _, _, stored = mistral
    model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32, attn_implementation='eager')
    assert type(model).__name__ == 'MistralForCausalLM'
    with torch.no_grad():
        assert worst(model(torch.tensor(stored['ids'])).logits.numpy(), stored['logits']) < TOLERANCE


def test_every_example_of_the_page_is_run():
    code = (DOCS / 'extending.md').read_text()
    assert len(EXAMPLES) == len(re.findall('```(python|json)', code)) == 7
    assert all(name.split('.')[0] in pathlib.Path(__file__).read_text() for name in EXAMPLES)
