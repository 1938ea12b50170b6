"""The measures of an audit against counting by hand and against slow implementations of their definitions."""

import numpy as np
import pytest

from zerosearch_jax.audit import measures
from zerosearch_jax.audit.measures import Ranking, Reference, distinct, english, longest_runs, measure
from zerosearch_jax.data.rows import Passage
from zerosearch_jax.search.bm25 import BM25
from zerosearch_jax.simulator.verify import share_held

WORDS = ['river', 'bridge', 'the', 'of', 'Zürich', 'oslo', '1932', 'capital', 'who', 'bank']


def written(i, noisy, documents, **more):
    base = {'id': i, 'noisy': noisy, 'query': 'author', 'question': 'who wrote it', 'golden_answers': ['Ann']}
    return base | {'documents': documents, 'failure': '', 'attempts': 1} | more


def both(i, useful, noisy, **more):
    return [written(i, False, useful, **more), written(i, True, noisy, **more)]


def answers():
    return [
        written('a', False, ['by Ann in the year of it', 'x y']),
        written('b', False, ['who wrote it'], attempts=2),
        written('a', True, ['nothing of it']),
        written('b', True, [], failure='count', attempts=3),
    ]


def texts(rng, count, words=WORDS, most=12):
    """Random texts, in which the later words are the rarer ones."""
    often = 1 / (1 + np.arange(len(words)))
    return [' '.join(rng.choice(words, rng.integers(1, most), p=often / often.sum())) for _ in range(count)]


def means(figures):
    return {name: figure['mean'] for name, figure in figures.items()}


# ---------------------------------------------------------------- of texts


@pytest.mark.parametrize(
    ('text', 'expected'),
    [
        ('The bridge was opened in 1932.', True),
        ('Der Fluss fließt durch die Stadt und mündet ins Meer.', False),
        ('東京は日本の首都である。', False),
        ('1932 1933', False),
        ('Rome. Capital city Italy Tiber river', False),
    ],
)
def test_english(text, expected):
    assert english(text) is expected


def test_distinct_n():
    assert distinct(['a b a b'], 2) == pytest.approx(2 / 3)
    assert distinct(['a b', 'b c'], 1) == 0.75
    assert distinct(['a'], 2) == 0


def test_words_of_a_query_are_those_that_say_what_it_is_about():
    query = 'Which river is in the city of Zürich, and how long is this river?'  # river, city, zürich, long
    assert share_held(query, ['The Limmat leaves ZÜRICH.', 'A long one; which is how it is.']) == 2 / 4
    assert share_held(query, ['rivers']) == 0
    assert share_held('who is it', ['who is it']) == 0


@pytest.mark.parametrize('seed', range(5))
def test_a_rank_is_that_of_an_index_made_anew_with_the_document(seed):
    rng = np.random.default_rng(seed)
    collection = texts(rng, 30)
    passages = [Passage(str(i), '', text) for i, text in enumerate(collection)]
    ranking = Ranking(collection)
    for query, document in zip(texts(rng, 60), texts(rng, 60), strict=True):
        found = BM25([*passages, Passage('own', '', document)]).search([query], 31)[0]
        places = [hit.id for hit in found]
        expected = places.index('own') + 1 if 'own' in places else 31
        assert ranking.rank(query, document) == expected, (query, document)


def test_a_document_without_a_word_of_the_query_is_last_and_the_only_one_with_it_first():
    ranking = Ranking(['oslo', 'rome'])
    assert ranking.rank('oslo rome', 'paris') == 3
    assert ranking.rank('paris', 'paris is') == 1
    assert ranking.rank('oslo', 'oslo') == 2  # after those that tie with it


def slow_longest_run(document, passages):
    """Of every two places the words from there on that are equal."""
    split = lambda text: measures.re.findall(r'\w+', text.lower())  # noqa: E731
    mine, best = split(document), 0
    for passage in passages:
        other = split(passage)
        for i in range(len(mine)):
            for j in range(len(other)):
                n = 0
                while i + n < len(mine) and j + n < len(other) and mine[i + n] == other[j + n]:
                    n += 1
                best = max(best, n)
    return best


@pytest.mark.parametrize('seed', range(5))
def test_the_longest_run_is_that_of_comparing_all_places(seed):
    rng = np.random.default_rng(seed)
    few = WORDS[: 2 + 2 * seed]
    documents, passages = texts(rng, 12, few), texts(rng, 6, few, 20)
    documents += ['', 'unknown words', passages[0], f'{passages[1]} {passages[2]}']
    assert longest_runs(documents, passages) == [slow_longest_run(d, passages) for d in documents]


def test_a_run_does_not_cross_the_end_of_a_passage_and_heeds_neither_case_nor_points():
    assert longest_runs(['a b c d', 'Rome, the CITY!'], ['a b', 'c d', 'in rome the city']) == [2, 3]
    assert longest_runs(['a'], ['b']) == [0]
    assert longest_runs([], ['b']) == []


# ---------------------------------------------------------------- of searches


def test_measures_equal_counting_by_hand():
    found = measure(answers())
    useful, noisy = means(found['useful']), means(found['noisy'])
    assert found['queries'] == 2
    assert useful['contains'] == 0.5 and noisy['contains'] == 0
    assert found['gap']['contains'] == {'mean': 0.5, 'interval': (0.0, 1.0), 'count': 2}
    assert useful['valid'] == noisy['valid'] == 0.5
    assert (useful['failed'], noisy['failed']) == (0, 0.5)
    assert (useful['attempts'], noisy['attempts']) == (1.5, 2)
    assert useful['words'] == pytest.approx(((7 + 2) / 2 + 3) / 2)
    assert useful['near_copies'] == 0.5 and noisy['near_copies'] == 0
    assert useful['distinct_1'] == pytest.approx(11 / 12)  # 'it' twice
    assert noisy['english'] == 1 and found['noisy']['english']['count'] == 1  # the other search brought nothing
    assert found['real'] == found['useful / real'] == {} and 'rank' not in useful and 'copies' not in useful


def test_what_only_some_rows_have_is_a_mean_over_them():
    rows = [row | {'read': row['id'] == 'a' and not row['noisy'], 'mislabelled': None} for row in answers()]
    rows[0]['mislabelled'], rows[1]['mislabelled'] = True, False
    found = measure(rows)
    assert found['gap']['read']['mean'] == 0.5
    assert (found['useful']['mislabelled']['mean'], found['useful']['mislabelled']['count']) == (0.5, 2)
    assert 'mislabelled' not in found['noisy']


def test_answers_that_stand_in_the_query_and_yes_or_no_are_apart():
    rows = [
        *both('plain', ['by Ann'], ['by Bob']),
        *both('told', ['by Ann'], ['Ann too'], query='Did Ann or Bob write it?'),
        *both('alias', ['Ann'], ['Bob'], query='what did anne write', golden_answers=['Ann', 'Anne']),
        *both('yes', ['yes'], ['no'], golden_answers=['Yes', 'yes.']),
        *both('no', ['yes'], ['no'], golden_answers=['no']),
        *both('both', ['yes'], ['no'], golden_answers=['no', 'Ann']),
    ]
    found = measure(rows)
    assert [found['useful'][name]['count'] for name in ('contains', 'contains_in_query')] == [1, 2]
    assert (found['useful']['contains']['mean'], found['noisy']['contains']['mean']) == (1, 0)
    assert found['gap']['contains_in_query']['mean'] == 0.5 and found['gap']['contains_in_query']['count'] == 2
    assert found['queries'] == 6


@pytest.mark.parametrize(
    ('more', 'expected'),
    [
        ({'hop_answer': 'Oslo'}, (1.0, 0.0)),
        ({'hop_answer': 'Oslo', 'golden_answers': ['Norway', 'Rome']}, (1.0, 1.0)),
        ({'hop_answer': 'Ann'}, None),  # the last hop
        ({'hop_answer': 'Ann of Oslo'}, None),  # holds the final answer: they cannot be told apart
        ({'hop_answer': 'Oslo', 'query': 'Who is Ann?'}, None),  # the query says the final answer
        ({'hop_answer': 'Oslo', 'query': 'Is Oslo large?'}, None),
        ({'hop_answer': ''}, None),
        ({}, None),
    ],
)
def test_a_leak_is_the_final_answer_where_the_query_asks_for_a_hop_on_the_way(more, expected):
    found = measure(both('a', ['Oslo in Norway'], ['no'], **more))['useful']
    assert ('hop_answer' in found) == ('final_answer' in found) == (expected is not None)
    if expected:
        assert (found['hop_answer']['mean'], found['final_answer']['mean']) == expected


@pytest.mark.parametrize(
    ('wanted', 'query', 'expected'),
    [
        (['Ann'], 'Where is Oslo?', {'contains': 1.0, 'hop_answer': 1.0, 'final_answer': 0.0}),
        (['Ann'], 'Who is Ann?', {'contains_in_query': 1.0}),
        (['Ann'], 'Is it in Norway?', {'contains': 1.0}),  # the query says the final answer
        ([], 'Where is Oslo?', {}),
    ],
)
def test_documents_should_hold_the_answers_that_are_wanted_of_them(wanted, query, expected):
    row = {'query': query, 'golden_answers': ['Norway'], 'hop_answer': 'Ann', 'wanted_answers': wanted}
    found = measures._containment(row | {'documents': ['Ann was here']})
    assert found == expected


def test_real_results_copies_and_ranks():
    trained = 'one two three four five six seven eight nine ten eleven twelve thirteen'
    rows = [
        *both('a', [trained, 'oslo'], ['bergen'], query='oslo bergen'),
        *both('b', ['rome'], ['rome tiber'], query='rome tiber'),
    ]
    real = {'a': ['oslo bergen'], 'b': ['nothing', 'by Ann, tiber']}
    found = measure(rows, Reference(real, ['rome', 'rome', 'x'], [trained, 'the tiber']))
    useful, noisy, true = (means(found[group]) for group in ('useful', 'noisy', 'real'))
    assert (useful['query_words'], noisy['query_words'], true['query_words']) == (0.5, 0.75, 0.75)
    assert useful['longest_run'] == ((13 + 0) / 2 + 0) / 2 and noisy['longest_run'] == (0 + 1) / 2
    assert useful['copies'] == 0.25 and noisy['copies'] == true['copies'] == 0
    assert useful['rank'] == ((4 + 1) / 2 + 3) / 2  # last of four, the only one; after two that tie with it
    assert useful['reciprocal_rank'] == pytest.approx(((1 / 4 + 1) / 2 + 1 / 3) / 2)
    assert true['contains'] == 0.5 and true['distinct_1'] == 1
    assert not true.keys() & {'valid', 'failed', 'attempts'}  # nobody wrote them
    assert means(found['useful / real']) == {
        'query_words': pytest.approx(0.5 / 0.75),
        'reciprocal_rank': pytest.approx(useful['reciprocal_rank'] / true['reciprocal_rank']),
    }


def test_a_run_of_exactly_twelve_words_is_a_copy_and_one_of_eleven_is_none():
    words = [f'w{i}' for i in range(12)]
    rows = [*both('a', [' '.join(words)], [' '.join(words[1:])])]
    found = measure(rows, Reference(trained=[' '.join(words)]))
    assert (found['useful']['copies']['mean'], found['noisy']['copies']['mean']) == (1, 0)


def test_a_ratio_resamples_the_same_searches_above_and_below():
    rng = np.random.default_rng(0)
    below = rng.uniform(0.2, 1, 200)
    exact = measures._ratio([(0.5 * b, b) for b in below])
    assert exact['mean'] == pytest.approx(0.5) and exact['interval'] == pytest.approx((0.5, 0.5))
    above = rng.uniform(0, 1, 200)
    found = measures._ratio([*zip(above, below, strict=True)])
    draws = [rng.integers(0, 200, 200) for _ in range(4000)]
    slow = np.quantile([above[d].mean() / below[d].mean() for d in draws], [0.025, 0.975])
    assert found['interval'] == pytest.approx(tuple(slow), abs=0.01)
    assert measures._ratio([(1.0, 0.0), (1.0, 1.0)]) is None and measures._ratio([]) is None
