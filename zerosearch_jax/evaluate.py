"""Greedy evaluation of a policy with a search engine, with bootstrap intervals."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from zerosearch_jax import settings
from zerosearch_jax.data.rows import Question
from zerosearch_jax.generate.engine import Engine
from zerosearch_jax.search import rewards
from zerosearch_jax.search.rollout import RolloutConfig, Trajectory, rollout
from zerosearch_jax.text.tokenizer import Tokenizer
from zerosearch_jax.text.trajectory import Kind, Segment

METRICS = ('em', 'cover_em', 'f1')
RESAMPLES = 10_000


@dataclasses.dataclass(frozen=True)
class EvaluationConfig:
    """Which held-out questions are asked, when, and with which engine."""

    questions: int = 64  # those with the lowest hash of their id; 0: no evaluation
    before: bool = True  # also evaluate before training
    every: int = 0  # also evaluate after every so many steps; 0: only before and after training
    documents: int = 3  # documents a search of the real engine
    temperature: float = 0.0  # 0: greedy; the published system samples at 1 (defect D5)
    whole_batches_of: int = 1  # questions beyond the last whole batch are left out, as there (of 64; defect D6)

    def __post_init__(self):
        settings.positive(self, 'documents', 'whole_batches_of')


def evaluate(
    questions: Sequence[Question],
    policy: Engine,
    search,
    tokenizer: Tokenizer,
    cfg: RolloutConfig,
    *,
    seed: int,
    finished: Callable[[Trajectory], None] = lambda trajectory: None,
) -> list[Trajectory]:
    """One episode a question, greedy where `policy` was loaded with temperature 0."""
    return rollout(
        questions, 1, policy, search, tokenizer, cfg, identity=(seed, 0), stream='evaluation', finished=finished
    )


def scores(trajectory: Trajectory) -> dict[str, float]:
    """EM, cover-EM and F1 of one trajectory's answer."""
    golds = trajectory.question.golden_answers
    return {name: rewards.REWARDS[name](trajectory.answer, golds) for name in METRICS}


def summarize(trajectories: Sequence[Trajectory]) -> dict[str, float]:
    """Means over trajectories: the three scores, searches, tokens, answers and invalid actions."""
    rows = [scores(t) for t in trajectories]
    return {
        **{name: float(np.mean([row[name] for row in rows])) for name in METRICS},
        'searches': float(np.mean([len(t.searches) for t in trajectories])),
        'response_tokens': float(np.mean([t.response_tokens for t in trajectories])),
        'answered': float(np.mean([t.status == 'answered' for t in trajectories])),
        'invalid_actions': float(np.mean([t.invalid_actions for t in trajectories])),
    }


def bootstrap_interval(values: Sequence, *, seed: int = 0, level: float = 0.95) -> tuple[float, float]:
    """Percentile bootstrap interval of the mean (Efron 1979), `RESAMPLES` resamples.

    Args:
      values: one a question, or [questions, runs]: then questions and runs are both drawn anew, so that the interval
        covers the choice of the seeds too. For a paired comparison pass the differences, question by question.
      seed: of the draws.
      level: coverage.
    """
    values = np.asarray(values, np.float64)
    values = values.reshape(len(values), -1)
    generator = np.random.default_rng(seed)
    questions, runs = (generator.integers(0, n, (RESAMPLES, n)) for n in values.shape)
    means = values[questions[:, :, None], runs[:, None, :]].mean((1, 2))
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def row(trajectory: Trajectory, tokenizer: Tokenizer, gaps: Sequence[float] | None = None, **extra) -> dict:
    """A trajectory as one JSON row: scores, searches, and every segment's text.

    Of a sampled segment also, a token each, the characters of the text, the engine's log-prob, and where `gaps` of all
    sampled tokens are given, how much the trainer's differs from it.
    """
    left, hops = iter(() if gaps is None else gaps), trajectory.question.metadata.get('hops')
    return {
        'id': trajectory.question.id,
        'sample': trajectory.sample,
        'question': trajectory.question.question,
        'golden_answers': list(trajectory.question.golden_answers),
        'hops': hops if isinstance(hops, int) else None,
        'answer': trajectory.answer,
        'status': trajectory.status,
        'action_tokens': trajectory.action_tokens,
        'response_tokens': trajectory.response_tokens,
        **scores(trajectory),
        **extra,
        'searches': [
            {
                'query': s.query.text,
                'noisy': s.noisy,
                'labels': list(s.labels),  # of the documents of a simulated search, whether each was to be noisy
                'documents': list(s.documents),
                'failure': s.failure,
                'attempts': s.attempts,
            }
            for s in trajectory.searches
        ],
        'segments': [_segment(s, tokenizer, left) for s in trajectory.segments],
    }


def _segment(segment: Segment, tokenizer: Tokenizer, gaps: Iterator[float]) -> dict:
    pieces = tokenizer.pieces(segment.tokens)
    about = {'kind': Kind(segment.kind).name.lower(), 'tokens': len(segment.tokens), 'text': ''.join(pieces)}
    if segment.logprobs:
        about |= {'characters': [*map(len, pieces)], 'logprobs': [round(x, 3) for x in segment.logprobs]}
        if own := [round(float(gap), 5) for gap in itertools.islice(gaps, len(segment.logprobs))]:
            about['gaps'] = own
    return about
