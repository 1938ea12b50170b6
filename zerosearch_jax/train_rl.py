"""The main job: reinforcement learning of a search policy against a simulated engine.

    evaluate (real engine) -> [ rollout -> rewards -> advantages -> update -> write ] x steps -> evaluate

Everything of step k is a function of the configuration, the seed, k and the state after step k - 1, so a run that was
killed continues from its last checkpoint to the same end.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import pathlib
import time
from collections.abc import Sequence
from typing import Literal

import jax
import numpy as np

from zerosearch_jax import evaluate as ev
from zerosearch_jax import metrics, progress, report, roles, settings, sharding, state
from zerosearch_jax.checkpoint import Checkpoints
from zerosearch_jax.data import rows
from zerosearch_jax.generate.engine import Engine
from zerosearch_jax.models import attention, lora, transformer
from zerosearch_jax.rl import advantages, losses, step
from zerosearch_jax.search import prompts
from zerosearch_jax.search.curriculum import Curriculum, noise_probability
from zerosearch_jax.search.engines import BM25
from zerosearch_jax.search.oracle import Oracle
from zerosearch_jax.search.rewards import REWARDS
from zerosearch_jax.search.rollout import RolloutConfig, Trajectory, encode_prompt, rollout
from zerosearch_jax.search.simulator import SimulatorConfig, engine_search
from zerosearch_jax.search.writers import EndpointConfig
from zerosearch_jax.simulators import Simulator
from zerosearch_jax.text import stop
from zerosearch_jax.text.trajectory import Batch, flatten, pack, padding_share


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """Sources of questions and passages, see data/rows.py; 'world' is the built-in one."""

    train: str = 'world'
    test: str = 'world'
    corpus: str = 'world'


@dataclasses.dataclass(frozen=True)
class RLConfig:
    """Algorithm, loss and how the update is computed."""

    steps: int = 100
    algorithm: Literal['reinforce', 'reinforce_baseline', 'grpo'] = 'grpo'
    reward: Literal['f1', 'em', 'cover_em'] = 'f1'
    clip: float = 0.2
    kl: float = 0.001  # weight of the k3 divergence from the initial policy; 0: no reference
    entropy: float = 0.0
    row_length: int = 1024  # tokens of a packed row; at least prompt_tokens + response_tokens of config.rollout
    rows_per_micro: int = 1  # rows of a micro-batch; a multiple of data x fsdp
    remat: Literal['none', 'dots', 'full'] = 'none'
    chunk: int = 512  # tokens of a row whose logits exist at once


@dataclasses.dataclass(frozen=True)
class RunConfig:
    """What is written, and how often, in steps."""

    checkpoint_every: int = 1
    trajectories_every: int = 1
    trajectories: int = 8  # written each time
    tensorboard: bool = True


SCHEMA = {
    'seed': int,
    'mesh': tuple[int, int, int],
    'policy': roles.PolicyConfig,
    'simulator': SimulatorConfig,
    'endpoint': EndpointConfig,
    'data': DataConfig,
    'curriculum': Curriculum,
    'rollout': RolloutConfig,
    'rl': RLConfig,
    'optimizer': state.OptimizerConfig,
    'evaluation': ev.EvaluationConfig,
    'run': RunConfig,
}


@dataclasses.dataclass(frozen=True)
class Config:
    """The whole configuration, one frozen dataclass a section."""

    seed: int
    mesh: tuple[int, int, int]
    policy: roles.PolicyConfig
    simulator: SimulatorConfig
    endpoint: EndpointConfig
    data: DataConfig
    curriculum: Curriculum
    rollout: RolloutConfig
    rl: RLConfig
    optimizer: state.OptimizerConfig
    evaluation: ev.EvaluationConfig
    run: RunConfig

    def __post_init__(self):
        longest = self.rollout.prompt_tokens + self.rollout.response_tokens
        if longest > self.rl.row_length:
            raise ValueError(
                f'config.rl.row_length = {self.rl.row_length} is less than rollout.prompt_tokens + '
                f'rollout.response_tokens = {longest}; raise it'
            )
        for name in ('steps', 'row_length', 'rows_per_micro', 'chunk'):
            if getattr(self.rl, name) < (name != 'steps'):
                raise ValueError(f'config.rl.{name} must be positive, got {getattr(self.rl, name)}')


def parse(config) -> Config:
    """Checks a ConfigDict; raises ValueError with one line on a misspelt, missing or mistyped field."""
    return Config(**settings.resolve(config, SCHEMA))


class Trainer:
    """Owns the loaded models, engines and state of one run; `train` below drives it."""

    def __init__(self, cfg: Config, workdir: pathlib.Path):
        self.cfg, self.workdir = cfg, workdir
        self.rewards: list[float] = []  # the mean of every step so far; the curriculum may follow it
        self.mesh = sharding.make_mesh(cfg.mesh)
        self._load_questions()
        self._load_models()
        form = self._build_learner()
        trained = sum(x.size for x in jax.tree.leaves(self.state.params)) / 1e6
        whole = transformer.num_parameters(self.model.cfg) / 1e6
        progress.say(
            f'{cfg.policy.model} ({whole:.1f} M weights): {trained:.1f} M weights trained on '
            f'{len(self.train_questions)} questions, {len(self.test_questions)} held out; '
            f'mesh {"x".join(map(str, self.mesh.devices.shape))} of {jax.devices()[0].device_kind}; '
            f'{self.policy_engine.slots} slots of {self.policy_engine.capacity} tokens; '
            f'{form.name} attention ({form.reason})'
        )

    def _load_questions(self):
        data = self.cfg.data
        self.train_questions = rows.load_questions(data.train, 'train')
        if len(self.train_questions) < self.cfg.rollout.questions:
            raise ValueError(
                f'config.data.train has {len(self.train_questions)} questions, fewer than the '
                f'{self.cfg.rollout.questions} of one step (config.rollout.questions)'
            )
        self.test_questions = []
        if self.cfg.evaluation.questions:
            self.test_questions = rows.subset(rows.load_questions(data.test, 'test'), self.cfg.evaluation.questions)

    def _load_models(self):
        cfg, mesh = self.cfg, self.mesh
        self.model = roles.load_model(cfg.policy.model, mesh)
        for question in (*self.train_questions, *self.test_questions):
            encode_prompt(self.model.tokenizer, question, cfg.rollout)
        self.trainable = roles.trainable(self.model, cfg.policy, mesh, cfg.seed)
        self.policy_engine = Engine(
            self.model.cfg,
            mesh,
            slots=cfg.rollout.slots,
            cache_bytes=int(cfg.rollout.cache_gib * 2**30) or None,
            capacity=cfg.rollout.prompt_tokens + cfg.rollout.response_tokens,
            stop=stop.compile_table(prompts.STOP_STRINGS, self.model.token_bytes),
            eos_ids=self.model.tokenizer.eos_ids,
            steps=cfg.rollout.decode_steps,
            dtype=cfg.policy.dtype,
        )

    def load_simulator(self):
        """Opens the simulator; frozen for the whole run, so this is done once."""
        cfg = self.cfg
        self.simulator = Simulator(
            cfg.simulator,
            cfg.endpoint,
            mesh=self.mesh,
            decode_steps=cfg.rollout.decode_steps,
            oracle=lambda: Oracle(self.bm25.search, rows.load_passages(cfg.data.corpus)),
            loaded=(cfg.policy.model, self.model),
            log=self.workdir / 'calls.log' if self.workdir else None,
        )

    @functools.cached_property
    def bm25(self) -> BM25:
        return BM25(rows.load_passages(self.cfg.data.corpus))

    def _build_learner(self) -> attention.Choice:
        rl, mesh = self.cfg.rl, self.mesh
        tx = state.optimizer(self.cfg.optimizer, rl.steps)
        self.places = state.state_shardings(self.trainable.layout, tx, mesh)
        # the reference is the initial policy; a copy, because the state's buffers are donated
        initial = self.trainable.params
        self.reference = jax.tree.map(lambda x: x.copy(), initial) if rl.kl else None
        form = attention.choose(self.model.cfg, self.cfg.policy.dtype, mesh)
        self.compute = losses.Compute(self.cfg.policy.dtype, rl.remat, rl.chunk, form.name)
        self.update = step.make_update(
            self.model.cfg,
            tx,
            self.places,
            losses.LossConfig(rl.clip, rl.kl, rl.entropy),
            self.compute,
            self.cfg.rollout.temperature,
        )
        with jax.set_mesh(mesh):
            self.state = state.create(initial, tx, self.places)
        self.trainable = dataclasses.replace(self.trainable, params={})  # now owned by the state
        return form

    def policy_params(self) -> dict:
        return lora.combine(self.trainable.frozen, self.state.params)

    def questions_of(self, number: int) -> list[rows.Question]:
        """The distinct questions of a step, counted from 1: a function of (seed, step) alone."""
        size, count = self.cfg.rollout.questions, len(self.train_questions)
        epoch, batch = divmod(number - 1, count // size)
        chosen = rows.order(count, self.cfg.seed, epoch)[batch * size : (batch + 1) * size]
        return [self.train_questions[i] for i in chosen]

    def noise(self, number: int) -> float:
        """The curriculum's value at a step."""
        return noise_probability(self.cfg.curriculum, number, self.cfg.rl.steps, self.rewards)

    def collect(self, number: int) -> list[Trajectory]:
        """The step's trajectories on simulated search."""
        cfg = self.cfg
        search = self.simulator.search(seed=cfg.seed, step=number, noise=self.noise(number))
        self.policy_engine.load(self.policy_params(), temperature=cfg.rollout.temperature)
        with progress.bar(cfg.rollout.questions * cfg.rollout.group, f'step {number} rollouts', 'episode') as bar:
            return rollout(
                self.questions_of(number),
                cfg.rollout.group,
                self.policy_engine,
                search,
                self.model.tokenizer,
                cfg.rollout,
                identity=(cfg.seed, number),
                progress=bar.update,
            )

    def batch(self, trajectories: Sequence[Trajectory], per_trajectory: np.ndarray) -> Batch:
        """Packs what is trained on: every trajectory that the outside did not fail."""
        cfg = self.cfg
        kept = [i for i, t in enumerate(trajectories) if not t.failed]
        per_row = cfg.rl.row_length // (cfg.rollout.prompt_tokens + cfg.rollout.response_tokens)
        rows_needed = -(-cfg.rollout.questions * cfg.rollout.group // per_row)
        return pack(
            [flatten(trajectories[i].segments) for i in kept],
            per_trajectory[kept],
            row_length=cfg.rl.row_length,
            rows_per_micro=cfg.rl.rows_per_micro,
            micro_batches=-(-rows_needed // cfg.rl.rows_per_micro),
        )

    def learn(self, batch: Batch) -> dict[str, float]:
        """One update; returns its metrics."""
        with jax.set_mesh(self.mesh):
            if self.reference is not None:
                reference = step.score(
                    self.reference,
                    self.trainable.frozen,
                    batch,
                    self.cfg.rollout.temperature,
                    cfg=self.model.cfg,
                    compute=self.compute,
                )
                batch = batch.replace(ref_logprobs=reference)
            self.state, measured = self.update(self.state, self.trainable.frozen, batch)
            return {name: float(value) for name, value in measured.items()}

    def evaluate(self) -> list[Trajectory]:
        """Greedy episodes on the held-out questions with BM25 over the corpus."""
        self.policy_engine.load(self.policy_params(), temperature=0.0)
        search = engine_search(self.bm25.search, self.cfg.evaluation.documents)
        with progress.bar(len(self.test_questions), 'evaluation with BM25', 'question') as bar:
            return ev.evaluate(
                self.test_questions,
                self.policy_engine,
                search,
                self.model.tokenizer,
                self.cfg.rollout,
                progress=bar.update,
            )


def train(cfg: Config, workdir: pathlib.Path, resolved: str) -> dict:
    """Runs, or resumes, the whole job in `workdir`; returns the summary that it also writes there.

    Args:
      cfg: checked configuration.
      workdir: receives config.json, checkpoints/, metrics.jsonl, trajectories.jsonl, evaluation/, curves.png and
        summary.json.
      resolved: the configuration as JSON text.

    Raises:
      ValueError: `workdir` holds a run with another configuration.
    """
    metrics.claim(workdir, resolved)
    trainer = Trainer(cfg, workdir)
    main = jax.process_index() == 0
    with contextlib.closing(Checkpoints(workdir / 'checkpoints')) as checkpoints:
        start = checkpoints.latest() or 0
        if start:
            trainer.state, host = checkpoints.restore(start, jax.eval_shape(lambda: trainer.state), trainer.places)
            trainer.rewards = host['rewards']
            progress.say(f'resuming after step {host["step"]}')
        writer = metrics.MetricWriter(workdir, resume_step=start, tensorboard=cfg.run.tensorboard) if main else None
        try:
            if not start:
                _evaluate_at(trainer, writer, 0)
            _loop(trainer, writer, checkpoints, start)
            if cfg.rl.steps:
                _evaluate_at(trainer, writer, cfg.rl.steps)
        except KeyboardInterrupt:
            progress.say('interrupted; run the same command again to continue from the last checkpoint')
            raise
        finally:
            if writer is not None:
                writer.close()
                summary = report.summarize(workdir)
                progress.say(report.text(summary, workdir))
    return summary if main else {}


def _loop(trainer: Trainer, writer, checkpoints: Checkpoints, start: int):
    cfg = trainer.cfg
    if start < cfg.rl.steps:
        trainer.load_simulator()
    with progress.bar(cfg.rl.steps, 'training', 'step', leave=True, initial=start) as bar:
        for number in range(start + 1, cfg.rl.steps + 1):
            measured, trajectories = train_step(trainer, number)
            trainer.rewards.append(measured['reward/mean'])
            if writer is not None:
                writer.write(number, measured)
                if number % cfg.run.trajectories_every == 0:
                    writer.append('trajectories', trajectories[: cfg.run.trajectories])
            every = cfg.evaluation.every
            if every and number % every == 0 and number < cfg.rl.steps:  # before the save, or a resume skips it
                _evaluate_at(trainer, writer, number)
            if number % cfg.run.checkpoint_every == 0 or number == cfg.rl.steps:
                checkpoints.save(number, trainer.state, {'step': number, 'seed': cfg.seed, 'rewards': trainer.rewards})
            bar.set_postfix_str(report.headline(measured))
            bar.update()
            if bar.disable:
                progress.say(f'step {number}/{cfg.rl.steps}  {report.headline(measured)}')


def train_step(trainer: Trainer, number: int) -> tuple[dict[str, float], list[dict]]:
    """One step: rollouts, rewards, advantages, update. Returns its metrics and its trajectories as JSON rows."""
    cfg, began = trainer.cfg, time.perf_counter()
    trajectories = trainer.collect(number)
    collected = time.perf_counter()
    reward = np.array([REWARDS[cfg.rl.reward](t.answer, t.question.golden_answers) for t in trajectories])
    groups = np.repeat(np.arange(cfg.rollout.questions), cfg.rollout.group)
    valid = np.array([not t.failed for t in trajectories])
    per_trajectory = advantages.ADVANTAGES[cfg.rl.algorithm](reward, groups, valid)
    batch = trainer.batch(trajectories, per_trajectory)
    learned = trainer.learn(batch)
    ended = time.perf_counter()
    summary = ev.summarize(trajectories)
    noisy = [label for t in trajectories for s in t.searches for label in s.labels]
    tokens = sum(t.response_tokens for t in trajectories)
    measured = {
        'reward/mean': float(reward.mean()),
        'reward/std': float(reward.std()),
        **{f'reward/{name}': summary.pop(name) for name in ev.METRICS},
        **{f'rollout/{name}': value for name, value in summary.items()},
        'rollout/noise': trainer.noise(number),
        'rollout/noisy_share': float(np.mean(noisy)) if noisy else 0.0,
        'rollout/zero_variance_groups': advantages.zero_variance_share(reward, groups, valid),
        'rollout/failed': float(1 - valid.mean()),
        **{f'loss/{name}': value for name, value in learned.items()},
        'loss/padding': padding_share(batch),
        'speed/tokens_per_second': tokens / (ended - began),
        'speed/rollout_seconds': collected - began,
        'speed/update_seconds': ended - collected,
    }
    written = [
        ev.row(t, trainer.model.tokenizer, number, reward=float(r), advantage=float(a))
        for t, r, a in zip(trajectories, reward, per_trajectory, strict=True)
    ]
    return measured, written


def _evaluate_at(trainer: Trainer, writer, number: int):
    """Evaluates after step `number`; a result that is already on disk is not made again."""
    if not trainer.test_questions:
        return
    path = report.evaluation_file(trainer.workdir, number)
    if not sharding.agree(path.exists()):
        trajectories = trainer.evaluate()
        if writer is not None:
            metrics.write_jsonl(path, [ev.row(t, trainer.model.tokenizer, number) for t in trajectories])
    if writer is None:
        return
    found = metrics.read_jsonl(path)
    means = {f'eval/{name}': float(np.mean([row[name] for row in found])) for name in ev.METRICS}
    means['eval/searches'] = float(np.mean([len(row['searches']) for row in found]))
    if not report.has_evaluation(trainer.workdir, number):
        writer.write(number, means)
    progress.say(
        f'evaluation after step {number}: EM {means["eval/em"]:.3f}  F1 {means["eval/f1"]:.3f}  '
        f'searches {means["eval/searches"]:.2f}  ({len(found)} questions, BM25)'
    )
