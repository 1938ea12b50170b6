"""The study that reproduces the paper: its arms and figures, its dry run, and, shrunk, the whole of it."""

import dataclasses
import json
import re

import numpy as np
import pytest
from helpers import ROOT, load_random_models
from servers import Server

from configs.reproduce import figures, tables
from zerosearch_jax.evaluate import evaluation
from zerosearch_jax.models.config import PRESETS
from zerosearch_jax.plan import hardware, planner, programs
from zerosearch_jax.run import jsonl
from zerosearch_jax.study import sweep
from zerosearch_jax.tools import dry_run
from zerosearch_jax.train import config as train_config

# ---------------------------------------------------------------- arms and figures


def test_the_figures_are_whole_and_their_averages_are_those_that_the_paper_gives():
    assert len(figures.FIGURES) == 3 * (5 + 3 * 2) + 6 + 2 + 3
    for name, values in figures.FIGURES.items():
        assert len(values) == len(figures.SETS), name
        assert np.mean(values) == pytest.approx(figures.AVERAGES[name], abs=0.0051), name


@pytest.mark.parametrize('form', ['', 'paper'])
def test_every_row_of_the_tables_is_an_arm_and_every_arm_a_row(form):
    study = sweep.parse(tables.get_config(form))
    assert study.variants.keys() == figures.FIGURES.keys()
    parsed = {name: study.parse(name, 0) for name in study.variants}
    asked = [name for name in parsed if study.is_evaluation(name)]
    assert sorted(asked) == sorted(f'{model}_{method}' for model in tables.MODELS for method in tables.METHODS)
    assert {parsed[name].methods[0] for name in asked} == {*tables.METHODS}
    for name, cfg in parsed.items():
        model = {'qwen_3b': 'Qwen/Qwen2.5-3B', 'qwen_7b': 'Qwen/Qwen2.5-7B', 'llama_3b': 'meta-llama/Llama-3.2-3B'}
        base = model[re.match('[a-z]+_[0-9]b', name)[0]]
        assert cfg.policy.model == (base if '_base' in name else f'{base}-Instruct'), name
        assert cfg.evaluation.questions == 3125 and cfg.engine.kind == 'search_r1', name
    for name in parsed.keys() - {*asked}:
        cfg, ends = parsed[name], name.split('_')
        assert cfg.simulator.kind == {'r1': 'none', 'searchr1': 'engine'}.get(ends[-1], 'model'), name
        assert cfg.rl.steps == (0 if 'untrained' in ends else 203)
        assert cfg.simulator.template == 'prompted'
        assert f'{ends[-1].upper() if ends[-1][-1] == "b" else "14B"}' in cfg.simulator.model, name
        if form and 'ppo' not in ends:
            assert cfg.rl.kl == -0.001 and cfg.evaluation.whole_batches_of == 64
    base = tables.get_config(form)
    base.base.simulator.template = 'theirs.json'  # the wording of the published simulators, not of those without tuning
    asked = {name: sweep.parse(base).config(name, 0).simulator.template for name in parsed}
    assert {name for name in asked if asked[name] == 'prompted'} == {name for name in parsed if 'prompted' in name}
    algorithms = {name: parsed[f'qwen_3b_base{name}'].rl.algorithm for name in ('', '_grpo', '_ppo')}
    assert [*algorithms.values()] == ['reinforce' if form else 'reinforce_baseline', 'grpo', 'ppo']
    assert parsed['llama_3b_base_unmasked'].rl.observations == 'policy'
    assert (parsed['llama_3b_base_random'].curriculum.kind, parsed['llama_3b_base_random'].curriculum.start) == (
        'constant',
        0.5,
    )


def test_a_table_can_be_made_alone_and_google_asked():
    main, simulators = (sweep.parse(tables.get_config(f'paper_google_{name}')) for name in ('main', 'simulators'))
    assert len(main.variants) == 33 and len(simulators.variants) == 8
    assert {main.parse(name, 0).engine.kind for name in main.variants} == {'serpapi'}
    assert ('qwen_3b_base_tuned_7b', 'qwen_3b_base') in simulators.pairs
    grid = sweep.parse(tables.get_config('grid'))
    assert (
        len({(cfg.policy.model, cfg.simulator.model) for cfg in (grid.parse(name, 0) for name in grid.variants)}) == 9
    )
    assert {pair[1] for pair in main.pairs} == {*tables.MAIN} and len(main.pairs) == 12
    with pytest.raises(KeyError, match='paper_tabels'):
        tables.get_config('paper_tabels')


def test_an_evaluation_is_asked_as_the_trainings_are():
    study = sweep.parse(tables.get_config('paper'))
    agent, trained = study.parse('qwen_3b_agent', 0), study.parse('qwen_3b_instruct', 0)
    assert isinstance(agent, evaluation.Config) and isinstance(trained, train_config.Config)
    assert (agent.rollout, agent.engine, agent.policy) == (trained.rollout, trained.engine, trained.policy)
    assert agent.evaluation.datasets == trained.data.test and agent.evaluation.documents == 5
    assert agent.evaluation.temperature == 0 and agent.evaluation.whole_batches_of == 1


# ---------------------------------------------------------------- the dry run

DRY_RUNS = ROOT / 'docs' / 'runs' / 'reproduce'


def shrink(name):
    """A model with the heads of its family, and little else."""
    cfg = PRESETS[name]
    narrow = {field: getattr(cfg, field) // 8 for field in ('hidden_size', 'mlp_size', 'head_dim')}
    return dataclasses.replace(cfg, num_layers=1, vocab_size=512, **narrow)


MODELS = ('qwen2.5-3b', 'qwen2.5-7b', 'qwen2.5-14b', 'llama3.2-3b')


@pytest.mark.thorough
@pytest.mark.timeout(1800)
def test_the_dry_run_of_the_paper_finds_nothing_and_shares_its_plans(monkeypatch, tmp_path):
    monkeypatch.setenv('ZEROSEARCH_CACHE', str(tmp_path))
    for name in MODELS:
        monkeypatch.setitem(PRESETS, name, shrink(name))
    target, made = hardware.parse('a100-80gb:8'), []

    def plan(*given):
        made.append(planner.plan(*given))
        return made[-1]

    study = sweep.parse(tables.get_config('paper'))
    text, problems = dry_run.dry_run(study, slice(None), target, *hardware.devices(target), plan)
    assert problems == []
    assert len(made) == 3 * 3 + 2 + 1  # policies with simulator, engine, none; smaller simulators; PPO
    assert text.count('\n| ') == len(study.variants) + 2  # beside the titles and the sum


@pytest.mark.parametrize('form', ['paper', 'fixed'])
def test_the_committed_dry_run_is_of_this_study_and_the_page_has_its_totals(form):
    """Its runs, models, disks and searches are those of today's configuration; its sums are sums, and are cited."""
    study, text = sweep.parse(tables.get_config(form.replace('fixed', ''))), (DRY_RUNS / f'{form}.md').read_text()
    rows = [[cell.strip() for cell in line.split('|')[1:-1]] for line in text.splitlines() if line.startswith('| ')]
    found = {name.removesuffix(' (0)'): cells for name, *cells in rows[1:-1]}
    assert [*found] == [name for name, _ in study.runs()]
    for name, (policy, simulator, _, disk, *_, searches, _) in found.items():
        cfg = study.parse(name, 0)
        assert policy == cfg.policy.model
        if study.is_evaluation(name):
            assert simulator == f'asked: {cfg.methods[0]}' and disk == '0'
        else:
            assert simulator in (cfg.simulator.model, cfg.simulator.kind)
            assert disk == f'{dry_run.disk_bytes(cfg) / 2**30:.0f}'
            assert (float(searches.replace(',', '')) > 10**4) == (cfg.simulator.kind == 'engine')
    sums = [float(cell.replace(',', '')) for cell in rows[-1][3:]]
    columns = zip(*([float(cell.replace(',', '')) for cell in cells[2:]] for cells in found.values()), strict=True)
    largest, *added = columns
    assert sums[0] == max(largest)
    for total, column in zip(sums[1:], added, strict=True):
        assert total == pytest.approx(sum(column), abs=0.5 * len(column))  # the rows are rounded
    page = (ROOT / 'docs' / 'reproduce.md').read_text()
    peak, disk, hours, device_hours, dollars, *_ = rows[-1][3:]
    assert f'| `{form}` | {peak} GiB | {int(disk):,} GiB | {hours} | {device_hours} | ${dollars} |' in page


# ---------------------------------------------------------------- the whole of it, shrunk


@pytest.fixture
def small(monkeypatch, tmp_path):
    """The study with small random models, two steps, two questions of each set, and a retriever that knows nothing."""

    load_random_models(monkeypatch, lambda name: shrink(programs.preset(name)))
    for split, sets in {'train': figures.SETS[:1], 'test': figures.SETS}.items():
        rows = [hub_row(name, split, i) for name in sets for i in range(8 if split == 'train' else 2)]
        jsonl.write_jsonl(tmp_path / f'{split}.jsonl', rows)

    def answer(text):
        hit = {'document': {'id': '1', 'contents': '"Oslo"\nOslo is the capital of Norway.'}, 'score': 1.0}
        return json.dumps({'result': [[hit] for _ in json.loads(text)['queries']]})

    server, config = Server(answer), tables.get_config('paper')
    base = config.base
    base.mesh = (1, 1, 1)
    base.engine.url = server.url
    base.data.update(train=str(tmp_path / 'train.jsonl'), test=str(tmp_path / 'test.jsonl'))
    base.rollout.update(questions=4, group=2, prompt_tokens=896, turn_tokens=16, observation_tokens=96, slots=8)
    base.rollout.response_tokens = 256
    base.simulator.update(prompt_tokens=1536, max_tokens=16, slots=8, attempts=1)
    base.rl.update(steps=2, row_length=1152, rows_per_micro=2, minibatch=4)
    base.evaluation.whole_batches_of = 1
    base.run.update(checkpoint_every=2, keep_every=0, tensorboard=False)
    whole = sweep.parse(config)

    def make(names):
        return dataclasses.replace(whole, variants={name: whole.variants[name] for name in names})

    return make


def hub_row(name, split, i):
    """As of Alibaba-NLP/ZeroSearch_dataset."""
    question, answers = f'what is {name} {i}?', [f'answer {i}', 'Oslo']
    return {
        'id': f'{split}_{i}',
        'question': question,
        'golden_answers': answers,
        'data_source': name,
        'prompt': [{'role': 'user', 'content': f'Question: {question}'}],
        'ability': 'fact-reasoning',
        'reward_model': {'style': 'rule', 'ground_truth': {'target': answers}},
        'extra_info': {'split': split, 'index': i},
    }


KINDS = ('qwen_3b_base_ppo', 'qwen_3b_base_prompted_7b', 'qwen_3b_base_untrained', 'llama_3b_search_o1')


@pytest.mark.parametrize(
    'names',
    [
        pytest.param(KINDS, marks=[pytest.mark.thorough, pytest.mark.timeout(1800)], id='one of each kind'),
        pytest.param(tuple(figures.FIGURES), marks=[pytest.mark.slow, pytest.mark.timeout(7200)], id='all'),
    ],
)
def test_the_study_runs_in_parts_and_its_report_has_every_cell(small, tmp_path, monkeypatch, names):
    study, work, results = small(names), tmp_path / 'work', tmp_path / 'results'
    text = sweep.sweep(study, work, results, 0, 2)
    assert all(f'| {name} | not run / ' in text for name, _ in study.runs()[1::2])
    text = sweep.sweep(study, work, results, 1, 2)
    assert 'not run' not in text and 'no answers' not in text
    for name in names:
        row = next(line for line in text.splitlines() if line.startswith(f'| {name} | '))
        cells = [cell.split(' / ') for cell in row.strip('| ').split(' | ')[1:]]
        assert [float(given) for _, given in cells[:-1]] == [*figures.FIGURES[name]]
        assert all(0 <= float(mine) <= 100 for mine, _ in cells)
    facts = json.loads((results / 'report.json').read_text())['variants']
    assert {facts[name]['em']['questions'] for name in names} == {2 * len(figures.SETS)}

    def refuse(*_):
        raise AssertionError('it is done')

    monkeypatch.setattr(sweep.rl, 'train', refuse)
    monkeypatch.setattr(sweep.evaluation, 'evaluate', refuse)
    assert sweep.sweep(study, work, results) == text
