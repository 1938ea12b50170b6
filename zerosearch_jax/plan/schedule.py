"""The schedule of a step's rollouts, played with numbers of tokens: how often the engines are called, and how full."""

import collections
import dataclasses
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple

from zerosearch_jax.train.config import Config

SPREAD = 0.5  # of a turn's length: evenly from half of its mean to one and a half of it. Assumed


@dataclasses.dataclass(frozen=True)
class Workload:
    """What a trajectory does, on average; nobody knows it before the run."""

    searches: float = 1.0  # in the published run 64,000 searches in 200 steps of 320 trajectories
    sampled: float = 400.0  # tokens that the policy samples
    written: float = 0.0  # tokens that the simulator writes a search; 0: all that it may

    def __post_init__(self):
        if min(self.searches, self.sampled, self.written) < 0:
            raise ValueError('searches, sampled and written tokens must not be negative')

    @classmethod
    def of(cls, cfg: Config, **given) -> 'Workload':
        work = cls(**{name: value for name, value in given.items() if value is not None})
        return dataclasses.replace(work, written=work.written or float(cfg.simulator.max_tokens))


class Turn(NamedTuple):
    """What an episode does between two decisions of the host."""

    role: str
    tokens: int  # in its slot when it begins to sample
    written: int  # of these, those that are written for it
    sampled: int
    first: bool = False  # it needs a slot
    last: bool = False  # its slot is free afterwards


def episodes(cfg: Config, work: Workload) -> list[list[Turn]]:
    """A step's trajectories. A group's prompt is written once; the last turn is the end of the text after an answer."""
    own, sim, draw = cfg.rollout, cfg.simulator, random.Random(0).random  # so that a workload has one schedule

    def spread(mean: float, most: int) -> int:
        width = min(SPREAD, most / mean - 1) if 0 < mean < most else 0
        return round(min(mean, most) * (1 + width * (2 * draw() - 1)))

    def turns(sample: int) -> Iterator[Turn]:
        tokens, sampled = own.prompt_tokens, spread(mean := work.sampled / (1 + work.searches), own.turn_tokens)
        yield Turn('policy', tokens, 0 if sample else tokens, sampled, first=True)
        for _ in range(min(int(work.searches + draw()), own.max_turns)):
            asked, written = sim.prompt_tokens, spread(work.written, sim.max_tokens)
            if sim.kind != 'model':
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
    """Calls the engine with more rows to decode until all is done, as rollout/rollout.py does.

    Args:
      trajectories: in the order in which they are opened.
      engines: {name: {role: slots}}; of equally full ones the first is called.
      steps: tokens that a call decodes in every row at most; a row that ends goes on, or makes room, after it.
      extends: of an engine and of the tokens to be written into some of its slots, the calls that this takes.

    Returns:
      Of each engine 'decodes' and 'extends' (calls), 'rows' and 'tokens' (of all calls: rows that decode, tokens in
      their slots).
    """
    free = {role: slots for roles in engines.values() for role, slots in roles.items()}
    waiting = {role: collections.deque() for role in free}
    # {episode: (its turn, tokens to sample in it)} in the order in which they were given their slots; 0: it waits there
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
