"""The configuration of reinforcement learning: one frozen dataclass a section, checked before anything is loaded."""

from __future__ import annotations

import dataclasses
import typing

from zerosearch_jax import roles, settings, state
from zerosearch_jax.alarms import AlarmConfig
from zerosearch_jax.cost import PricesConfig
from zerosearch_jax.data import rows
from zerosearch_jax.evaluate import EvaluationConfig
from zerosearch_jax.learner import CriticConfig, RLConfig
from zerosearch_jax.search.curriculum import Curriculum
from zerosearch_jax.search.remote import EngineConfig
from zerosearch_jax.search.rollout import RolloutConfig
from zerosearch_jax.search.scoring import RewardConfig
from zerosearch_jax.search.simulator import SimulatorConfig
from zerosearch_jax.search.writers import EndpointConfig


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """Sources of questions and passages, see data/rows.py; 'world' is the built-in one."""

    train: str = 'world'  # questions of training
    folds: tuple[int, ...] = ()  # of ten, by a hash of their ids, in which `train` is taken; (): all
    test: str = 'world'  # held-out questions, of evaluations
    corpus: str = 'world'  # passages of the engine 'bm25' and of the simulator 'oracle'

    def __post_init__(self):
        if unknown := set(self.folds) - set(range(rows.FOLDS)):
            raise ValueError(f'folds are numbered from 0 to {rows.FOLDS - 1}, got {min(unknown)}')


@dataclasses.dataclass(frozen=True)
class RunConfig:
    """What is written, and how often, in steps."""

    checkpoint_every: int = 1
    trajectories_every: int = 1
    trajectories: int = 8  # written each time
    tensorboard: bool = True  # event files in tensorboard/
    wandb: str = ''  # project of Weights & Biases; '': not used

    def __post_init__(self):
        settings.positive(self, 'checkpoint_every', 'trajectories_every')


@dataclasses.dataclass(frozen=True)
class Config:
    """The whole configuration, one frozen dataclass a section."""

    seed: int
    mesh: tuple[int, int, int]
    policy: roles.PolicyConfig
    simulator: SimulatorConfig
    endpoint: EndpointConfig
    engine: EngineConfig  # the real one
    data: DataConfig
    curriculum: Curriculum
    rollout: RolloutConfig
    reward: RewardConfig
    rl: RLConfig
    critic: CriticConfig
    optimizer: state.OptimizerConfig
    evaluation: EvaluationConfig
    alarms: AlarmConfig
    prices: PricesConfig
    run: RunConfig

    def __post_init__(self):
        if self.rollout.prompt in ('documents', 'direct'):
            raise ValueError(
                f"config.rollout.prompt = '{self.rollout.prompt}' is of evaluations; a policy is trained on 'search'"
            )
        if self.rollout.temperature <= 0:
            raise ValueError('config.rollout.temperature must be positive: log-probs are those of the sampling')
        if self.rollout.group < self.rl.least_group:
            raise ValueError(
                f'config.rl.algorithm = {self.rl.algorithm!r} compares the samples of a question: '
                f'config.rollout.group must be at least {self.rl.least_group}'
            )
        if self.rollout.group < 2 and (self.rl.drop_zero_variance or self.rl.dynamic_sampling):
            raise ValueError(
                'config.rl.drop_zero_variance and config.rl.dynamic_sampling look for groups with different rewards: '
                'config.rollout.group must be at least 2'
            )
        if (self.simulator.kind == 'none') != (self.rollout.max_turns == 0):
            raise ValueError("config.simulator.kind = 'none' and config.rollout.max_turns = 0 go together: no search")
        longest = self.rollout.prompt_tokens + self.rollout.response_tokens
        if longest > self.rl.row_length:
            raise ValueError(
                f'config.rl.row_length = {self.rl.row_length} is less than rollout.prompt_tokens + '
                f'rollout.response_tokens = {longest}; raise it'
            )


SCHEMA = typing.get_type_hints(Config)


def parse(config) -> Config:
    """Checks a ConfigDict; raises ValueError with one line on a misspelt, missing or mistyped field."""
    if 'base' in config and 'variants' in config:
        raise ValueError('this configuration is a study: give it to launch.sweep')
    return Config(**settings.resolve(config, SCHEMA))
