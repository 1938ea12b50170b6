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

import jax
import numpy as np

from zerosearch_jax import alarms, metrics, progress, report, roles, settings, sharding, state
from zerosearch_jax import evaluate as ev
from zerosearch_jax.alarms import AlarmConfig
from zerosearch_jax.checkpoint import Checkpoints
from zerosearch_jax.data import rows
from zerosearch_jax.learner import CriticConfig, Learner, RLConfig
from zerosearch_jax.models import transformer
from zerosearch_jax.rl import advantages
from zerosearch_jax.search.curriculum import Curriculum, noise_probability
from zerosearch_jax.search.engines import BM25
from zerosearch_jax.search.rollout import RolloutConfig, Trajectory, encode_prompt, rollout
from zerosearch_jax.search.scoring import RewardConfig, Scorer
from zerosearch_jax.search.simulator import CompactedQuestions, SimulatorConfig, engine_search
from zerosearch_jax.search.writers import EndpointConfig
from zerosearch_jax.simulators import Simulator


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """Sources of questions and passages, see data/rows.py; 'world' is the built-in one."""

    train: str = 'world'
    test: str = 'world'
    corpus: str = 'world'


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
    'reward': RewardConfig,
    'rl': RLConfig,
    'critic': CriticConfig,
    'optimizer': state.OptimizerConfig,
    'evaluation': ev.EvaluationConfig,
    'alarms': AlarmConfig,
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
    reward: RewardConfig
    rl: RLConfig
    critic: CriticConfig
    optimizer: state.OptimizerConfig
    evaluation: ev.EvaluationConfig
    alarms: AlarmConfig
    run: RunConfig

    def __post_init__(self):
        longest = self.rollout.prompt_tokens + self.rollout.response_tokens
        if longest > self.rl.row_length:
            raise ValueError(
                f'config.rl.row_length = {self.rl.row_length} is less than rollout.prompt_tokens + '
                f'rollout.response_tokens = {longest}; raise it'
            )


def parse(config) -> Config:
    """Checks a ConfigDict; raises ValueError with one line on a misspelt, missing or mistyped field."""
    return Config(**settings.resolve(config, SCHEMA))


class Trainer:
    """Owns the loaded models, engines and state of one run; `train` below drives it."""

    def __init__(self, cfg: Config, workdir: pathlib.Path):
        self.cfg, self.workdir = cfg, workdir
        self.rung: list[str] = []  # alarms that were told
        self.history: list[dict[str, float]] = []  # of every step so far, what curriculum and alarms look at
        self.mesh = sharding.make_mesh(cfg.mesh)
        self._load_questions()
        self._load_models()
        self._build_learner()
        trained = sum(x.size for x in jax.tree.leaves(self.learner.state['policy'].params)) / 1e6
        whole = transformer.num_parameters(self.model.cfg) / 1e6
        progress.say(
            f'{cfg.policy.model} ({whole:.1f} M weights): {trained:.1f} M weights trained on '
            f'{len(self.train_questions)} questions, {len(self.test_questions)} held out; '
            f'mesh {"x".join(map(str, self.mesh.devices.shape))} of {jax.devices()[0].device_kind}; '
            f'{self.policy_engine.slots} slots of {self.policy_engine.capacity} tokens; '
            f'{self.learner.form.name} attention ({self.learner.form.reason})'
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
            found = rows.subset(rows.load_questions(data.test, 'test'), self.cfg.evaluation.questions)
            self.test_questions = found[
                : len(found) // self.cfg.evaluation.whole_batches_of * self.cfg.evaluation.whole_batches_of
            ]

    def _load_models(self):
        cfg, mesh = self.cfg, self.mesh
        self.model = roles.load_model(cfg.policy.model, mesh)
        for question in (*self.train_questions, *self.test_questions):
            encode_prompt(self.model.tokenizer, question, cfg.rollout)
        self.policy_engine = roles.open_policy(self.model, cfg.rollout, mesh, dtype=cfg.policy.dtype)

    def load_simulator(self):
        """Opens the simulator; frozen for the whole run, so this is done once."""
        cfg = self.cfg
        self.simulator = Simulator(
            cfg.simulator,
            cfg.endpoint,
            mesh=self.mesh,
            decode_steps=cfg.rollout.decode_steps,
            corpus=lambda: (self.bm25.search, rows.load_passages(cfg.data.corpus)),
            loaded=(cfg.policy.model, self.model),
            log=self.workdir / 'calls.log' if self.workdir else None,
        )

    @functools.cached_property
    def bm25(self) -> BM25:
        return BM25(rows.load_passages(self.cfg.data.corpus))

    def _build_learner(self):
        cfg = self.cfg
        trainable = roles.trainable(self.model, cfg.policy, self.mesh, cfg.seed)
        if not trainable.frozen:  # the learner donates them, and simulator and critic may start from the same weights
            trainable = dataclasses.replace(trainable, params=jax.tree.map(lambda x: x.copy(), trainable.params))
        self.learner = Learner(
            cfg.rl,
            cfg.critic,
            cfg.optimizer,
            self.model,
            trainable,
            self.mesh,
            dtype=cfg.policy.dtype,
            temperature=cfg.rollout.temperature,
            trajectories=cfg.rollout.questions * cfg.rollout.group,
            longest=cfg.rollout.prompt_tokens + cfg.rollout.response_tokens,
            response_tokens=cfg.rollout.response_tokens,
            seed=cfg.seed,
        )
        self.score = Scorer(cfg.reward, self.model.tokenizer, cfg.rollout.response_tokens)

    def questions_of(self, number: int) -> list[rows.Question]:
        """The distinct questions of a step, counted from 1: a function of (seed, step) alone."""
        size, count = self.cfg.rollout.questions, len(self.train_questions)
        epoch, batch = divmod(number - 1, count // size)
        chosen = rows.order(count, self.cfg.seed, epoch)[batch * size : (batch + 1) * size]
        return [self.train_questions[i] for i in chosen]

    def noise(self, number: int) -> float:
        """The curriculum's value at a step."""
        rewards = [row['reward/mean'] for row in self.history]
        return noise_probability(self.cfg.curriculum, number, self.cfg.rl.steps, rewards)

    def collect(self, number: int, questions: Sequence[rows.Question] = ()) -> list[Trajectory]:
        """The step's trajectories on simulated search, of its own questions or of others."""
        cfg = self.cfg
        questions = questions or self.questions_of(number)
        search = self.simulator.search(seed=cfg.seed, step=number, noise=self.noise(number))
        if cfg.simulator.questions == 'compacted':
            search = CompactedQuestions(search, self.policy_engine, questions, cfg.rollout.group)
        self.policy_engine.load(self.learner.policy_params, temperature=cfg.rollout.temperature)
        with progress.bar(len(questions) * cfg.rollout.group, f'step {number} rollouts', 'episode') as bar:
            return rollout(
                questions,
                cfg.rollout.group,
                self.policy_engine,
                search,
                self.model.tokenizer,
                cfg.rollout,
                identity=(cfg.seed, number),
                progress=bar.update,
            )

    def collect_varied(self, number: int) -> tuple[list[Trajectory], int]:
        """The step's trajectories, groups of equal rewards replaced by new questions for some rounds; and their number.

        Dynamic sampling: Yu et al., arXiv 2503.14476, §3.2.
        """
        cfg = self.cfg
        groups, seen = self._groups(self.collect(number)), set()
        for done in range(cfg.rl.dynamic_sampling):
            dull = [i for i, group in enumerate(groups) if self._is_dull(group)]
            seen |= {group[0].question.id for group in groups}
            fresh = [q for q in self._spare_questions(number, done) if q.id not in seen][: len(dull)]
            if not fresh:
                return [t for group in groups for t in group], done
            found = self._groups(self.collect(number, fresh))
            for i, group in zip(dull, found, strict=False):
                groups[i] = group
        return [t for group in groups for t in group], cfg.rl.dynamic_sampling

    def _groups(self, trajectories: Sequence[Trajectory]) -> list[Sequence[Trajectory]]:
        size = self.cfg.rollout.group
        return [trajectories[i : i + size] for i in range(0, len(trajectories), size)]

    def _is_dull(self, group: Sequence[Trajectory]) -> bool:
        reward = np.array([self.score(t) for t in group])
        valid = np.array([not t.failed for t in group])
        return bool(advantages.zero_variance(reward, np.zeros(len(group), int), valid).all())

    def _spare_questions(self, number: int, round_: int) -> list[rows.Question]:
        """More questions of a step: a function of (seed, step, round) alone."""
        epoch = 10**6 + number * self.cfg.rl.dynamic_sampling + round_
        chosen = rows.order(len(self.train_questions), self.cfg.seed, epoch)
        return [self.train_questions[i] for i in chosen[: 2 * self.cfg.rollout.questions]]

    def evaluate(self) -> list[Trajectory]:
        """Greedy episodes on the held-out questions with BM25 over the corpus."""
        self.policy_engine.load(self.learner.policy_params, temperature=self.cfg.evaluation.temperature)
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
            abstract = jax.eval_shape(lambda: trainer.learner.state)
            trainer.learner.state, host = checkpoints.restore(start, abstract, trainer.learner.places)
            trainer.history, trainer.rung = host['history'], host['rung']
            progress.say(f'resuming after step {host["step"]}')
        writer = metrics.MetricWriter(workdir, resume_step=start, tensorboard=cfg.run.tensorboard) if main else None
        try:
            if not start:
                _evaluate_at(trainer, writer, 0)
            last = _loop(trainer, writer, checkpoints, start)
            if last:
                _evaluate_at(trainer, writer, last)
        except KeyboardInterrupt:
            progress.say('interrupted; run the same command again to continue from the last checkpoint')
            raise
        finally:
            if writer is not None:
                writer.close()
                summary = report.summarize(workdir)
                progress.say(report.text(summary, workdir))
    return summary if main else {}


def _loop(trainer: Trainer, writer, checkpoints: Checkpoints, start: int) -> int:
    """Trains to the last step, or to the alarm that stops the run; returns the number of the last step done."""
    cfg, number = trainer.cfg, start
    if start < cfg.rl.steps:
        trainer.load_simulator()
    with progress.bar(cfg.rl.steps, 'training', 'step', leave=True, initial=start) as bar:
        while number < cfg.rl.steps and not (cfg.alarms.stop and trainer.rung):
            number += 1
            measured, trajectories = train_step(trainer, number)
            if writer is not None:
                writer.write(number, measured)
                if number % cfg.run.trajectories_every == 0:
                    writer.append('trajectories', trajectories[: cfg.run.trajectories])
            _sound_alarms(trainer, checkpoints, number, measured)
            last = number == cfg.rl.steps or (cfg.alarms.stop and bool(trainer.rung))
            if cfg.evaluation.every and number % cfg.evaluation.every == 0 and not last:
                _evaluate_at(trainer, writer, number)  # before the save, or a resume skips it
            if number % cfg.run.checkpoint_every == 0 or last:
                host = {'step': number, 'seed': cfg.seed, 'history': [*trainer.history], 'rung': [*trainer.rung]}
                checkpoints.save(number, trainer.learner.state, host)
            bar.set_postfix_str(report.headline(measured))
            bar.update()
            if bar.disable:
                progress.say(f'step {number}/{cfg.rl.steps}  {report.headline(measured)}')
    return number


def _sound_alarms(trainer: Trainer, checkpoints: Checkpoints, number: int, measured: dict[str, float]):
    """Tells every alarm once; before the first one, the newest checkpoint is put aside."""
    trainer.history.append({name: value for name, value in measured.items() if name in alarms.WATCHED})
    fresh = [name for name in alarms.ringing(trainer.history, trainer.cfg.alarms) if name not in trainer.rung]
    if fresh and not trainer.rung and jax.process_index() == 0:
        checkpoints.put_aside(trainer.workdir / 'last_good')
    for name in fresh:
        progress.say(f'alarm after step {number}: {name}; {alarms.ADVICE[name]}')
    trainer.rung += fresh


def train_step(trainer: Trainer, number: int) -> tuple[dict[str, float], list[dict]]:
    """One step: rollouts, rewards, advantages, update. Returns its metrics and its trajectories as JSON rows."""
    cfg, began = trainer.cfg, time.perf_counter()
    trajectories, rounds = trainer.collect_varied(number)
    collected = time.perf_counter()
    reward = np.array([trainer.score(t) for t in trajectories])
    groups = np.repeat(np.arange(cfg.rollout.questions), cfg.rollout.group)
    valid = np.array([not t.failed for t in trajectories])
    learned, per_trajectory = trainer.learner.learn([t.segments for t in trajectories], reward, groups, valid)
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
        'rollout/extra_rounds': rounds,
        **{f'loss/{name}': value for name, value in learned.items()},
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
