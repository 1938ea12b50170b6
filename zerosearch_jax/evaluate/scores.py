"""The scores of trajectories, their means, and a trajectory as one JSON row."""

import itertools
from collections.abc import Iterator, Sequence

import numpy as np

from zerosearch_jax.rollout import answers
from zerosearch_jax.rollout.rewards import hop_answers, new_hops
from zerosearch_jax.rollout.rollout import Trajectory
from zerosearch_jax.text.tokenizer import Tokenizer
from zerosearch_jax.text.trajectory import Kind, Segment

METRICS = ('em', 'cover_em', 'f1')


def answer_scores(trajectory: Trajectory) -> dict[str, float]:
    """EM, cover-EM and F1 of one trajectory's answer."""
    golds = trajectory.question.golden_answers
    return {name: answers.REWARDS[name](trajectory.answer, golds) for name in METRICS}


def counted(rows: Sequence[dict]) -> list[dict]:
    """The rows of trajectories without a failed search: the others say nothing about the policy."""
    return [row for row in rows if row['status'] != 'search_failed']


def mean_scores(trajectories: Sequence[Trajectory]) -> dict[str, float]:
    """Means over trajectories: scores, searches, tokens, answers, invalid actions, and hops if questions list them."""
    hops = [len({*new_hops(t)} - {''}) / len(needed) for t in trajectories if (needed := hop_answers(t.question))]
    rows = [answer_scores(t) for t in trajectories]
    return {
        **{name: float(np.mean([row[name] for row in rows])) for name in METRICS},
        'searches': float(np.mean([len(t.searches) for t in trajectories])),
        'response_tokens': float(np.mean([t.response_tokens for t in trajectories])),
        'answered': float(np.mean([t.status == 'answered' for t in trajectories])),
        'invalid_actions': float(np.mean([t.invalid_actions for t in trajectories])),
        **({'hops': float(np.mean(hops))} if hops else {}),
    }


def as_row(trajectory: Trajectory, tokenizer: Tokenizer, gaps: Sequence[float] | None = None, **extra) -> dict:
    """A trajectory as one JSON row: scores, searches, and every segment's text.

    A sampled segment also has, for each token, the characters of its text, the engine's log-prob and, if `gaps` of all
    sampled tokens are given, the trainer's log-prob minus the engine's.
    """
    left, hops = iter(() if gaps is None else gaps), trajectory.question.metadata.get('hops')
    return {
        'id': trajectory.question.id,
        'dataset': trajectory.question.dataset,
        'sample': trajectory.sample,
        'question': trajectory.question.question,
        'golden_answers': list(trajectory.question.golden_answers),
        'hops': hops if isinstance(hops, int) else None,
        'answer': trajectory.answer,
        'status': trajectory.status,
        'action_tokens': trajectory.action_tokens,
        'response_tokens': trajectory.response_tokens,
        **answer_scores(trajectory),
        **extra,
        'searches': [
            {
                'query': s.query.text,
                'noisy': s.noisy,
                'labels': list(s.labels),  # of a simulated search: whether each document was requested as noisy
                'documents': list(s.documents),
                'failure': s.failure,
                **({'detail': s.detail} if s.detail else {}),
                'attempts': s.attempts,
                'mislabelled': s.mislabelled,
            }
            for s in trajectory.searches
        ],
        **({'information': trajectory.information} if trajectory.information else {}),
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
