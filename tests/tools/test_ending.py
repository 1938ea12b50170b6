"""What a training prints at its end."""

import shlex

import pytest

from zerosearch_jax.run import jsonl
from zerosearch_jax.tools.ending import ending


def row(name, em, text):
    segments = [{'kind': 'prompt', 'text': 'PROMPT'}, {'kind': 'action', 'text': text}]
    asked = {'id': name, 'question': f'What is {name}?', 'golden_answers': ['x'], 'segments': segments}
    return asked | {'em': em, 'status': 'answered', 'searches': []}


@pytest.fixture
def finished(tmp_path):
    scores = {'a': (1, 1), 'b': (0, 1), 'c': (0, 0), 'd': (1, 0), 'e': (0, 1)}
    for place, (step, text) in enumerate([(0, '<think>no idea</think><answer>y</answer>'), (6, 'found \x1b[2J it')]):
        path = tmp_path / 'evaluation' / f'step_{step:06d}.jsonl'
        path.parent.mkdir(exist_ok=True)
        jsonl.write_jsonl(path, [row(name, em[place], text) for name, em in scores.items()])
    return tmp_path


def test_the_first_question_that_became_right_is_shown_before_and_after(finished):
    wide, narrow = ending(finished, 120), ending(finished, 60)
    for text in (wide, narrow):
        assert 'Of 5 held-out questions 2 became right, 1 became wrong, 1 stayed right, 1 stayed wrong.' in text
        assert 'What is b?  (right: x)' in text and 'PROMPT' not in text and '\x1b' not in text
        assert f"python -m launch.ask {finished} 'What is b?'" in text
    assert any(line.startswith('before: wrong') and line.endswith('| after: right') for line in wide.splitlines())
    assert narrow.index('before: wrong') < narrow.index('no idea') < narrow.index('after: right')
    assert all(len(line) <= 60 for line in narrow.partition('What is b?')[2].partition('Curves')[0].splitlines())


def test_a_question_cannot_act_on_the_shell_that_it_is_pasted_into(finished):
    path = finished / 'evaluation' / 'step_000006.jsonl'
    for file in path.parent.iterdir():
        rows = jsonl.read_jsonl(file)
        jsonl.write_jsonl(file, [r | {'question': 'a" $(touch x) `y` \\'} for r in rows])
    command = next(line for line in ending(finished, 80).splitlines() if 'launch.ask' in line)
    assert shlex.split(command)[3:] == [str(finished), 'a" $(touch x) `y` \\']


def test_a_run_that_was_not_evaluated_twice_ends_with_the_commands_alone(tmp_path):
    assert ending(tmp_path, 80).startswith('Curves: ')
