"""The miniature study: what its arms learn from and are asked is apart, and only its arms differ."""

import collections
import hashlib
import itertools
import json
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
from helpers import ROOT

from configs import quickstart
from configs.ablations import chains, engine, quickstart_curriculum, toy_chains, toy_curriculum
from configs.miniature import claim, warm_start
from zerosearch_jax import pretrained, settings
from zerosearch_jax.data import sources
from zerosearch_jax.evaluate import intervals, report
from zerosearch_jax.study import report as study_report
from zerosearch_jax.study import sweep
from zerosearch_jax.text.tokenizer import byte_tokenizer
from zerosearch_jax.train import config, demonstrations, sft, trainer

RUNS = ROOT / 'docs' / 'runs'


def taught(preset, monkeypatch):
    """The questions that a warm start's demonstrations are made of."""
    given = {}
    for name in ('policy_episode', 'world_search'):
        monkeypatch.setattr(
            demonstrations, name, lambda question, *_, **__: given.setdefault(question.id, question) and None
        )
    for module in (sft, demonstrations):
        monkeypatch.setattr(module, 'BM25', lambda passages: SimpleNamespace(search=None))
    model = SimpleNamespace(tokenizer=byte_tokenizer(), cfg=SimpleNamespace(max_position=8192))
    with pytest.raises(ValueError, match='demonstration'):  # none can be made
        sft.load_demonstrations(sft.parse(warm_start.get_config(preset)), model)
    return list(given.values())


def arm(name):
    return config.parse(sweep.parse(claim.get_config()).config(name, 0))


def test_no_question_serves_two_purposes(monkeypatch):
    trained, held_out = trainer.load_questions(arm('simulated_search'))
    parts = [taught('policy', monkeypatch), taught('simulator', monkeypatch), trained, held_out]
    assert [len(part) for part in parts] == [925, 1399, 2405, 200]
    for one, other in itertools.combinations(parts, 2):
        assert not {q.id for q in one} & {q.id for q in other}
        assert not {q.question for q in one} & {q.question for q in other}


def test_held_out_questions_are_about_other_countries():
    trained, held_out = (
        {iso for q in part for iso in q.metadata['countries']}
        for part in (sources.load_questions('world', 'train'), trainer.load_questions(arm('simulated_search'))[1])
    )
    assert len(trained) > 100 and len(held_out) > 50 and not trained & held_out


def test_arms_are_asked_the_same_with_the_real_engine():
    arms = [arm(name) for name in claim.CORE]
    assert len({tuple(q.id for q in trainer.load_questions(a)[1]) for a in arms}) == 1
    assert {(a.engine.kind, a.evaluation.temperature, a.evaluation.documents) for a in arms} == {('bm25', 0.0, 2)}
    assert len({(a.rollout.questions, a.rollout.group, a.policy, a.optimizer, a.data) for a in arms}) == 1
    assert [a.rl.steps for a in arms] == [0, 12, 12, 12]


def percent(found):
    return '{:.1f} [{:.1f}, {:.1f}]'.format(*(100 * x for x in (found['mean'], *found['interval'])))


def reported(study, name, tmp_path, preset=''):
    """The study, and the facts of its variants, after the committed report was made again of the committed results."""
    committed, made, results = RUNS / name, sweep.parse(study.get_config(preset)), tmp_path / name
    shutil.copytree(committed, results)
    assert sweep.write_report(made, results) == (committed / 'report.md').read_text().strip()
    return made, json.loads((results / 'report.json').read_text())['variants']


@pytest.mark.parametrize(('study', 'name'), [(claim, 'claim'), (engine, 'engine')])
def test_the_report_is_made_of_the_committed_results(study, name, tmp_path):
    made, variants = reported(study, name, tmp_path)
    assert {name: len(found['seeds']) for name, found in variants.items()} == dict.fromkeys(made.variants, 3)
    page = (RUNS.parent / 'claim.md').read_text()
    for name, found in variants.items():
        assert f'| {name.replace("_", " ")} | {percent(found["em"])} |' in page


def test_the_page_of_the_second_search_has_the_committed_results(tmp_path):
    _, variants = reported(toy_chains, 'toy_chains', tmp_path)
    page = (RUNS.parent / 'second_search.md').read_text()
    for name, found in variants.items():
        assert f'| `{name}` | {found["runs"]} | {percent(found["em"])} |' in page


def kind(row):
    """'compared' (two searches, neither needs the other) or the length of the chain, of a question of the world."""
    return 'compared' if row['id'].startswith(('larger_', 'more_')) else row['hops']


def by_kind(runs, name):
    """{kind of question: scores of each question in each run}, and of all questions."""
    rows, found = runs.answers[runs.seeds[0]], collections.defaultdict(list)
    for question, scores in runs.scores(name, runs.seeds).items():
        found['all'].append(scores)
        found[kind(rows[question])].append(scores)
    return found


@pytest.mark.parametrize(
    ('preset', 'name', 'pairs'),
    [
        ('', 'chains', (('grpo', 'turn_hop'), ('told_final', 'told_hop'))),
        ('long', 'chains_long', (('warm_start', 'grpo'), ('warm_start', 'turn_hop_price'), ('grpo', 'turn_hop_price'))),
    ],
)
def test_the_page_of_the_second_search_has_the_committed_results_of_the_chains(preset, name, pairs, tmp_path):
    study, variants = reported(chains, name, tmp_path, preset)
    page, em = (RUNS.parent / 'second_search.md').read_text(), {}
    for variant in (variant for variant, found in variants.items() if found['runs']):
        places = {seed: study.place(RUNS / name, variant, seed) for seed in study.seeds}
        runs = study_report.read_runs({seed: place for seed, place in places.items() if place.exists()})
        em[variant], searches = by_kind(runs, 'em'), by_kind(runs, 'searches')
        scores = ' | '.join(percent(intervals.with_interval(em[variant][k], (0, 1))) for k in ('all', 1, 2, 'compared'))
        counts = ', '.join(f'{np.mean(searches[k]):.2f}' for k in (1, 2, 'compared'))
        assert f'| `{variant}` | {runs.made} | {scores} | {counts} |' in page
    for first, second in pairs:
        paired = np.subtract(em[second][2], em[first][2])
        assert f'**{percent(intervals.with_interval(paired))}' in page.replace('\n', ' ')
        for each in paired.T if first == 'told_final' else ():  # of each seed, over its questions
            assert percent(intervals.with_interval(each)) in page


def test_the_page_of_the_simulator_has_the_committed_results_of_the_schedules(tmp_path):
    _, variants = reported(toy_curriculum, 'toy_curriculum', tmp_path)
    page = (RUNS.parent / 'simulator.md').read_text()
    for name, found in variants.items():
        row = next(line for line in page.splitlines() if line.startswith(f'| `{name}` | {found["runs"]} | '))
        assert f' | {percent(found["em"])} | ' in row
        assert row.endswith(f' | {found["reward"]["mean"]:.2f} |')


def test_the_page_of_the_simulator_has_the_committed_results_of_the_quickstarts_schedules(tmp_path):
    made, variants = reported(quickstart_curriculum, 'quickstart_curriculum', tmp_path)
    page = (RUNS.parent / 'simulator.md').read_text()
    assert variants.keys() == made.variants.keys()
    for name, found in variants.items():
        row = next(
            line for line in page.splitlines() if f'(`{name}`) | {found["runs"]} | {percent(found["em"])} |' in line
        )
        assert row.endswith(f' | {found["reward"]["mean"]:.2f} |')


@pytest.mark.parametrize('name', ['miniature_policy', 'miniature_simulator'])
def test_the_warm_starts_ship_and_say_what_they_learned_from(name):
    from zerosearch_jax.run import trained

    demos_of = trained.find(name).run['demos']
    role = name.removeprefix('miniature_')
    assert demos_of['source'] == f'world:{role}' and tuple(demos_of['folds']) == warm_start.FOLDS[role]
    assert pretrained.find_adapter(name).stat().st_size < 6e6


def test_the_results_of_the_quickstart_are_of_its_configuration_and_on_the_first_screen():
    """A change of the quickstart, of a default that it takes or of an adapter asks for its three runs anew."""
    for line in (RUNS / 'quickstart' / 'adapters.sha256').read_text().splitlines():
        digest, name = line.split()
        assert hashlib.sha256((ROOT / 'zerosearch_jax' / 'adapters' / name).read_bytes()).hexdigest() == digest
    places = sorted((RUNS / 'quickstart').glob('seed_*'))
    assert len(places) == 3
    for seed, place in enumerate(places):
        config = quickstart.get_config()
        config.seed = seed
        assert study_report.is_finished(place, settings.to_json(config))
    gain = report.pool(places)['em']['gain']
    mean, low, high = (f'{100 * value:.1f}' for value in (gain['mean'], *gain['interval']))
    first_screen = ' '.join((RUNS.parents[1] / 'README.md').read_text().partition('## What it is')[0].split())
    assert f'{mean} points (95 % interval {low} to {high}' in first_screen
