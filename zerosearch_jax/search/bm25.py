"""BM25 over a corpus of passages, in this process."""

import contextlib
import fcntl
import hashlib
import json
import logging
import threading
import unicodedata
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from zerosearch_jax import progress
from zerosearch_jax.data.rows import Passage
from zerosearch_jax.search.journal import on_first_process
from zerosearch_jax.search.search import Document

MANY = 10_000  # passages from which on indexing takes so long that progress is shown
_MARK = 'fingerprint.json'


def _fingerprint(passages: Iterable[Passage]) -> str:
    found = hashlib.sha256()
    for passage in passages:
        found.update(json.dumps([passage.id, passage.title, passage.text]).encode())
    return found.hexdigest()


class BM25:
    """BM25 (Lucene's variant, k1 1.5, b 0.75) over title and text.

    Words have two letters or more and are no English stop words; there is no stemming, and accents are ignored. The
    index is in memory or, after `load`, in memory-mapped files. Results depend on the corpus and the query alone.
    """

    def __init__(self, passages: Sequence[Passage]):
        """Indexes the passages (84,000 of 100 words: about 10 s). Raises ValueError if none of them has a word."""
        import bm25s

        logging.getLogger('bm25s').setLevel(logging.WARNING)  # it logs every stage of indexing
        progress.phase(f'indexing {len(passages):,} passages')
        tokens = _tokenize([f'{p.title} {p.text}' for p in passages])
        if not tokens.vocab:
            raise ValueError(f'none of the {len(passages)} passages has a word to index; give a corpus with text')
        self._index, self._reading = bm25s.BM25(), threading.Lock()
        self._index.index(tokens, show_progress=progress.enabled() and len(passages) >= MANY)
        self._index.corpus = [{'id': p.id, 'title': p.title, 'text': p.text} for p in passages]

    @classmethod
    def open(cls, passages: Sequence[Passage], directory: str) -> 'BM25':
        """The index of these passages in `directory`, memory-mapped; it is made and saved there if it is missing.

        Raises:
          ValueError: the directory holds the index of other passages.
        """
        mark, fingerprint = Path(directory) / _MARK, json.dumps(_fingerprint(passages))

        def is_there() -> bool:
            if not mark.exists():
                mark.parent.mkdir(parents=True, exist_ok=True)
                with open(mark.parent / '.lock', 'a', encoding='utf-8') as file:
                    with contextlib.suppress(OSError):  # a file system without locks
                        fcntl.flock(file, fcntl.LOCK_EX)  # of several jobs one makes the index, while the others wait
                    if not mark.exists():
                        cls(passages).save(directory)
            return mark.read_text() == fingerprint

        if not on_first_process(is_there):  # the other processes wait for it
            raise ValueError(f'{directory} holds the index of another corpus; give another directory, or delete it')
        return cls.load(directory)

    def save(self, directory: str) -> None:
        """Writes the index and the passages to a directory as .npy and JSON files."""
        self._index.save(directory, show_progress=False, raise_on_serialization_error=True)
        passages = (Passage(**item) for item in self._index.corpus)
        partial = Path(directory) / f'{_MARK}.partial'
        partial.write_text(json.dumps(_fingerprint(passages)))
        partial.replace(Path(directory) / _MARK)  # last: it marks the index as complete

    @classmethod
    def load(cls, directory: str) -> 'BM25':
        """Opens what `save` wrote, memory-mapped. Raises FileNotFoundError if the directory holds no index."""
        import bm25s

        if not (Path(directory) / 'params.index.json').exists():
            raise FileNotFoundError(f'{directory} holds no BM25 index; write one with BM25(passages).save(directory)')
        engine = cls.__new__(cls)
        engine._reading = threading.Lock()
        engine._index = bm25s.BM25.load(directory, load_corpus=True, mmap=True, show_progress=False, verbosity=0)
        return engine

    def search(self, queries: Sequence[str], k: int) -> list[list[Document]]:
        """At most k documents for each query, best first; ties are in the order of the corpus.

        Documents that share no word with the query are not returned, so a list may be short or empty.
        """
        if k < 1:
            raise ValueError(f'k must be at least 1, got {k}')
        return [self._search_one(query, k) for query in queries]

    def _search_one(self, query: str, k: int) -> list[Document]:
        vocab = self._index.vocab_dict
        words = [word for word in index_words(query) if word in vocab]
        if not words:
            return []
        scores = self._index.get_scores_from_ids([vocab[word] for word in words])
        hits = np.flatnonzero(scores > 0)
        if len(hits) > k:  # Keep all ties with the k-th, so that the stable sort below decides, not the partition.
            hits = hits[scores[hits] >= np.partition(scores[hits], -k)[-k]]
        best = hits[np.argsort(-scores[hits], kind='stable')][:k]
        with self._reading:  # threads share the position in the mapped file
            found = [self._index.corpus[int(i)] for i in best]
        return [Document(**item, score=float(scores[i])) for item, i in zip(found, best, strict=True)]


def index_words(text: str) -> list[str]:
    """The words of a text as they are indexed, in order, with repetitions."""
    return _tokenize([text], return_ids=False)[0]


def _tokenize(texts: Sequence[str], return_ids: bool = True):
    import bm25s

    folded = [text if text.isascii() else _fold(text) for text in texts]
    shown = progress.enabled() and len(texts) >= MANY
    return bm25s.tokenize(folded, stopwords='en', return_ids=return_ids, show_progress=shown)


def _fold(text: str) -> str:
    """The text without accents, since people and models write 'Sao Paulo' for 'São Paulo'."""
    return ''.join(c for c in unicodedata.normalize('NFKD', text) if not unicodedata.combining(c))
