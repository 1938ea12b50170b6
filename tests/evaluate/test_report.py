"""The summary of a run, and the pooling of runs over seeds."""

import dataclasses
import json
import os
import subprocess
import sys

import numpy as np
import pytest
from helpers import ENVIRONMENT, ROOT
from scripted import BYTES, ROME, play

from zerosearch_jax.evaluate import report
from zerosearch_jax.evaluate.intervals import interval
from zerosearch_jax.evaluate.scores import as_row
from zerosearch_jax.run import jsonl

QUESTIONS = 400


def make_run(directory, seed, evaluations, **config):
    """A run directory with the two files that pooling reads; evaluations: {step: EM of every question}."""
    directory.mkdir()
    (directory / 'config.json').write_text(json.dumps({'seed': seed, **config}))
    for step, scores in evaluations.items():
        about = {'status': 'answered', 'searches': ['q'] * (1 + (step > 0))}
        rows = [
            {'id': i, 'em': float(s), 'f1': float(s) / 2, 'cover_em': float(s), **about} for i, s in enumerate(scores)
        ]
        jsonl.write_jsonl(report.evaluation_file(directory, step), rows)
    return directory


def coins(seed, share):
    return np.random.default_rng(seed).random(QUESTIONS) < share


def test_a_summary_that_cannot_be_written_leaves_the_one_before(tmp_path, monkeypatch):
    run = make_run(tmp_path / 'x', 0, {})
    (run / 'summary.json').write_text('before')

    def crash(_):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, 'fsync', crash)
    with pytest.raises(KeyboardInterrupt):
        report.summarize(run)
    assert (run / 'summary.json').read_text() == 'before'


def test_trainings_are_laid_over_each_other(tmp_path, monkeypatch):
    pytest.importorskip('matplotlib')
    places = [make_run(tmp_path / name, 0, {4: coins(i, 0.5)} if i else {}) for i, name in enumerate('ab')]
    asked = report.evaluation_file(places[1], 4)
    jsonl.append_jsonl(asked, [jsonl.read_jsonl(asked)[0] | {'id': 'lost', 'status': 'search_failed'}])
    for i, place in enumerate(places):
        jsonl.write_jsonl(place / 'metrics.jsonl', [{'step': s, 'reward/mean': s / 10 + i} for s in (1, 2)])
    command = [sys.executable, '-m', 'launch.compare', *map(str, places), f'--plot={tmp_path}/c.png']
    done = subprocess.run(command, cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True)
    assert (tmp_path / 'c.png').read_bytes().startswith(b'\x89PNG'), done.stderr
    lines = done.stdout.splitlines()
    assert lines[2] == f'| {places[0]} | 2 | 0.200 | none | none | none |'
    assert lines[3].startswith(f'| {places[1]} | 2 | 1.200 | 0.') and ' after step 4 | 0.' in lines[3]
    assert lines[3].endswith('] | 1 |')
    with pytest.raises(ValueError, match='x holds no training that made a step'):
        report.overlay([places[0], tmp_path / 'x'], tmp_path / 'd.png')
    with pytest.raises(ValueError, match="no panel 'reward'; the panels are Reward, "):
        report.overlay(places, tmp_path / 'd.png', ['reward'])
    with pytest.raises(ValueError, match='cannot be drawn: none of the runs has measured anything for Evaluation: F1'):
        report.overlay(places, tmp_path / 'd.png', ['Evaluation: F1'])
    with monkeypatch.context() as without:
        without.setitem(sys.modules, 'matplotlib.figure', None)
        without.setattr(report, 'find_spec', lambda _: None)
        with pytest.raises(ValueError, match='cannot be drawn: matplotlib is not installed'):
            report.overlay(places, tmp_path / 'd.png')


def test_pooling_compares_the_same_questions_first_and_last(tmp_path, capsys):
    before = coins(1, 0.4)
    after = [before | coins(seed, 0.2) for seed in (2, 3)]
    runs = [
        make_run(tmp_path / str(seed), seed, {0: before, 5: ~before, 10: last}, rl={'steps': 10})
        for seed, last in enumerate(after)
    ]
    pooled = report.pool(runs)
    gain = np.stack([last.astype(float) - before for last in after], axis=1)
    assert pooled['questions'] == QUESTIONS
    assert pooled['em']['before']['mean'] == pytest.approx(before.mean())
    assert pooled['em']['gain']['mean'] == pytest.approx(gain.mean())
    assert pooled['em']['gain']['interval'] == interval(gain)
    assert pooled['em']['runs'] == pytest.approx(dict(enumerate(gain.mean(0))))
    assert pooled['f1']['gain']['mean'] == pytest.approx(gain.mean() / 2)
    assert pooled['searches'] == [1, 2] and pooled['step'] == 10 and not capsys.readouterr().err
    report.evaluation_file(runs[0], 10).unlink()
    report.evaluation_file(runs[1], 10).unlink()
    assert report.pool(runs)['step'] == 5  # of runs that are not finished
    assert 'the runs were last evaluated after step 5 of 10' in capsys.readouterr().err


@pytest.mark.parametrize(
    ('seed', 'evaluations', 'config', 'message'),
    [
        (1, {0: [1], 2: [1]}, {'x': 2}, r'only the seed may differ .*: x = 2 \(it was 1\)'),
        (0, {0: [1], 2: [1]}, {'x': 1}, 'same seed'),
        (1, {0: [1]}, {'x': 1}, 'evaluated after 0 steps'),
        (1, {1: [1], 2: [1]}, {'x': 1}, 'after 1, 2 steps; a gain needs one before'),
        (
            1,
            {0: [1], 3: [1]},
            {'x': 1},
            'the last evaluations are of different steps: .*/a after step 2, .*/b after step 3',
        ),
    ],
)
def test_runs_that_cannot_be_pooled_are_refused(tmp_path, seed, evaluations, config, message):
    first = make_run(tmp_path / 'a', 0, {0: [1], 2: [0]}, x=1)
    with pytest.raises(ValueError, match=message):
        report.pool([first, make_run(tmp_path / 'b', seed, evaluations, **config)])


def test_the_summary_tells_what_was_gained_and_that_its_intervals_are_of_one_seed(tmp_path):
    """The gain is the last evaluation less the first, whatever lies between."""
    run = make_run(tmp_path / 'run', 0, {0: [0, 1, 0, 0], 5: [0] * 4, 10: [1, 1, 1, 0]})
    for path in (run / 'evaluation').iterdir():
        jsonl.write_jsonl(path, [row | {'cover_em': row['em']} for row in jsonl.read_jsonl(path)])
    summary = report.summarize(run)
    assert summary['em_gain']['mean'] == 0.5
    assert summary['em_gain']['interval'] == interval([1, 0, 1, 0])
    assert json.loads((run / 'summary.json').read_text())['em_gain']['mean'] == 0.5
    text = report.summary_text(summary, run)
    assert '4 questions, 95 % intervals over questions alone, of this seed' in text
    assert 'Before training 25.0% of the held-out questions were answered exactly right, after it 75.0%: ' in text
    assert ': +50.0 points (95 % interval +0.0 to +100.0, paired by question)' in text


def test_the_line_of_the_gain_is_of_the_questions_that_both_evaluations_answered(tmp_path):
    """Here 2 of 5 questions were right before and 4 of 5 after, if those that failed in the other one counted."""
    run, kept = make_run(tmp_path / 'run', 0, {0: [1, 0, 0, 0, 1], 4: [0, 1, 0, 0, 1]}), ('em', 'f1', 'id', 'searches')
    for step, failed in ((0, (0, 1)), (4, (2,))):
        path = report.evaluation_file(run, step)
        rows = [{**{k: row[k] for k in kept}, 'cover_em': 0.0, 'status': 'answered'} for row in jsonl.read_jsonl(path)]
        jsonl.write_jsonl(path, [row | {'status': 'search_failed'} if row['id'] in failed else row for row in rows])
    summary = report.summarize(run)
    gain = summary['em_gain']
    assert (gain['before'], gain['after'], gain['mean'], gain['failed']) == (0.5, 0.5, 0, 3)
    line = report.summary_text(summary, run).splitlines()[-1]
    assert 'Before training 50.0% of the' in line and 'exactly right, after it 50.0%: +0.0 points (' in line
    assert line.endswith(', paired by question); INCOMPLETE: 3 more failed')


def test_an_evaluation_has_means_of_every_data_set_where_there_are_several():
    scored = [('nq', 1), ('bamboogle', 0), ('nq', 0), ('bamboogle', 1), ('nq', 1)]
    rows = [
        {'dataset': name, 'em': em, 'cover_em': 1, 'f1': em / 2, 'searches': [], 'status': 'answered'}
        for name, em in scored
    ]
    failed = rows[0] | {'status': 'search_failed', 'em': 5}
    means = report.evaluation_means([*rows, failed])
    assert means['eval/em'] == pytest.approx(3 / 5) and means['eval/failed'] == 1
    assert (means['eval/nq/em'], means['eval/bamboogle/em']) == (pytest.approx(2 / 3), 1 / 2)
    assert (means['eval/nq/f1'], means['eval/bamboogle/cover_em']) == (pytest.approx(1 / 3), 1)
    for alone in (rows[::2], [{k: v for k, v in row.items() if k != 'dataset'} for row in rows]):  # as of old files
        assert report.evaluation_means(alone).keys() == {'eval/em', 'eval/cover_em', 'eval/f1', 'eval/searches'}


def test_a_summary_has_the_scores_of_every_data_set_where_there_are_several(tmp_path):
    run = make_run(tmp_path / 'run', 0, {3: [1, 0, 1]})
    path = report.evaluation_file(run, 3)
    rows = [row | {'dataset': name, 'cover_em': 0.0} for row, name in zip(jsonl.read_jsonl(path), 'aab', strict=True)]
    jsonl.write_jsonl(path, [*rows, rows[2] | {'id': 9, 'status': 'search_failed'}])
    summary = report.summarize(run)
    sets = summary['evaluations']['3']['sets']
    assert {name: (s['em']['mean'], s['questions'], s['failed']) for name, s in sets.items()} == {
        'a': (0.5, 2, 0),
        'b': (1, 1, 1),
    }
    text = report.summary_text(summary, run)
    assert '\n    a: em 0.500 [' in text and '(1 questions; INCOMPLETE: 1 more failed)' in text
    jsonl.write_jsonl(path, rows[:2])
    assert 'sets' not in report.summarize(run)['evaluations']['3']


def test_a_row_says_which_data_set_its_question_is_of():
    asked = dataclasses.replace(ROME, dataset='nq')
    found, _, _ = play(['<answer>x</answer>', ''], questions=(asked,))
    assert as_row(found, BYTES)['dataset'] == 'nq'


def test_a_trajectory_is_shown_by_what_followed_its_prompt():
    segments = [{'kind': kind, 'text': f'<{kind}>'} for kind in ('prompt', 'action', 'observation', 'action')]
    row = {'question': 'q?', 'golden_answers': ['a', 'b'], 'answer': 'a', 'reward': 0.5, 'status': 'answered'}
    text = report.trajectory_text(row | {'segments': segments})
    assert text == 'q?\ngold: a / b\nanswer: a  reward 0.500  answered\n\n<action><observation><action>'


def test_evaluations_are_known_by_their_rows_and_forgotten_after_the_step_of_a_resume(tmp_path):
    assert not report.has_evaluation(tmp_path, 0)
    run = make_run(tmp_path / 'run', 0, {0: [1], 4: [0], 6: [0]})
    jsonl.write_jsonl(run / 'metrics.jsonl', [{'step': 4, 'eval/em': 0.0}, {'step': 5, 'reward/mean': 0.1}])
    assert [report.has_evaluation(run, number) for number in (4, 5, 6)] == [True, False, False]
    report.forget_evaluations_after(run, 4)
    assert list(report.evaluations(run)) == [0, 4]


def test_evaluations_that_are_put_aside_are_in_no_curve(tmp_path):
    run = make_run(tmp_path / 'run', 0, {0: [1], 2: [1]})
    steps = [{'step': step, 'reward/mean': 0.1 * step} for step in (1, 2, 3)]
    asked = [{'step': 0, 'eval/em': 0.1}, {'step': 2, 'eval/em': 0.2, 'eval/failed': 1}]
    jsonl.write_jsonl(run / 'metrics.jsonl', [asked[0], *steps[:2], asked[1], steps[2]])
    report.put_evaluations_aside(run)
    assert jsonl.read_jsonl(run / 'metrics.jsonl') == steps and not report.has_evaluation(run, 0)


def test_the_summary_counts_what_all_steps_took(tmp_path):
    run = make_run(tmp_path / 'run', 0, {}, prices={'search_query': 0.5})
    steps = [{'step': n, 'reward/mean': n / 10, 'cost/queries': n, 'speed/device_seconds': 2} for n in (1, 2, 3)]
    jsonl.write_jsonl(run / 'metrics.jsonl', [{'step': 0, 'eval/em': 0.0}, *steps])
    summary = report.summarize(run)
    assert (summary['steps'], summary['last_reward'], summary['evaluations']) == (3, 0.3, {})
    cost = summary['cost']
    assert (cost['queries'], cost['tokens'], cost['device_seconds'], cost['api_dollars']) == (6, 0, 6, 3.0)
    assert 'em_gain' not in summary


def test_a_gain_needs_two_evaluations_and_one_run_may_be_pooled(tmp_path):
    once = make_run(tmp_path / 'once', 0, {0: [1]})
    later = make_run(tmp_path / 'later', 0, {2: [1], 4: [0]})
    for run in (once, later):
        for path in (run / 'evaluation').iterdir():
            jsonl.write_jsonl(path, [row | {'cover_em': 0.0} for row in jsonl.read_jsonl(path)])
        assert 'em_gain' not in report.summarize(run)
    pooled = report.pool([make_run(tmp_path / 'one', 3, {0: [0, 0], 2: [1, 0]})])
    assert pooled['em']['gain'] == {'mean': 0.5, 'interval': (0.0, 1.0)} and pooled['em']['runs'] == {3: 0.5}


def test_questions_that_failed_are_in_no_gain_of_pooled_runs_and_counted(tmp_path):
    runs = [make_run(tmp_path / str(seed), seed, {0: [0, 0, 1], 2: [1, 1, 1]}) for seed in (0, 1)]
    path = report.evaluation_file(runs[1], 2)
    rows = jsonl.read_jsonl(path)
    rows[0] |= {'status': 'search_failed', 'em': 0.0}
    jsonl.write_jsonl(path, rows)
    pooled = report.pool(runs)
    assert (pooled['questions'], pooled['failed'], pooled['em']['gain']['mean']) == (2, 1, 0.5)
