"""The toy task: things with a number each, which only a search tells. For studies that take minutes on a laptop.

Names are two syllables, so that 144 things can be told apart by what they are made of; numbers have no pattern. A third
of the things is held out.
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


def _question(name: str, number: str) -> Question:
    step = {'need': f'the number of {name}', 'query': f'number {name}', 'passage': name, 'answer': number}
    return Question(name, f'Which number has {name}?', (number,), 'toy', {'decomposition': [step]})
