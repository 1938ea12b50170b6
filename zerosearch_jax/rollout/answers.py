"""Rewards and metrics of an answer: token F1, exact match and cover exact match over normalized text.

All take `(prediction | None, golds)` and return the best score over the golden answers, in [0, 1], or 0 without a
prediction. Normalization is `normalize_answer` of data/rows.py. Sources: the SQuAD v1.1 evaluation script
(normalization, F1, EM) and ZeroSearch, arXiv 2505.04588, section 3.5 (F1 as the training reward).
"""

import collections
from collections.abc import Callable, Sequence

from zerosearch_jax.data.rows import normalize_answer


def f1(prediction: str | None, golds: Sequence[str]) -> float:
    """Bag-of-tokens F1, `2 * common / (predicted + gold)`; 0 if they share no token, also if both are empty."""
    return _best(_f1, prediction, golds)


def exact_match(prediction: str | None, golds: Sequence[str]) -> float:
    """1 if the normalized prediction equals a normalized golden answer, else 0."""
    return _best(str.__eq__, prediction, golds)


def cover_exact_match(prediction: str | None, golds: Sequence[str]) -> float:
    """1 if a normalized golden answer is a substring of the normalized prediction, else 0.

    It compares characters, not tokens: the golden answer '89' is found in the prediction '1989'. A golden answer that
    is empty after normalization ('The') never counts.
    """
    return _best(lambda pred, gold: bool(gold) and gold in pred, prediction, golds)


def published_em(prediction: str | None, golds: Sequence[str]) -> float:
    """What the published ZeroSearch code reports as EM (difference D3).

    It is cover_exact_match, except that a golden answer that is empty after normalization is found in every prediction.
    """
    return _best(lambda pred, gold: gold in pred, prediction, golds)


REWARDS: dict[str, Callable[[str | None, Sequence[str]], float]] = {
    'f1': f1,
    'em': exact_match,
    'cover_em': cover_exact_match,
    'published_em': published_em,
}


def _best(score: Callable[[str, str], float], prediction: str | None, golds: Sequence[str]) -> float:
    if isinstance(golds, str):  # a string is a sequence of strings too, and would be scored letter by letter
        raise TypeError(f'golds must be a sequence of strings, got the string {golds!r}')
    if prediction is None:
        return 0.0
    pred = normalize_answer(prediction)
    return max((float(score(pred, normalize_answer(gold))) for gold in golds), default=0.0)


def _f1(pred: str, gold: str) -> float:
    pred_tokens, gold_tokens = pred.split(), gold.split()
    common = (collections.Counter(pred_tokens) & collections.Counter(gold_tokens)).total()
    return 2 * common / (len(pred_tokens) + len(gold_tokens)) if common else 0.0
