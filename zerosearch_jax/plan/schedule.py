"""Simulates the schedule of a step's rollouts: how often the engines are called, and how many slots decode."""

import collections
import dataclasses
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple

from zerosearch_jax.train.config import Config

SPREAD = 0.5  # turns are uniformly between 0.5 and 1.5 times their mean length; assumed


@dataclasses.dataclass(frozen=True)
class Workload:
    """What a trajectory does on average: assumptions, since it is not known before the run."""

    searches: float = 1.0  # in the published run 64,000 searches in 200 steps of 320 trajectories
    sampled: float = 400.0  # tokens that the policy samples
    written: float = 0.0  # tokens that the simulator writes for a search; 0: simulator.max_tokens

    def __post_init__(self):
        if min(self.searches, self.sampled, self.written) < 0:
            raise ValueError('searches, sampled and written tokens must not be negative')

    @classmethod
    def of(cls, cfg: Config, **given) -> 'Workload':
        work = cls(**{name: value for name, value in given.items() if value is not None})
        return dataclasses.replace(work, written=work.written or float(cfg.simulator.max_tokens))


class Turn(NamedTuple):
    """One generation of an episode, between two decisions of the host."""

    role: str
    tokens: int  # in its slot when it begins to sample
    written: int  # how many of these have to be prefilled
    sampled: int
    first: bool = False  # it needs a new slot
    last: bool = False  # it frees its slot


def episodes(cfg: Config, work: Workload) -> list[list[Turn]]:
    """The turns of a step's trajectories. A group's prompt is prefilled once; the last turn ends the text."""
    own, sim, draw = cfg.rollout, cfg.simulator, random.Random(0).random  # a fixed seed: one schedule

    def spread(mean: float, most: int) -> int:
        width = min(SPREAD, most / mean - 1) if 0 < mean < most else 0
        return round(min(mean, most) * (1 + width * (2 * draw() - 1)))

    def turns(sample: int) -> Iterator[Turn]:
        tokens, sampled = own.prompt_tokens, spread(mean := work.sampled / (1 + work.searches), own.turn_tokens)
        yield Turn('policy', tokens, 0 if sample else tokens, sampled, first=True)
        for _ in range(min(int(work.searches + draw()), own.max_turns)):
            asked, written = sim.prompt_tokens, spread(work.written, sim.max_tokens)
            if sim.kind not in ('model', 'self'):
                asked, written = 0, 1  # it answers at once
            yield Turn('simulator', asked, asked, written, first=True, last=True)
            tokens += sampled + own.observation_tokens
            yield Turn('policy', tokens, own.observation_tokens, sampled := spread(mean, own.turn_tokens))
        yield Turn('policy', tokens + sampled, 0, 1, last=True)

    return [list(turns(sample)) for _ in range(own.questions) for sample in range(own.group)]


def play(
    trajectories: Sequence[Sequence[Turn]],
    engines: Mapping[str, Mapping[str, int]],
    steps: int,
    extends: Callable[[str, list[int]], int],
) -> dict[str, collections.Counter]:
    """Simulates a step: always calls the engine with more slots to decode, as rollout/rollout.py does.

    Args:
      trajectories: their turns, in the order in which they start.
      engines: {name: {role: slots}}; if two have equally many slots to decode, the first is called.
      steps: the most tokens that a call decodes in each slot; a slot that ends continues, or is freed, after the call.
      extends: the number of prefill calls, as a function of the engine and the tokens to prefill in each slot.

    Returns:
      For each engine 'decodes' and 'extends' (calls), 'rows' (slots that decode, summed over calls) and 'tokens'
      (tokens in these slots, summed over calls).
    """
    free = {role: slots for roles in engines.values() for role, slots in roles.items()}
    waiting = {role: collections.deque() for role in free}
    # {episode: (its turn, tokens left to sample)}, in the order in which they got their slots; 0 left: it waits
    rows: dict[str, dict[int, tuple[Turn, int]]] = {role: {} for role in free}
    counts = {name: collections.Counter(decodes=0, extends=0, rows=0, tokens=0) for name in engines}
    rest = [iter(turns) for turns in trajectories]

    def go_on(episode: int):
        if turn := next(rest[episode], None):
            if turn.first:
                waiting[turn.role].append((episode, turn))
            else:
                rows[turn.role][episode] = turn, turn.sampled

    def decoding(name: str) -> list[tuple[str, int, Turn, int]]:
        return [(role, i, turn, left) for role in engines[name] for i, (turn, left) in rows[role].items() if left]

    def active(name: str) -> int:
        return len(decoding(name)) + sum(min(len(waiting[role]), free[role]) for role in engines[name])

    for episode in range(len(trajectories)):
        go_on(episode)
    while active(name := max(engines, key=active)):
        for role in engines[name]:
            while waiting[role] and free[role]:
                free[role] -= 1
                episode, turn = waiting[role].popleft()
                rows[role][episode] = turn, turn.sampled
        here, count, ended = decoding(name), counts[name], []
        fresh = [turn.written for _, _, turn, left in here if left == turn.sampled]
        count.update(decodes=1, extends=extends(name, fresh), rows=len(here))
        for role, episode, turn, left in here:
            count['tokens'] += turn.tokens + turn.sampled - left
            rows[role][episode] = turn, max(left - steps, 0)
            if left <= steps:
                ended.append(episode)
                if turn.last:
                    del rows[role][episode]
                    free[role] += 1
        for episode in ended:
            go_on(episode)
    return counts
