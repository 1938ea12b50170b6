"""BM25 against a small NumPy reference, and its edges."""

import collections
import concurrent.futures
import math
import os
import re
import time

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from zerosearch_jax.data import sources
from zerosearch_jax.data.rows import Passage
from zerosearch_jax.search.bm25 import BM25
from zerosearch_jax.search.search import Document

_WORDS = ['apple', 'berry', 'cherry', 'damson', 'elder', 'fig', 'grape']


def _reference(texts, query, k1=1.5, b=0.75):
    """Lucene's BM25, [number of texts]."""
    documents = [re.findall(r'\w\w+', text.lower()) for text in texts]
    lengths = np.array([len(document) for document in documents])
    scores = np.zeros(len(texts))
    for word in re.findall(r'\w\w+', query.lower()):
        frequency = np.array([document.count(word) for document in documents])
        n = (frequency > 0).sum()
        if n:
            idf = math.log(1 + (len(texts) - n + 0.5) / (n + 0.5))
            scores += idf * frequency / (frequency + k1 * (1 - b + b * lengths / lengths.mean()))
    return scores


@given(
    st.lists(st.lists(st.sampled_from(_WORDS), min_size=1, max_size=8), min_size=1, max_size=12),
    st.lists(st.sampled_from([*_WORDS, 'unknown']), max_size=4),
    st.integers(1, 15),
)
def test_agrees_with_the_reference(documents, query, k):
    texts, query = [' '.join(words) for words in documents], ' '.join(query)
    found = BM25([Passage(str(i), '', text) for i, text in enumerate(texts)]).search([query], k)[0]
    scores = _reference(texts, query)
    ids = [int(document.id) for document in found]
    assert len(ids) == min(k, (scores > 0).sum())
    np.testing.assert_allclose(scores[ids], np.sort(scores)[::-1][: len(ids)], rtol=1e-5)
    # Equal documents are equal scores, so they must come in the order of the corpus.
    order = collections.defaultdict(list)
    for i in ids:
        order[tuple(sorted(documents[i]))].append(i)
    assert all(same == sorted(same) for same in order.values())
    assert all(document == Document('', texts[int(document.id)], document.id) for document in found)


def test_ties_are_cut_in_corpus_order():
    engine = BM25([Passage(str(i), 'Same title', 'same text') for i in range(50)] + [Passage('x', 'Other', 'thing')])
    assert [d.id for d in engine.search(['same'], 7)[0]] == [str(i) for i in range(7)]


def test_edges():
    engine = BM25([Passage('a', 'São Paulo', 'A city in Brazil.'), Passage('b', '', 'the of and')])
    assert engine.search(['', '   ', '?!', 'the', 'zebra'], 3) == [[], [], [], [], []]
    assert engine.search([], 3) == []
    assert engine.search(['Sao PAULO', 'São Paulo'], 99) == [[Document('São Paulo', 'A city in Brazil.', 'a')]] * 2
    with pytest.raises(ValueError, match='k must be at least 1'):
        engine.search(['city'], 0)
    for passages in ([], [Passage('a', '', '...')]):
        with pytest.raises(ValueError, match='give a corpus with text'):
            BM25(passages)


def test_save_and_load(tmp_path, capfd):
    passages = [Passage(str(i), f'Title {w}', f'line one\r\nline "two" \u2028 {w} ünï') for i, w in enumerate(_WORDS)]
    engine = BM25(passages)
    engine.save(str(tmp_path / 'index'))
    loaded = BM25.load(str(tmp_path / 'index'))
    queries = [*_WORDS, 'line uni', '']
    assert loaded.search(queries, 5) == engine.search(queries, 5)
    assert isinstance(loaded._index.scores['data'], np.memmap)
    assert {path.suffix for path in (tmp_path / 'index').iterdir()} <= {'.npy', '.json', '.jsonl'}
    assert capfd.readouterr() == ('', '')
    with pytest.raises(FileNotFoundError, match='holds no BM25 index'):
        BM25.load(str(tmp_path))


def test_first_hop_of_the_world_is_found():
    from zerosearch_jax.data import world

    built = world.build()
    engine = BM25(built.passages)
    steps = [step for q in built.test for step in q.metadata['decomposition']]
    found = engine.search([step['query'] for step in steps], 3)
    recall = np.mean([step['passage'] in {d.id for d in docs} for step, docs in zip(steps, found, strict=True)])
    assert recall > 0.9
    two = [q for q in built.test if q.metadata['type'] in ('city_capital', 'city_currency', 'city_country_population')]
    found = engine.search([q.question for q in two], 3)
    both = np.mean([q.metadata['supporting'][1] in {d.id for d in docs} for q, docs in zip(two, found, strict=True)])
    assert both < 0.1  # One search with the question itself does not do.


@pytest.mark.skipif(not os.environ.get('ZEROSEARCH_DATA'), reason='ZEROSEARCH_DATA is not set')
def test_real_corpus():
    passages = sources.load_passages('corpus/corpus.jsonl.gz')[:5000]
    engine = BM25(passages)
    found = engine.search([p.title for p in passages[::250]], 5)
    hits = [p.title in {d.title for d in docs} for p, docs in zip(passages[::250], found, strict=True)]
    assert np.mean(hits) > 0.8


def test_of_jobs_that_open_one_directory_at_once_one_makes_the_index(tmp_path, monkeypatch):
    passages, save, made = [Passage('a', 'Rome', 'city of hills')], BM25.save, []

    def slowly(self, directory):
        made.append(directory)
        time.sleep(0.2)
        save(self, directory)

    monkeypatch.setattr(BM25, 'save', slowly)
    with concurrent.futures.ThreadPoolExecutor(4) as jobs:
        engines = [*jobs.map(lambda _: BM25.open(passages, str(tmp_path / 'index')), range(4))]
    assert len(made) == 1 and all(engine.search(['hills'], 1)[0] for engine in engines)
