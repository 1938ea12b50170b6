"""Alarms: signs that a run collapses, each with a threshold and what to try, reported once (docs/metrics.md)."""

import dataclasses
import math
from collections.abc import Callable, Sequence


@dataclasses.dataclass(frozen=True)
class AlarmConfig:
    """Thresholds of the alarms; 0 switches an alarm off."""

    window: int = 5  # steps in a row for which a condition has to hold
    entropy: float = 0.05  # loss/entropy is below this; nats a token
    kl: float = 0.5  # loss/kl is above this; nats a token
    length_low: float = 0.3  # rollout/response_tokens is below this share of its mean over the first `window` steps
    length_high: float = 3.0  # rollout/response_tokens is above this multiple of that mean
    answered: float = 0.2  # rollout/answered is below this
    searches: float = 0.05  # rollout/searches is below this
    failed: float = 0.5  # rollout/failed is above this
    zero_variance: float = 0.9  # rollout/zero_variance_groups is above this
    grad_norm: float = 100.0  # loss/grad_norm is above this
    logprob_gap: float = 2.0  # loss/logprob_gap_max is above this; nats
    stop: bool = False  # whether an alarm ends the run, after a checkpoint

    def __post_init__(self):
        if self.window < 1:
            raise ValueError(f'window must be at least 1, got {self.window}')


Rows = Sequence[dict[str, float]]
WATCHED = (
    'reward/mean',
    'loss/loss',
    'loss/entropy',
    'loss/kl',
    'loss/grad_norm',
    'loss/logprob_gap_max',
    'rollout/response_tokens',
    'rollout/answered',
    'rollout/searches',
    'rollout/failed',
    'rollout/zero_variance_groups',
)


def _below(key: str) -> Callable[[dict, float, float], bool]:
    return lambda row, limit, _: row.get(key, math.inf) < limit


def _above(key: str) -> Callable[[dict, float, float], bool]:
    return lambda row, limit, _: row.get(key, -math.inf) > limit


# name: (whether a row is over the limit, as a function of row, limit and first length of responses; what to try)
ALARMS: dict[str, tuple[Callable[[dict, float, float], bool], str]] = {
    'entropy': (_below('loss/entropy'), 'lower the learning rate, add an entropy bonus or set rl.clip_high above clip'),
    'kl': (_above('loss/kl'), 'raise rl.kl or lower the learning rate'),
    'length_low': (
        lambda row, limit, first: row['rollout/response_tokens'] < limit * first,
        'look at the trajectories: answers without a thought are rewarded',
    ),
    'length_high': (
        lambda row, limit, first: row['rollout/response_tokens'] > limit * first,
        'look at the trajectories; set reward.overlong_tokens',
    ),
    'answered': (_below('rollout/answered'), 'set reward.format, or start from a longer warm start'),
    'searches': (_below('rollout/searches'), 'look at the trajectories: the policy answers from memory'),
    'failed': (_above('rollout/failed'), 'see calls.log: a server, or a simulator that does not follow its template'),
    'zero_variance': (_above('rollout/zero_variance_groups'), 'use larger groups, or other questions'),
    'grad_norm': (_above('loss/grad_norm'), 'lower the learning rate'),
    'logprob_gap': (_above('loss/logprob_gap_max'), 'compute in float32, or set rl.importance_cap'),
}
ADVICE = {name: advice for name, (_, advice) in ALARMS.items()} | {'not_finite': 'lower the learning rate'}


def fired_alarms(rows: Rows, cfg: AlarmConfig) -> list[str]:
    """Names of the alarms that the last rows trigger; a pure function of all rows of the run so far.

    Args:
      rows: metrics of every step, oldest first.
    """
    if 'not_finite' in over_limits(rows, cfg):
        return ['not_finite']
    if len(rows) < cfg.window:
        return []
    last = [over_limits(rows[: len(rows) - back], cfg) for back in range(cfg.window)]
    return [name for name in ALARMS if all(name in over for over in last)]


def newly_over_limit(rows: Rows, cfg: AlarmConfig) -> bool:
    """Whether the last step is over a limit that the one before was not over: an older state is worth keeping."""
    return bool(set(over_limits(rows, cfg)) - set(over_limits(rows[:-1], cfg)))


def over_limits(rows: Rows, cfg: AlarmConfig) -> list[str]:
    """Names of the alarms whose limit the last row exceeds."""
    if not rows:
        return []
    if not all(math.isfinite(value) for value in rows[-1].values()):
        return ['not_finite']
    start = [row['rollout/response_tokens'] for row in rows[: cfg.window]]
    first = math.fsum(start) / len(start)
    limits = {name: getattr(cfg, name) for name in ALARMS}
    return [name for name, limit in limits.items() if limit and ALARMS[name][0](rows[-1], limit, first)]
