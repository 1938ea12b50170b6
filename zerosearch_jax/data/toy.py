"""The toy task: 144 things have numbers that only a search can find. For studies that take minutes on a laptop.

Names are two of twelve syllables, so that a small model can distinguish the 144 things; numbers have no pattern. A
third of the things is held out. In chains, one or two searches have to find the thing first whose number is asked for:

    hops 1   Which number has bade?
         2   Which number has the friend of bade?
         3   Which number has the master of the friend of bade?

They are about 900 things, so many that a small model has to read who is whose friend: it cannot learn it by heart.
"""

import functools
import itertools
from typing import NamedTuple

from zerosearch_jax.data.rows import Passage, Question, permutation

SYLLABLES = ('ba', 'de', 'fi', 'go', 'ku', 'la', 'me', 'ni', 'po', 'ru', 'sa', 'te')


class Toy(NamedTuple):
    train: tuple[Question, ...]
    test: tuple[Question, ...]
    passages: tuple[Passage, ...]


@functools.cache
def build() -> Toy:
    """Questions (96 to train on, 48 held out) and the passages that answer them."""
    names = [''.join(pair) for pair in itertools.product(SYLLABLES, SYLLABLES)]
    numbers = [str(1 + i % 8) for i in permutation(len(names), 1, 0)]
    questions = [_question(name, number) for name, number in zip(names, numbers, strict=True)]
    shuffled = [questions[i] for i in permutation(len(names), 2, 0)]
    passages = tuple(Passage(n, n, f'{n} has number {d}') for n, d in zip(names, numbers, strict=True))
    return Toy(tuple(shuffled[:96]), tuple(shuffled[96:]), passages)


CHAIN_SYLLABLES = tuple(map(''.join, itertools.product('bdgklmnrst', 'aei')))
HELD_OUT = 48  # things
RELATIONS = {'friend': 1, 'master': 7}  # of a chain, in order: offset in the shuffled names of its part


@functools.cache
def build_chains(told: bool = False) -> Toy:
    """Questions of one, two and three hops (852 of each to train on, 48 held out) and the passages that answer them.

    Friends and masters are of the same part (train or held out). With `told`, every longer chain also has a passage
    that says its final answer of the thing that it asks for first, as simulators write it whose request contains the
    answer; the oracle counts it as a useful passage.
    """
    names = [''.join(pair) for pair in itertools.product(CHAIN_SYLLABLES, CHAIN_SYLLABLES)]
    numbers = {names[place]: str(1 + i % 8) for i, place in enumerate(permutation(len(names), 1, 0))}
    shuffled = [names[i] for i in permutation(len(names), 2, 0)]
    parts, passages = [], [Passage(f'number {n}', n, f'{n} has number {d}') for n, d in numbers.items()]
    for part in (shuffled[:-HELD_OUT], shuffled[-HELD_OUT:]):
        facts = {(r, n): part[(i + far) % len(part)] for r, far in RELATIONS.items() for i, n in enumerate(part)}
        passages += [Passage(f'{r} {n}', n, f'{r} of {n} is {other}') for (r, n), other in facts.items()]
        questions = [_chain(name, hops, facts, numbers, told) for name in part for hops in (1, 2, 3)]
        passages += [_telling(question) for question in questions if question.metadata.get('supporting_ids')]
        parts.append(tuple(questions[i] for i in permutation(len(questions), 3, 0)))
    return Toy(*parts, tuple(passages))


def _chain(name: str, hops: int, facts: dict, numbers: dict[str, str], told: bool) -> Question:
    steps, thing, asked = [], name, name
    for relation in [*RELATIONS][: hops - 1]:
        steps.append(_step(relation, thing, facts[relation, thing]))
        thing, asked = facts[relation, thing], f'the {relation} of {asked}'
    steps.append(_step('number', thing, numbers[thing]))
    metadata = {'decomposition': steps, 'hops': hops}
    if told and hops > 1:
        metadata['supporting_ids'] = [f'answer {name} {hops}']
    return Question(f'{name} {hops}', f'Which number has {asked}?', (numbers[thing],), 'toy_chains', metadata)


def _step(relation: str, name: str, answer: str) -> dict[str, str]:
    asked = f'{relation} {name}'
    return {'need': f'the {relation} of {name}', 'query': asked, 'passage': asked, 'answer': answer}


def _telling(question: Question) -> Passage:
    name = question.id.split()[0]
    return Passage(*question.metadata['supporting_ids'], name, f'{name} has number {question.golden_answers[0]}')


def _question(name: str, number: str) -> Question:
    step = {'need': f'the number of {name}', 'query': f'number {name}', 'passage': name, 'answer': number}
    return Question(name, f'Which number has {name}?', (number,), 'toy', {'decomposition': [step]})
