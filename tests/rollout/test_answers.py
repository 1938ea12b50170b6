import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from zerosearch_jax.data import rows
from zerosearch_jax.rollout import answers
from zerosearch_jax.rollout.answers import REWARDS
from zerosearch_jax.text.protocol import extract_answer


@pytest.mark.parametrize(
    ('text', 'expected'),
    [
        ('The  Cat, sat.', 'cat sat'),
        ('an apple a day', 'apple day'),
        ("O'Neil's U.S.A.", 'oneils usa'),
        ('theatre Anna', 'theatre anna'),  # articles only as whole words
        ('a-b', 'ab'),  # punctuation goes first and joins, as in SQuAD
        ('The', ''),
        ('\tÉcole\u00a0Normale\n', 'école normale'),
        ('“quoted”', '“quoted”'),  # only ASCII punctuation is dropped
        ('', ''),
    ],
)
def test_normalize(text, expected):
    assert rows.normalize_answer(text) == expected


@pytest.mark.parametrize(
    ('prediction', 'golds', 'f1', 'em', 'cover_em'),
    [
        ('Paris', ['Paris'], 1, 1, 1),
        ('the city of Paris', ['Paris'], 2 * 1 / (3 + 1), 0, 1),
        ('Paris', ['Paris, France'], 2 / 3, 0, 0),
        ('1989', ['89'], 0, 0, 1),  # the substring form is not aligned to tokens
        ('Beijing', ['The'], 0, 0, 0),  # the published code says 1
        ('the', ['The'], 0, 1, 0),
        ('yes', ['no'], 0, 0, 0),
        ('Yes.', ['yes'], 1, 1, 1),
        ('to be or not to be', ['to be'], 2 * 2 / (6 + 2), 0, 1),  # repeats count once each
        ('São Paulo', ['sao paulo'], 0.5, 0, 0),  # accents are kept
        ('Sa\u0303o Paulo', ['S\xe3o Paulo'], 1, 1, 1),  # decomposed Unicode is the same text: on one side,
        ('S\xe3o Paulo', ['Sa\u0303o Paulo'], 1, 1, 1),  # on the other,
        ('in Sa\u0303o Paulo', ['Sa\u0303o Paulo'], 2 * 2 / (3 + 2), 0, 1),  # on both
        ('Sao Paulo', ['Sa\u0303o Paulo'], 0.5, 0, 0),
        ('東京', ['東京', 'Tokyo'], 1, 1, 1),
        ('Barack Obama', ['Obama', 'Barack Hussein Obama', 'x'], 4 / 5, 0, 1),  # the best gold per metric
        ('', ['Paris'], 0, 0, 0),
        ('...', ['Paris'], 0, 0, 0),
        (None, ['Paris'], 0, 0, 0),
        (None, ['The'], 0, 0, 0),
        ('Paris', [], 0, 0, 0),
    ],
)
def test_by_hand(prediction, golds, f1, em, cover_em):
    everywhere = prediction is not None and any(not rows.normalize_answer(gold) for gold in golds)
    expected = {'f1': f1, 'em': em, 'cover_em': cover_em, 'published_em': 1 if everywhere else cover_em}
    assert {name: reward(prediction, golds) for name, reward in REWARDS.items()} == pytest.approx(expected)


def reference_f1(prediction, gold):
    """F1 from precision and recall, matching tokens off one by one."""
    pred, rest = rows.normalize_answer(prediction).split(), rows.normalize_answer(gold).split()
    num_gold, same = len(rest), 0
    for token in pred:
        if token in rest:
            rest.remove(token)
            same += 1
    if same == 0:
        return 0.0
    precision, recall = same / len(pred), same / num_gold
    return 2 * precision * recall / (precision + recall)


words = st.lists(st.sampled_from(['the', 'a', 'cat', 'Cat', 'sat,', 'mat', '19', '1989', '!']), max_size=6)
texts = words.map(' '.join) | st.text(max_size=12)


@given(texts, texts)
def test_f1_equals_the_reference_and_is_symmetric(a, b):
    assert answers.f1(a, [b]) == pytest.approx(reference_f1(a, b))
    assert answers.f1(a, [b]) == answers.f1(b, [a])
    assert answers.exact_match(a, [b]) == answers.exact_match(b, [a])


@given(texts, st.lists(texts, max_size=3))
def test_range_order_and_maximum(prediction, golds):
    scores = {name: reward(prediction, golds) for name, reward in REWARDS.items()}
    assert all(type(s) is float and 0 <= s <= 1 for s in scores.values())
    for name, reward in REWARDS.items():
        assert scores[name] == max((reward(prediction, [g]) for g in golds), default=0)
        assert scores[name] == reward(prediction, golds[::-1])
    if all(rows.normalize_answer(g) for g in golds):
        assert scores['em'] <= min(scores['f1'], scores['cover_em'])


@given(texts, st.sampled_from(['NFC', 'NFD']), st.sampled_from(['NFC', 'NFD']))
def test_composed_and_decomposed_unicode_score_alike(text, mine, theirs):
    given, gold = unicodedata.normalize(mine, text), unicodedata.normalize(theirs, text)
    assert all(reward(given, [gold]) == reward(text, [text]) for reward in REWARDS.values())


@given(texts)
def test_an_answer_matches_itself(text):
    full = float(bool(rows.normalize_answer(text)))
    assert answers.f1(text, [text]) == full
    assert answers.cover_exact_match(text, [text]) == full
    assert answers.exact_match(text, [text]) == 1


@pytest.mark.parametrize('reward', REWARDS.values())
def test_one_string_for_golds_is_an_error(reward):
    with pytest.raises(TypeError, match='sequence of strings'):
        reward('Paris', 'Paris')


@pytest.mark.parametrize(
    ('text', 'expected'),
    [
        ('<answer> Paris </answer>', 'Paris'),
        ('<answer>one</answer> no, <answer>two\nlines</answer>', 'two\nlines'),
        ('<answer>one</answer> <answer>cut off', 'one'),
        ('I write <answer> tags: <answer>Paris</answer>', 'Paris'),  # innermost
        ('<answer>Paris</answer> stray </answer>', 'Paris'),
        ('<answer>a</answer><answer> </answer>', None),  # the last one is empty
        ('<answer>a < b</answer>', 'a < b'),
        ('Paris', None),
        ('</answer>Paris<answer>', None),
        ('', None),
    ],
)
def test_extract_answer(text, expected):
    assert extract_answer(text) == expected


def test_extraction_is_linear_in_the_text():
    assert extract_answer('<answer>' * 20_000 + 'x' * 20_000 + '</answer>') == 'x' * 20_000
