"""The configuration of reinforcement learning: one frozen dataclass for each section, checked first."""

import dataclasses
import pathlib

import numpy as np

from zerosearch_jax import settings
from zerosearch_jax.data import rows
from zerosearch_jax.policy import PolicyConfig
from zerosearch_jax.rl import state
from zerosearch_jax.rl.config import CriticConfig, RLConfig
from zerosearch_jax.rollout.config import RolloutConfig
from zerosearch_jax.rollout.rewards import RewardConfig
from zerosearch_jax.run.alarms import AlarmConfig
from zerosearch_jax.run.checkpoint import complete_steps
from zerosearch_jax.run.cost import PricesConfig
from zerosearch_jax.run.trackers import TrackersConfig
from zerosearch_jax.search.remote import EngineConfig
from zerosearch_jax.simulator.config import SimulatorConfig
from zerosearch_jax.simulator.curriculum import Curriculum, noise_probability
from zerosearch_jax.simulator.writers import EndpointConfig


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """Sources of questions and passages, see data/sources.py; 'world' is the built-in one."""

    train: str = 'world'  # questions of training
    folds: tuple[int, ...] = ()  # which tenths of `train` are used, by a hash of the questions' ids; (): all
    first_hops: int = 0  # the least hops of a question in the first steps: chains before the rest; 0: all questions
    first_steps: int = 0  # number of these first steps
    test: str = 'world'  # held-out questions, for evaluations
    corpus: str = 'world'  # passages of the engine 'bm25' and of the simulator 'oracle'
    unscorable: rows.Choice = 'skip'  # what to do with questions whose answers are only punctuation and articles
    too_long: rows.Choice = 'refuse'  # what to do with questions whose prompt is longer than rollout.prompt_tokens

    def __post_init__(self):
        if unknown := set(self.folds) - set(range(rows.FOLDS)):
            raise ValueError(f'folds are numbered from 0 to {rows.FOLDS - 1}, got {min(unknown)}')
        if bool(self.first_hops) != bool(self.first_steps):
            raise ValueError('first_hops is for the first_steps steps: set both, or neither')


@dataclasses.dataclass(frozen=True)
class RunConfig(TrackersConfig):
    """What a run writes, and how often, in steps."""

    checkpoint_every: int = 1  # steps between two checkpoints
    keep_every: int = 0  # checkpoints of every `keep_every`-th step are kept besides the newest two; 0: only those two
    trajectories_every: int = 1  # steps between two steps whose trajectories are written
    trajectories: int = 8  # the most trajectories of such a step that are written

    def __post_init__(self):
        settings.require_positive(self, 'checkpoint_every', 'trajectories_every')
        if self.keep_every % self.checkpoint_every:
            raise ValueError(
                f'keep_every = {self.keep_every} must be a multiple of checkpoint_every = {self.checkpoint_every}'
            )


@dataclasses.dataclass(frozen=True)
class EvaluationConfig:
    """Which held-out questions are asked, when, and with which engine."""

    questions: int = 64  # number of questions, those with the lowest hash of their id; 0: no evaluation
    before: bool = True  # also evaluate before training
    every: int = 0  # also evaluate after every `every` steps; 0: only before and after training
    documents: int = 3  # documents of a search with the real engine
    temperature: float = 0.0  # 0: greedy; the published system samples at 1 (difference D5)
    whole_batches_of: int = 1  # leave out questions beyond the last whole batch of this size (published: 64; D6)

    def __post_init__(self):
        settings.require_positive(self, 'documents', 'whole_batches_of')


@dataclasses.dataclass(frozen=True)
class Config:
    """The whole configuration, one frozen dataclass for each section."""

    seed: int
    mesh: tuple[int, int, int]
    policy: PolicyConfig
    simulator: SimulatorConfig
    endpoint: EndpointConfig
    engine: EngineConfig  # the real search engine
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
                f"config.rollout.prompt = '{self.rollout.prompt}' is for evaluations; a policy is trained on 'search'"
            )
        if self.rollout.prompt in ('search', 'budget') and not self.rollout.max_turns:
            raise ValueError(
                f"config.rollout.prompt = '{self.rollout.prompt}' asks for searches, but config.rollout.max_turns = 0; "
                "set config.rollout.prompt='reason'"
            )
        if self.rollout.temperature <= 0:
            raise ValueError('config.rollout.temperature must be positive: log-probs are those of the sampling')
        if self.rollout.group < self.rl.min_group:
            raise ValueError(
                f'config.rl.algorithm = {self.rl.algorithm!r} compares the samples of a question: '
                f'config.rollout.group must be at least {self.rl.min_group}'
            )
        if self.rollout.group < 2 and (self.rl.drop_zero_variance or self.rl.dynamic_sampling):
            raise ValueError(
                'config.rl.drop_zero_variance and config.rl.dynamic_sampling look for groups with different rewards: '
                'config.rollout.group must be at least 2'
            )
        if (self.simulator.kind == 'none') != (self.rollout.max_turns == 0):
            raise ValueError("config.simulator.kind = 'none' and config.rollout.max_turns = 0 go together: no search")
        if self.simulator.mesh and share_base(with_copy(self)):
            raise ValueError(
                'config.simulator.mesh: one engine serves policy and simulator; set config.rollout.mesh instead'
            )
        longest = self.rollout.prompt_tokens + self.rollout.response_tokens
        if longest > self.rl.row_length:
            raise ValueError(
                f'config.rl.row_length = {self.rl.row_length} is less than rollout.prompt_tokens + '
                f'rollout.response_tokens = {longest}; raise it'
            )

    @property
    def sounding(self) -> AlarmConfig:
        """The alarms of this run: where there is no search, none is missed."""
        return self.alarms if self.rollout.max_turns else dataclasses.replace(self.alarms, searches=0.0)


def with_copy(cfg: Config) -> Config:
    """`cfg` in which a frozen copy of the policy, as simulator, is the model of ours that it is."""
    policy, simulator = cfg.policy, cfg.simulator
    if simulator.kind != 'self' or simulator.live:
        return cfg
    weights = {'model': policy.model, 'adapter': policy.adapter, 'dtype': policy.dtype}
    return dataclasses.replace(cfg, simulator=dataclasses.replace(simulator, kind='model', **weights))


def share_base(cfg: Config) -> bool:
    """Whether one engine serves policy and simulator: the same weights, or adapters of one base sampled alike."""
    policy, simulator = cfg.policy, cfg.simulator
    same = simulator.model == policy.model and simulator.dtype == policy.dtype and simulator.weights == 'as_loaded'
    adapters = simulator.kind == 'model' and policy.lora_rank > 0 and same and cfg.rollout.top_p == 1
    return adapters or simulator.kind == 'self'


def check_steps(cfg: Config, workdir: pathlib.Path):
    """Checks that the completed steps of the run in `workdir` would be the same with cfg.rl.steps.

    Raises:
      ValueError: the learning rate or the curriculum of one of them depends on the number of steps.
    """
    done = max(complete_steps(workdir / 'checkpoints'), default=0)
    before = settings.read_json(workdir / 'config.json').get('rl', {}).get('steps', RLConfig.steps) if done else 0
    if not done or before == cfg.rl.steps:
        return
    rate = [state.schedule(cfg.optimizer, total)(np.arange(done)) for total in (before, cfg.rl.steps)]
    schedules = {f"config.optimizer.schedule = '{cfg.optimizer.schedule}'": np.array_equal(*rate)}
    if cfg.curriculum.kind != 'adaptive':  # which follows the rewards
        noise = [
            [noise_probability(cfg.curriculum, step, total, seed=cfg.seed) for step in range(1, done + 1)]
            for total in (before, cfg.rl.steps)
        ]
        schedules[f"config.curriculum.kind = '{cfg.curriculum.kind}'"] = noise[0] == noise[1]
    if bent := [name for name, same in schedules.items() if not same]:
        raise ValueError(
            f'{workdir}: {done} steps are done, and they would have been different with config.rl.steps = '
            f'{cfg.rl.steps} (it was {before}), because {" and ".join(bent)} stretches over all steps; keep {before}, '
            'or start another run from this one '
            f'(--config.policy.{"adapter" if cfg.policy.lora_rank else "model"}={workdir})'
        )


def parse(config) -> Config:
    """Checks a ConfigDict; raises ValueError with one line on a misspelt, missing or mistyped field."""
    if 'base' in config and 'variants' in config:
        raise ValueError('this configuration is a study: give it to launch.sweep')
    return settings.build(Config, config)
