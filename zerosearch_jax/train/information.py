"""What a search tells: by how much its documents raise the log-prob of the golden answer (IGPO, arXiv 2510.14967).

    prompt | action | documents | action | documents | action
           ^                    ^                    ^          here, `<answer>` and the golden answer are put

The value of such a place is the mean log-prob of the golden answer's tokens under the policy of the step; the gain of a
search is the value after its documents minus the value at the place before.
"""

import itertools
from collections.abc import Callable, Sequence

import numpy as np

from zerosearch_jax.rollout.rollout import Trajectory
from zerosearch_jax.text.tokenizer import Tokenizer
from zerosearch_jax.text.trajectory import Kind, TokenSequence, flatten

OPENING = '<answer>'
Scores = Callable[[list[TokenSequence]], list[np.ndarray]]  # log-probs of the weighted tokens of each sequence


def add_gains(trajectories: Sequence[Trajectory], tokenizer: Tokenizer, longest: int, scores: Scores):
    """Sets `information` of every trajectory without a failed search.

    Args:
      trajectories: finished.
      tokenizer: the policy's.
      longest: tokens of a sequence. If documents were not read, because the episode ended, or the answer does not fit
        after them, the gain is None.
      scores: under the policy of the step.
    """
    asked = [t for t in trajectories if t.searches and not t.failed]
    made = [probes(t, tokenizer, longest) for t in asked]
    values = iter(float(found.mean()) for found in scores([*itertools.chain(*made)]))
    for trajectory, own in zip(asked, made, strict=True):
        gains = np.diff([*itertools.islice(values, len(own))]).tolist()
        trajectory.information = [*gains, *[None] * (len(trajectory.searches) - len(gains))]


def probes(trajectory: Trajectory, tokenizer: Tokenizer, longest: int) -> list[TokenSequence]:
    """The prompt and what follows it up to each search's documents, with the first golden answer as weighted tokens."""
    opening, gold = tokenizer.encode(OPENING), tokenizer.encode(trajectory.question.golden_answers[0])
    observations = [i for i, s in enumerate(trajectory.segments, 1) if s.kind is Kind.OBSERVATION]
    found = []
    for end in (1, *(observations[turn] for turn in trajectory.search_turns if turn < len(observations))):
        before = flatten(trajectory.segments[:end])
        tokens = np.concatenate([before.tokens, opening, gold]).astype(np.int32)
        if len(tokens) > longest:
            break
        weights = (np.arange(len(tokens)) >= len(tokens) - len(gold)).astype(np.float32)
        found.append(TokenSequence(tokens, weights, np.zeros(len(tokens), np.float32), before.prefix))
    return found
