"""Recall of BM25 as the engines have it, beside bm25s called directly: the same tokens, the same documents.

python -m benchmarks.recall --corpus corpus/corpus.jsonl.gz --questions questions/nq_test.jsonl.gz

A question counts where one of the first `--k` passages for it holds a golden answer; yes/no questions are left out.
"""

from __future__ import annotations

import argparse
import json
import pathlib
from collections.abc import Sequence

import numpy as np

from zerosearch_jax.data import rows, sources
from zerosearch_jax.search import bm25


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--corpus', required=True, help='source of passages, as data/sources.py takes them')
    parser.add_argument('--questions', nargs='+', required=True)
    parser.add_argument('--k', type=int, default=5)
    args = parser.parse_args()
    passages = sources.load_passages(args.corpus)
    mine, direct = bm25.BM25(passages), Direct(passages)
    for source in args.questions:
        asked = [q for q in sources.load_questions(source) if not yes_or_no(q)]
        queries = [q.question for q in asked]
        found = [[d.id for d in each] for each in mine.search(queries, args.k)]
        expected = direct.search(queries, args.k)
        print(
            json.dumps(
                {
                    'set': pathlib.Path(source).name.split('.')[0],
                    'questions': len(asked),
                    f'recall@{args.k}': recall(asked, found, passages),
                    f'recall@{args.k} of bm25s': recall(asked, expected, passages),
                    'same documents': float(np.mean([a == b for a, b in zip(found, expected, strict=True)])),
                }
            ),
            flush=True,
        )


class Direct:
    """bm25s by its own interface, with the tokens that search/bm25.py uses."""

    def __init__(self, passages: Sequence[rows.Passage]):
        import bm25s

        self._ids = [p.id for p in passages]
        self._index = bm25s.BM25()
        self._index.index(bm25._tokenize([f'{p.title} {p.text}' for p in passages]), show_progress=False)

    def search(self, queries: Sequence[str], k: int) -> list[list[str]]:
        found, scores = self._index.retrieve(bm25._tokenize(queries), k=k, show_progress=False)
        return [
            [self._ids[i] for i, score in zip(each, values, strict=True) if score > 0]
            for each, values in zip(found, scores, strict=True)
        ]


def yes_or_no(question: rows.Question) -> bool:
    return all(rows.normalize_answer(answer) in ('yes', 'no') for answer in question.golden_answers)


def recall(asked: Sequence[rows.Question], found: Sequence[Sequence[str]], passages: Sequence[rows.Passage]) -> float:
    """Share of questions one of whose passages holds an answer."""
    texts = {p.id: f'{p.title} {p.text}' for p in passages}
    return float(
        np.mean(
            [
                any(rows.holds_answer(texts[i], question.golden_answers) for i in ids)
                for question, ids in zip(asked, found, strict=True)
            ]
        )
    )


if __name__ == '__main__':
    main()
