"""The table and the plot of several audits."""

import pytest

from zerosearch_jax.audit import figures


def figure(mean, count=4):
    return {'mean': mean, 'interval': [mean, mean], 'count': count}


def audits():
    empty = {group: {} for group in figures.GROUPS}
    one = empty | {
        'queries': 9,
        'useful': {'contains': figure(0.75, 6), 'contains_in_query': figure(1, 2), 'hop_answer': figure(0.5, 3)},
        'gap': {'contains': figure(0.5, 6)},
        'useful / real': {'query_words': figure(0.8)},
        'real': {'distinct_1': {'mean': 0.4}, 'rank': figure(12.34)},
        'speed': {'tokens': 50, 'seconds': 10.0, 'queries': 8},
    }
    return {'one': one, 'two': empty | {'queries': 3, 'noisy': {'valid': figure(1.0)}}}


def rows_of(table):
    return {cells[1].strip(): [c.strip() for c in cells[2:-1]] for cells in (r.split('|') for r in table.split('\n'))}


def test_rows_stand_under_headings_and_say_what_was_measured_and_how_often():
    table = figures.table(audits(), 0)
    rows = rows_of(table)
    assert rows['**Queries**'] == ['9', '3']
    assert rows['the query does not say the answer'] == ['6', '0']
    assert rows['the query says the answer'] == ['2', '0']
    assert rows['of them, the query asks for a hop on the way'] == ['3', '0']
    assert rows['not judged, an answer is yes or no'] == ['1', '3']
    assert rows['hold an answer: gap'] == ['0.500 [0.500, 0.500]', '']
    assert rows['distinct-1: real'] == ['0.400', ''] and rows['BM25 rank: real'] == ['12.3 [12.3, 12.3]', '']
    assert rows['its words found: useful / real'] == ['0.800 [0.800, 0.800]', '']
    assert rows['**Speed**, tokens/s'] == ['5', '']
    assert 'near copies of the question: useful' not in rows  # of no audit
    assert '**Copies of training passages**' not in rows
    names = list(rows)
    assert names.index('**Form and cost**') < names.index('valid at the first attempt: noisy')
    assert names.index('valid at the first attempt: noisy') < names.index('**About the query**')
    assert all(line.count('|') == 4 for line in table.split('\n'))


def test_a_price_makes_a_row_of_dollars():
    rows = rows_of(figures.table(audits(), 3.6))
    assert rows['dollars for 1,000 queries at 3.6 an hour'] == ['1.250', '']


@pytest.mark.parametrize('names', [('one', 'two'), ('two',)])
def test_a_plot_is_drawn_of_what_there_is(names, tmp_path):
    figures.plot({name: audits()[name] for name in names}, tmp_path / 'audit.png')
    assert (tmp_path / 'audit.png').stat().st_size > 1000
