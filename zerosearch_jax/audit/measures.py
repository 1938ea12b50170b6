"""Measures of a simulator's documents: numbers for each search, and their means with intervals over searches."""

import collections
import dataclasses
import functools
import re
from collections.abc import Mapping, Sequence

import numpy as np

from zerosearch_jax.data.rows import holds_answer, normalize_answer
from zerosearch_jax.evaluate.intervals import LEVEL, stratified_means, with_interval
from zerosearch_jax.search.bm25 import index_words
from zerosearch_jax.simulator.verify import checkable, share_held

ENGLISH = frozenset(
    re.findall(
        r'\w+',
        'the of and in to a is was for on as by with at from that it he his an are were be which this or had has its '
        'not also but first one their after who they have been',
    )
)
COPIED = 12  # common words in a row that count as a copy
QUALITIES = ('useful', 'noisy')
PAIRED = (
    'contains',
    'hop_answer',
    'final_answer',
    'contains_in_query',
    'read',
)  # with a gap, useful minus noisy
RELATIVE = ('query_words', 'reciprocal_rank')  # measures that are divided by those of real results


# ---------------------------------------------------------------- of texts


def english(text: str) -> bool:
    """Whether a text looks English: Latin letters, and a tenth of its words among the most frequent ones."""
    letters = [c for c in text if c.isalpha()]
    words = re.findall(r'[a-z]+', text.lower())
    latin = sum(c.isascii() for c in letters) >= 0.9 * len(letters)
    return bool(words) and latin and sum(word in ENGLISH for word in words) >= 0.1 * len(words)


def near_copy(document: str, question: str) -> bool:
    """Whether a document adds little to the question: at least four fifths of its words are the question's."""
    words = normalize_answer(document).split()
    asked = set(normalize_answer(question).split())
    return sum(word in asked for word in words) >= 0.8 * len(words)


def distinct(documents: Sequence[str], n: int) -> float:
    """Distinct-n (Li et al., arXiv 1510.03055): different runs of n words among all of them; 0 without any."""
    runs = []
    for document in documents:
        words = document.lower().split()
        runs += zip(*(words[i:] for i in range(n)), strict=False)
    return len(set(runs)) / len(runs) if runs else 0.0


class Ranking:
    """The rank that BM25 gives to a document that is added to a fixed collection of texts.

    It equals the rank after indexing the collection with the document (search/bm25.py: Lucene's variant, k1 1.5,
    b 0.75), but computes only the few columns that a query needs.
    """

    def __init__(self, texts: Sequence[str]):
        self._counts = [collections.Counter(index_words(text)) for text in texts]
        self._lengths = [counts.total() for counts in self._counts]
        self._column = functools.cache(lambda word: [counts[word] for counts in self._counts])

    def rank(self, query: str, document: str) -> int:
        """The rank from 1, after texts with an equal score; the last rank if it shares no word with the query."""
        own = collections.Counter(index_words(document))
        lengths = np.array([*self._lengths, own.total()])
        norm = 1.5 * (0.25 + 0.75 * lengths / max(lengths.mean(), 1e-9))
        scores = np.zeros(len(lengths))
        for word in index_words(query):
            counts = np.array([*self._column(word), own[word]])
            holding = np.count_nonzero(counts)
            scores += np.log(1 + (len(counts) - holding + 0.5) / (holding + 0.5)) * counts / (counts + norm)
        return 1 + np.count_nonzero(scores[:-1] >= scores[-1])


def longest_runs(documents: Sequence[str], passages: Sequence[str]) -> list[int]:
    """The most words in a row, ignoring case and punctuation, that each document has in common with any passage.

    All runs of one length are numbered, equal runs equally; only runs that are on both sides are extended by a word.
    """
    codes, every = {'': 0}, (*documents, *passages)  # 0 marks the end of a text
    words = (word for text in every for word in (*re.findall(r'\w+', text.lower()), ''))
    texts = np.array([codes.setdefault(word, len(codes)) for word in words], np.int64)
    owners = np.repeat(np.arange(len(every)), np.diff(np.flatnonzero(texts == 0), prepend=-1))
    places, runs, length = np.arange(len(texts)), np.zeros_like(texts), 0
    longest = np.zeros(len(every), int)
    while len(places):
        longest[owners[places]] = length
        following = texts[places + length]
        places, runs = places[following > 0], (runs * len(codes) + following)[following > 0]
        runs, ours = np.unique(runs, return_inverse=True)[1], owners[places] < len(documents)
        shared = np.isin(runs, runs[ours]) & np.isin(runs, runs[~ours])
        places, runs, length = places[shared], runs[shared], length + 1
    return longest[: len(documents)].tolist()


# ---------------------------------------------------------------- of searches


@dataclasses.dataclass(frozen=True)
class Reference:
    """What written documents are compared with; measures that need an empty field are left out."""

    real: Mapping[str, Sequence[str]] = dataclasses.field(default_factory=dict)  # documents of a real engine, by id
    collection: Sequence[str] = ()  # texts among which a document is ranked
    trained: Sequence[str] = ()  # texts that the simulator was trained on


def values(row: Mapping, ranking: Ranking | None, runs: Mapping[str, int]) -> dict[str, float]:
    """The measures that apply to one search, by name; `runs` are the longest runs of documents."""
    found: dict[str, float] = {}
    if 'attempts' in row:  # a simulator wrote it
        found['valid'] = float(not row['failure'] and row['attempts'] == 1)
        found['failed'] = float(bool(row['failure']))
        found['attempts'] = float(row['attempts'])
    found |= {name: float(row[name]) for name in ('read', 'mislabelled') if row.get(name) is not None}
    return found | _containment(row) | (_of_documents(row, ranking, runs) if row['documents'] else {})


def wanted(row: Mapping) -> tuple[str, ...]:
    """The answers that useful documents should hold: the question's or, with simulator.tell 'hop', those of the hop."""
    return tuple(row.get('wanted_answers', row['golden_answers']))


def _containment(row: Mapping) -> dict[str, float]:
    """Whether documents hold a wanted answer; a measure of its own if the query says it, and none if it is yes or no.

    A query that asks for a hop on the way also has: whether they hold that hop's answer, and the final one.
    """

    def held(answers: Sequence[str]) -> float:
        return float(any(holds_answer(text, answers) for text in row['documents']))

    golds, hop, answers = tuple(row['golden_answers']), row.get('hop_answer'), checkable(wanted(row))
    if not answers:
        return {}
    if holds_answer(row['query'], answers):
        return {'contains_in_query': held(answers)}
    if not hop or not checkable(golds) or holds_answer(row['query'], [hop, *golds]) or holds_answer(hop, golds):
        return {'contains': held(answers)}
    return {'contains': held(answers), 'hop_answer': held([hop]), 'final_answer': held(golds)}


def _of_documents(row: Mapping, ranking: Ranking | None, runs: Mapping[str, int]) -> dict[str, float]:
    """Means over the documents of a search, except for the query's words, which any of them may contain."""
    documents = row['documents']
    of_each: dict[str, list[float]] = {
        'words': [len(text.split()) for text in documents],
        'near_copies': [near_copy(text, row['question']) for text in documents],
        'english': [english(text) for text in documents],
    }
    if ranking:
        ranks = [ranking.rank(row['query'], text) for text in documents]
        of_each |= {'rank': ranks, 'reciprocal_rank': [1 / rank for rank in ranks]}
    if runs:
        of_each['longest_run'] = [runs[text] for text in documents]
        of_each['copies'] = [runs[text] >= COPIED for text in documents]
    means = {name: float(np.mean(numbers)) for name, numbers in of_each.items()}
    return {'query_words': share_held(row['query'], documents)} | means


# ---------------------------------------------------------------- of an audit


def measure(answers: Sequence[Mapping], reference: Reference = Reference()) -> dict:
    """All figures of an audit, {group: {name: {'mean', 'interval', 'count'}}}, and the number of 'queries'.

    Groups: useful, noisy and real documents; 'gap', useful minus noisy by query; 'useful / real' and 'noisy / real',
    ratios of means. Distinct-n is computed over all searches at once and has no interval: resampling would repeat runs.
    """
    groups = {label: [row for row in answers if row['noisy'] == (label == 'noisy')] for label in QUALITIES}
    found_too = [row for row in groups['useful'] if row['id'] in reference.real]
    groups['real'] = [_asked(row) | {'documents': reference.real[row['id']]} for row in found_too]
    texts = {label: [text for row in part for text in row['documents']] for label, part in groups.items()}
    every = [*dict.fromkeys(text for part in texts.values() for text in part)]
    runs = dict(zip(every, longest_runs(every, reference.trained), strict=True)) if reference.trained else {}
    ranking = Ranking(reference.collection) if reference.collection else None
    found = {label: {row['id']: values(row, ranking, runs) for row in part} for label, part in groups.items()}
    figures: dict = {'queries': len(found['useful'].keys() & found['noisy'].keys())}
    for label, part in found.items():
        names = dict.fromkeys(name for one in part.values() for name in one)
        figures[label] = {name: _mean([one[name] for one in part.values() if name in one]) for name in names}
        if texts[label]:
            figures[label] |= {f'distinct_{n}': {'mean': distinct(texts[label], n)} for n in (1, 2)}
    gaps = {name: _pairs(found['useful'], found['noisy'], name) for name in PAIRED}
    figures['gap'] = {name: _mean([a - b for a, b in pairs]) for name, pairs in gaps.items() if pairs}
    for label in QUALITIES:
        ratios = {name: _ratio(_pairs(found[label], found['real'], name)) for name in RELATIVE}
        figures[f'{label} / real'] = {name: ratio for name, ratio in ratios.items() if ratio}
    return figures


def _asked(row: Mapping) -> dict:
    asked = {name: row.get(name) for name in ('id', 'query', 'question', 'golden_answers', 'hop_answer')}
    return asked | {'wanted_answers': wanted(row)}


def _pairs(some: Mapping[str, Mapping], others: Mapping[str, Mapping], name: str) -> list[tuple[float, float]]:
    """A measure of the same search in two groups, for searches that have it in both."""
    both = [(some[i], others[i]) for i in some if i in others]
    return [(a[name], b[name]) for a, b in both if name in a and name in b]


def _mean(numbers: Sequence[float]) -> dict:
    return with_interval(numbers) | {'count': len(numbers)}


def _ratio(pairs: Sequence[tuple[float, float]]) -> dict | None:
    """The ratio of two means over the same searches; None if the second may be 0."""
    if not pairs:
        return None
    draws = [stratified_means([part]) for part in zip(*pairs, strict=True)]  # one seed: equal draws
    if not draws[1].min() > 0:
        return None
    low, high = np.quantile(draws[0] / draws[1], [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    mean = sum(a for a, _ in pairs) / sum(b for _, b in pairs)
    return {'mean': mean, 'interval': (float(low), float(high)), 'count': len(pairs)}
