"""A study runs variants and seeds, resumes, shares its work, and compares what is paired."""

import dataclasses
import json
import shutil
import signal

import numpy as np
import pytest
from ml_collections import ConfigDict

from configs import tiny
from zerosearch_jax import settings
from zerosearch_jax.evaluate import evaluation
from zerosearch_jax.evaluate.intervals import detectable, interval, p_value
from zerosearch_jax.run import jsonl, preemption
from zerosearch_jax.study import report, sweep
from zerosearch_jax.train import config as train_config
from zerosearch_jax.train import rl, trainer

SPEED = {'speed/rollout_seconds': 1.5, 'speed/update_seconds': 0.5}


def study(**changes):
    base = tiny.get_config()
    base.rl.steps = 2
    config = {'base': base, 'variants': {'a': {}, 'b': {'rl': {'algorithm': 'rloo'}}}, 'seeds': (0, 1)}
    config['baseline'] = next(iter(changes.get('variants', config['variants'])), '')
    return sweep.parse(ConfigDict(config | changes))


def fake_run(results, made, variant, seed, scores, rewards, extra=None, hops=False):
    """What is kept of a run whose evaluation had these scores."""
    run, resolved = results / 'run', settings.to_json(made.config(variant, seed))
    texts = [{'kind': kind, 'text': f'{kind} of {variant}'} for kind in ('prompt', 'action')]
    about = {'answer': None, 'status': 'answered', 'response_tokens': 7, 'searches': [{}, {}], 'segments': texts}
    rows = [
        {
            'id': f'q{i}',
            'question': '*q*?',
            'golden_answers': ['a'],
            'hops': 1 + i // 3 if hops else None,
            'step': 2,
            'em': s,
            'f1': s,
            'cover_em': s,
            **about,
        }
        for i, s in enumerate(scores)
    ]
    jsonl.write_jsonl(run / 'evaluation' / 'step_000000.jsonl', [row | {'em': 0.0} for row in rows])
    jsonl.write_jsonl(run / 'evaluation' / 'step_000002.jsonl', rows)
    steps = [{'step': i + 1, 'reward/mean': r, **SPEED, **(extra or {})} for i, r in enumerate(rewards)]
    jsonl.write_jsonl(run / 'metrics.jsonl', steps)
    cost = {'queries': 1000, 'tokens': 5000, 'device_seconds': 7200, 'device_dollars': 0.0, 'api_dollars': 9.17}
    (run / 'summary.json').write_text(json.dumps({'cost': cost | {'device': 'cpu'}}))
    report.save_results(run, made.place(results, variant, seed), resolved)
    shutil.rmtree(run)


def test_a_variant_changes_what_it_says_and_nothing_else():
    made = study()
    a, b = made.config('a', 1), made.config('b', 1)
    assert (a.seed, b.seed, a.rl.algorithm, b.rl.algorithm) == (1, 1, 'grpo', 'rloo')
    b.rl.algorithm = 'grpo'
    assert settings.to_json(a) == settings.to_json(b)
    assert made.config('a', 0).seed == 0 and made.base.seed == 0
    assert made.runs() == [('a', 0), ('b', 0), ('a', 1), ('b', 1)]


def test_the_baseline_is_the_one_that_is_named():
    assert list(study(baseline='b').variants) == ['b', 'a']
    with pytest.raises(ValueError, match="baseline 'c' is none of the variants a, b"):
        study(baseline='c')


@pytest.mark.parametrize(
    ('variants', 'message'),
    [
        ({'x': {'rl': {'algorithm': 'best'}}}, "variant 'x': config.rl: algorithm = 'best' is none of"),
        ({'x': {'rl': {'algoritm': 'grpo'}}}, "variant 'x': .*algoritm"),
        ({'x': {'rll': {'algorithm': 'grpo'}}}, "variant 'x': .*rll"),
        ({'x': {'rl': {'steps': 'many'}}}, "variant 'x': .*'steps'.* many is of original type"),
        ({'x': {'rl': 3}}, "variant 'x': config.rl must be a section, got 3"),
        ({'x': 3}, "variant 'x': it must have sections with the fields that it changes, got 3"),
        ({}, 'needs variants and seeds'),
    ],
)
def test_a_wrong_variant_is_told_before_anything_runs(variants, message):
    with pytest.raises(ValueError, match=message):
        study(variants=variants)


@pytest.mark.parametrize(
    ('seeds', 'message'),
    [((0.5,), "'seed'.* 0.5 is of"), (('a',), "'seed'.* a is of"), ((0, -1), 'seed must not be negative, got -1')],
)
def test_every_seed_is_checked_before_anything_runs(seeds, message):
    with pytest.raises(ValueError, match=f"variant 'a': .*{message}"):
        study(seeds=seeds)


def test_an_experiment_is_no_study():
    with pytest.raises(ValueError, match=r"has no 'base', so it is no study: give it to launch\.train"):
        sweep.parse(tiny.get_config())


def test_runs_are_shared_among_parts_and_finished_ones_are_not_repeated(tmp_path, monkeypatch):
    made, ran = study(), []

    def train(cfg, here, resolved):
        ran.append((here.parent.name, here.name))
        here.mkdir(parents=True, exist_ok=True)
        (here / 'config.json').write_text(resolved)
        jsonl.write_jsonl(here / 'metrics.jsonl', [{'step': 1, 'reward/mean': 0.5, **SPEED}])
        (here / 'summary.json').write_text('{}')
        return {}

    monkeypatch.setattr(sweep.rl, 'train', train)
    work, results = tmp_path / 'work', tmp_path / 'results'
    sweep.sweep(made, work, results, 1, 3)
    assert ran == [('b', 'seed_0')]
    text = sweep.sweep(made, work, results)
    assert ran == [('b', 'seed_0'), ('a', 'seed_0'), ('a', 'seed_1'), ('b', 'seed_1')]
    assert text == (results / 'report.md').read_text().strip()
    shutil.rmtree(work)  # the results are enough
    assert sweep.sweep(made, work, results) == text
    with pytest.raises(ValueError, match='is the directory of the runs; choose another'):
        sweep.sweep(made, results, results)
    assert len(ran) == 4
    changed = study(seeds=(0,), variants={'a': {'rl': {'kl': 0.5}}})
    sweep.sweep(changed, work, results)
    assert len(ran) == 5  # another configuration is another run


def test_answers_that_failed_are_asked_again_by_a_run_that_can_continue(tmp_path, monkeypatch):
    made, ran = study(seeds=(0,), variants={'a': {}}), []
    fake_run(tmp_path / 'results', made, 'a', 0, [1, 0], [0.5])
    path = made.place(tmp_path / 'results', 'a', 0) / 'answers.jsonl'
    monkeypatch.setattr(sweep.rl, 'train', lambda *_: ran.append('a'))  # SIGTERM
    for there, status, runs in ((True, 'answered', 0), (False, 'search_failed', 0), (True, 'search_failed', 1)):
        jsonl.write_jsonl(path, [row | {'status': status} for row in jsonl.read_jsonl(path)])
        if there:
            (made.place(tmp_path / 'work', 'a', 0) / 'checkpoints' / '2').mkdir(parents=True)
        sweep.sweep(made, tmp_path / 'work', tmp_path / 'results')
        assert len(ran) == runs
        shutil.rmtree(tmp_path / 'work', ignore_errors=True)


@pytest.mark.thorough
def test_a_run_that_was_told_to_stop_is_not_taken_for_done(tmp_path, monkeypatch):
    made, results = study(seeds=(0,), variants={'a': {}}), tmp_path / 'results'
    with monkeypatch.context() as sigterm:
        sigterm.setattr(sweep.rl.preemption.Watch, 'stop_requested', lambda self: True)
        assert '| a | not run |' in sweep.sweep(made, tmp_path / 'work', results)
    assert jsonl.read_jsonl(tmp_path / 'work' / 'a' / 'seed_0' / 'metrics.jsonl')[-1]['step'] == 1
    assert '| a | 1 |' in sweep.sweep(made, tmp_path / 'work', results)


def test_a_signal_in_the_last_step_of_a_run_ends_the_study_after_it(tmp_path, monkeypatch):
    made, ran = study(), []

    def train(cfg, here, resolved):
        ran.append(here.parent.name)
        with preemption.Watch():  # as in a run, which has nothing left to stop
            signal.raise_signal(signal.SIGTERM)
        jsonl.write_jsonl(here / 'metrics.jsonl', [{'step': 1, 'reward/mean': 0.5, **SPEED}])
        (here / 'summary.json').write_text('{}')
        return {}

    monkeypatch.setattr(sweep.rl, 'train', train)
    assert '| a | 1 |' in sweep.sweep(made, tmp_path / 'work', tmp_path / 'results')
    assert ran == ['a']


def test_results_count_however_fast_they_were_made_and_by_whichever_version(tmp_path):
    made = study(seeds=(0,), variants={'a': {}})
    fake_run(tmp_path, made, 'a', 0, [1, 0], [0.1] * 10)
    place = made.place(tmp_path, 'a', 0)
    rows = jsonl.read_jsonl(place / 'answers.jsonl')
    jsonl.write_jsonl(place / 'answers.jsonl', [{k: v for k, v in row.items() if k != 'hops'} for row in rows])
    made.base.rollout.slots = 8
    assert '| a | 1 | 0.500' in sweep.write_report(made, tmp_path)
    made.base.rollout.group = 3
    assert '| a | not run |' in sweep.write_report(made, tmp_path)


def test_runs_that_an_alarm_stopped_early_cut_no_other_short(tmp_path):
    made = study(variants={'a': {}})
    fake_run(tmp_path, made, 'a', 0, [1], [0.1] * 8 + [0.2, 0.4])
    fake_run(tmp_path, made, 'a', 1, [1], [0.1] * 5)
    sweep.write_report(made, tmp_path)
    found = json.loads((tmp_path / 'report.json').read_text())['variants']['a']
    assert found['reward']['seeds'] == pytest.approx([0.3, 0.1])


def test_the_report_pairs_questions_and_seeds(tmp_path):
    made = study()
    fake_run(tmp_path, made, 'a', 0, [1, 0, 0, 0], [0.1] * 8 + [0.2, 0.4])
    fake_run(tmp_path, made, 'a', 1, [1, 1, 0, 0], [0.1] * 8 + [0.2, 0.2])
    fake_run(tmp_path, made, 'b', 0, [1, 1, 0, 0], [0.5] * 10)
    fake_run(tmp_path, made, 'b', 1, [1, 1, 1, 0], [0.7] * 10)
    text = sweep.write_report(made, tmp_path)
    found = json.loads((tmp_path / 'report.json').read_text())
    a, b, gap = found['variants']['a'], found['variants']['b'], found['differences']['b - a']
    assert a['em']['mean'] == pytest.approx(3 / 8) and b['em']['mean'] == pytest.approx(5 / 8)
    assert gap['em']['mean'] == pytest.approx(2 / 8)
    assert a['reward']['seeds'] == pytest.approx([0.3, 0.2])  # of the last fifth of the steps
    gaps = np.array([[0, 0], [1, 0], [0, 1], [0, 0]])  # questions by seeds
    assert gap['em'] == {
        'mean': 0.25,
        'interval': [*interval(gaps)],
        'p': p_value(gaps),
        'detectable': detectable(gaps),
    }
    # of rewards Student's t over seeds: 0.2 and 0.5
    assert gap['reward'] == {
        'mean': pytest.approx(0.35),
        'interval': pytest.approx([0.35 - 1.906, 0.35 + 1.906], abs=1e-3),
    }
    assert '| b | 2 | 0.625' in text and '| b - a | +0.250' in text
    assert '| a | 10 | 1000 | 5,000 | 2.0 | 2.00 (cpu) | - | $9.17 |' in text
    assert (tmp_path / 'report.png').stat().st_size > 1000


def test_questions_of_one_and_two_hops_are_told_apart(tmp_path):
    made = study()
    fake_run(tmp_path, made, 'a', 0, [1, 1, 0, 0, 1], [0.5])
    assert 'in need of' not in sweep.write_report(made, tmp_path)
    for seed, scores in enumerate(([1, 1, 0, 0, 1], [1, 1, 1, 0, 0])):
        fake_run(tmp_path, made, 'b', seed, scores, [0.5], hops=True)
    text = sweep.write_report(made, tmp_path)
    assert '| variant | 3 questions in need of 1 passage | 2 questions in need of 2 passages |' in text
    split = json.loads((tmp_path / 'report.json').read_text())['variants']['b']['em_by_hops']
    assert [split[n]['mean'] for n in '12'] == pytest.approx([5 / 6, 1 / 4]) and split['1']['searches'] == 2
    fake_run(tmp_path, made, 'b', 1, [1, 1, 1], [0.5], hops=True)  # its questions of two hops failed
    sweep.write_report(made, tmp_path)
    split = json.loads((tmp_path / 'report.json').read_text())['variants']['b']['em_by_hops']
    assert split.keys() == {'1'} and split['1']['questions'] == 3


def test_examples_are_the_first_of_every_variant_and_format_nothing(tmp_path):
    made = study(seeds=(0,))
    fake_run(tmp_path, made, 'a', 0, [1] * 7, [0.5])
    fake_run(tmp_path, made, 'b', 0, [0] * 7, [0.5])
    text = sweep.write_report(made, tmp_path)
    assert text.count('**\\*q\\*?** (a)') == 5
    assert text.count('    action of a\n') == text.count('a, F1 1.00:') == 5
    assert 'prompt of' not in text


def test_an_evaluation_is_compared_with_a_training_question_by_question(tmp_path):
    made, names = study(seeds=(0,), variants=ASKED), [f'n{i}' for i in range(7)]
    row = {'answer': None, 'status': 'answered', 'response_tokens': 7, 'searches': [], 'golden_answers': ['a']}
    rows = [{'id': i, 'question': f'what is {i}', 'dataset': '', 'segments': [], **row} for i in names]
    scores = [dict.fromkeys(('em', 'f1', 'cover_em'), float(i < 2)) for i in range(7)]
    rows = [one | two for one, two in zip(rows, scores, strict=True)]
    for name in 'ab':
        run = tmp_path / f'run_{name}'
        if name == 'a':
            jsonl.write_jsonl(run / 'evaluation' / 'step_000002.jsonl', rows)
            jsonl.write_jsonl(run / 'metrics.jsonl', [{'step': 1, 'reward/mean': 0.5, **SPEED}])
            (run / 'summary.json').write_text('{}')
        else:  # in the order in which the episodes ended, and the set has the name of its file
            jsonl.write_jsonl(run / 'results.jsonl', [one | {'dataset': 'test'} for one in rows[::-1]])
        report.save_results(run, made.place(tmp_path, name, 0), settings.to_json(made.config(name, 0)))
    text = sweep.write_report(made, tmp_path)
    assert '| b - a | +0.000 [+0.000, +0.000] |' in text
    assert text.count('**what is ') == 5 and text.count('a, F1 ') == text.count('b, F1 ') == 5
    for part in text.split('**what is ')[1:]:
        expected = f'{float(part[:2] in names[:2]):.2f}'
        assert f'a, F1 {expected}' in part and f'b, F1 {expected}' in part


def test_pairs_are_compared_in_their_order_and_must_be_variants(tmp_path):
    made = study(seeds=(0,), pairs=(('b', 'a'),))
    fake_run(tmp_path, made, 'a', 0, [1, 0], [0.5])
    fake_run(tmp_path, made, 'b', 0, [0, 0], [0.5])
    text = sweep.write_report(made, tmp_path)
    assert '| a - b | +0.500' in text and '| +0.000 |' in text  # a reward of one seed has no interval
    assert '(of one run: over questions alone)' in text
    with pytest.raises(ValueError, match=r"config\.pairs: 'c' is none of the variants a, b"):
        study(pairs=(('a', 'c'),))


def test_a_variant_with_its_own_seed_is_run_once_and_compared_with_all(tmp_path):
    made = study(variants={'a': {'seed': 5}, 'b': {}})
    assert made.place(tmp_path, 'a', 0) == made.place(tmp_path, 'a', 1) == tmp_path / 'a' / 'seed_5'
    assert made.runs() == [('a', 0), ('b', 0), ('b', 1)]
    fake_run(tmp_path, made, 'a', 0, [1, 0], [])
    for seed, scores in enumerate(([1, 1], [0, 1])):
        fake_run(tmp_path, made, 'b', seed, scores, [0.5], {'loss/kl': 0.1})
    text = sweep.write_report(made, tmp_path)
    assert '| a | 1 | 0.500' in text and '| b - a | +0.250' in text
    path = made.place(tmp_path, 'a', 0) / 'answers.jsonl'
    first, *others = jsonl.read_jsonl(path)
    jsonl.write_jsonl(path, [first | {'status': 'search_failed'}, *others])
    assert '| a | 1 (1 answers failed) |' in sweep.write_report(made, tmp_path)


def test_what_is_not_run_is_said_so(tmp_path):
    made = study()
    fake_run(tmp_path, made, 'a', 0, [1, 0], [0.5, 0.5])
    text = sweep.write_report(made, tmp_path)
    assert '| b | not run |' in text and '| a | 1 |' in text
    assert np.count_nonzero([line.startswith('| a ') for line in text.splitlines()]) == 2  # scores and cost


ASKED = {'a': {}, 'b': {'evaluation': {'methods': 'rag'}, 'rollout': {'max_turns': 0}}}


def test_a_variant_that_names_methods_asks_the_bases_questions_of_its_engine():
    made = study(variants=ASKED)
    made.base.data.update(test='toy', corpus='toy', too_long='skip')
    made.base.evaluation.update(documents=7, temperature=0.5, whole_batches_of=2)
    made.base.engine.url, made.base.mesh = 'http://elsewhere', (1, 2, 1)
    cfg, trained = made.parse('b', 3), made.parse('a', 3)
    assert isinstance(cfg, evaluation.Config) and isinstance(trained, train_config.Config)
    assert (cfg.methods, cfg.datasets, cfg.seed, cfg.mesh) == (['rag'], ['toy'], 3, (1, 2, 1))
    asked = cfg.evaluation
    assert (asked.corpus, asked.too_long, asked.questions) == ('toy', 'skip', trained.evaluation.questions)
    assert (asked.documents, asked.temperature, asked.whole_batches_of) == (7, 0.5, 2)
    assert (cfg.engine, cfg.policy) == (trained.engine, trained.policy)
    assert cfg.rollout.max_turns == 0 and dataclasses.replace(cfg.rollout, max_turns=1) == trained.rollout
    with pytest.raises(ValueError, match=r"variant 'b': config\.evaluation\.methods: 'best'"):
        study(variants={'a': {}, 'b': {'evaluation': {'methods': 'best'}}})
    with pytest.raises(ValueError, match=r"variant 'b': evaluation\.methods must be one method, got rag, cot"):
        study(variants={'a': {}, 'b': {'evaluation': {'methods': 'rag,cot'}}})
    with pytest.raises(ValueError, match=r"variant 'b' is an evaluation: set evaluation\.questions"):
        study(variants={'a': {}, 'b': {'evaluation': {'methods': 'rag', 'questions': 0}}})


@pytest.mark.parametrize(('questions', 'whole_batches_of'), [(5, 1), (5, 2), (12, 5)])
def test_trainings_and_evaluations_ask_the_same_questions_of_a_source_with_several_sets(
    tmp_path, questions, whole_batches_of
):
    row = {'question': 'why?', 'golden_answers': ['b']}
    jsonl.write_jsonl(tmp_path / 'q.jsonl', [row | {'id': f'q{i}', 'dataset': 'xy'[i % 2]} for i in range(12)])
    made = study(variants=ASKED)
    made.base.data.update(test=str(tmp_path / 'q.jsonl'), corpus='toy')
    made.base.engine.kind = 'search_r1'  # no corpus to check
    made.base.evaluation.update(questions=questions, whole_batches_of=whole_batches_of)
    _, trained = trainer.load_questions(made.parse('a', 0))
    sets = evaluation.load_questions(made.parse('b', 0))
    assert {q.id for q in trained} == {q.id for each in sets.values() for q in each}


@pytest.mark.parametrize('evaluated', [{'methods': 'cot'}, {'methods': 'rag', 'datasets': 'toy'}])
def test_the_results_of_another_method_or_set_in_the_directory_of_a_run_do_not_count_for_it(
    evaluated, tmp_path, monkeypatch
):
    monkeypatch.setattr(sweep.evaluation, 'evaluate', lambda *_: pytest.fail('its results would be mixed'))
    before, made = study(variants=ASKED), study(variants={'b': {**ASKED['b'], 'evaluation': evaluated}})
    here = tmp_path / 'work' / 'b' / 'seed_0'
    jsonl.write_jsonl(here / 'results.jsonl', [{'id': '1'}])
    (here / 'config.json').write_text(settings.to_json(before.config('b', 0)))
    with pytest.raises(ValueError, match=r'holds a run with another configuration: evaluation\.'):
        sweep.sweep(made, tmp_path / 'work', tmp_path / 'results')


def test_evaluations_are_run_once_and_reported_beside_trainings_and_what_is_published(tmp_path, monkeypatch):
    figures = {'sets': ('x', 'y'), 'score': 'cover_em', 'source': 'a paper', 'figures': (('b', (10.0, 20.5)),)}
    made, ran = study(seeds=(0,), variants=ASKED, published=figures), []

    def evaluate(cfg, here, resolved):
        ran.append(cfg.methods)
        row = {
            'id': '1',
            'answer': None,
            'status': 'answered',
            'response_tokens': 7,
            'searches': [],
            'em': 0.0,
            'f1': 0.5,
        }
        row |= {'question': 'q', 'golden_answers': ['a'], 'segments': []}
        rows = [row | {'dataset': name, 'cover_em': name == 'x'} for name in 'xy']
        jsonl.write_jsonl(here / 'results.jsonl', rows)
        return 'a table'

    monkeypatch.setattr(sweep.evaluation, 'evaluate', evaluate)
    monkeypatch.setattr(sweep.rl, 'train', lambda *_: None)  # SIGTERM
    text = sweep.sweep(made, tmp_path / 'work', tmp_path / 'results')
    assert '| a | not run / - | not run / - | not run / - |' in text
    assert '| b | 100.00 / 10.00 | 0.00 / 20.50 | 50.00 / 15.25 |' in text and '(a paper)' in text
    assert '| b | 1 | 0.000' in text and 'of 2 held-out questions' in text  # of equal ids in two sets
    assert sweep.sweep(made, tmp_path / 'work', tmp_path / 'results') == text and ran == [['rag']]


@pytest.mark.parametrize(
    ('changes', 'message'),
    [
        ({'score': 'bleu'}, "score = 'bleu' is none of"),
        ({'sets': ('x',)}, 'b has 2 figures; give one for each of the 1 sets'),
    ],
)
def test_figures_that_cannot_be_shown_are_refused(changes, message):
    figures = {'sets': ('x', 'y'), 'score': 'em', 'source': 'a paper', 'figures': (('b', (10.0, 20.5)),)}
    with pytest.raises(ValueError, match=message):
        study(published=figures | changes)


@pytest.mark.thorough
def test_a_real_study_of_the_tiny_model(tmp_path):
    made = study(seeds=(0,), variants={'a': {}, 'b': {'evaluation': {'before': False}}})
    text = sweep.sweep(made, tmp_path, tmp_path / 'results')
    assert '| a | 1 |' in text and '| b | 1 |' in text
    first = [(tmp_path / variant / 'seed_0' / 'evaluation' / 'step_000000.jsonl').exists() for variant in 'ab']
    assert first == [True, False]
    for variant in 'ab':
        kept = tmp_path / 'results' / variant / 'seed_0'
        run = jsonl.read_jsonl(tmp_path / variant / 'seed_0' / 'evaluation' / 'step_000002.jsonl')
        answers = jsonl.read_jsonl(kept / 'answers.jsonl')
        assert [(r['id'], r['f1'], len(r['searches'])) for r in run] == [
            (r['id'], r['f1'], r['searches']) for r in answers
        ]
        assert (kept / 'metrics.jsonl').read_text() == (tmp_path / variant / 'seed_0' / 'metrics.jsonl').read_text()


@pytest.mark.thorough
def test_all_weights_can_be_trained_beside_a_simulator_of_the_same_model(tmp_path):
    config = tiny.get_config()
    config.policy.lora_rank = 0  # their buffers are donated, the simulator starts from the same ones
    config.rl.update(steps=2, algorithm='ppo')
    config.critic.lora_rank = 2
    summary = rl.train(train_config.parse(config), tmp_path, settings.to_json(config))
    assert summary['steps'] == 2
