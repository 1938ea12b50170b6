"""Everything that one run of reinforcement learning holds: questions, models, engines, learner; and its rollouts."""

from __future__ import annotations

import dataclasses
import functools
import pathlib
from collections.abc import Sequence

import jax
import numpy as np

from zerosearch_jax import pretrained, progress, sharding
from zerosearch_jax.data import rows, sources
from zerosearch_jax.models import transformer
from zerosearch_jax.policy import make_trainable, open_policy
from zerosearch_jax.rl import advantages
from zerosearch_jax.rollout.prompts import encode_prompt
from zerosearch_jax.rollout.rewards import Scorer
from zerosearch_jax.rollout.rollout import Trajectory, rollout
from zerosearch_jax.search.bm25 import BM25
from zerosearch_jax.search.journal import Log
from zerosearch_jax.search.remote import RemoteSearch, open_engine
from zerosearch_jax.search.search import engine_search
from zerosearch_jax.simulator.curriculum import noise_probability
from zerosearch_jax.simulator.load import Simulator
from zerosearch_jax.simulator.simulator import CompactedQuestions
from zerosearch_jax.train.config import Config
from zerosearch_jax.train.learner import Learner


def load_questions(cfg: Config) -> tuple[list[rows.Question], list[rows.Question]]:
    """The questions of training, and those of evaluations."""
    data, asked = cfg.data, cfg.evaluation
    train = rows.in_folds(sources.load_questions(data.train, 'train'), data.folds)
    if len(train) < cfg.rollout.questions:
        raise ValueError(
            f'config.data.train has {len(train)} questions, fewer than the '
            f'{cfg.rollout.questions} of one step (config.rollout.questions)'
        )
    if not asked.questions:
        return train, []
    test = rows.subset(sources.load_questions(data.test, 'test'), asked.questions)
    return train, test[: len(test) // asked.whole_batches_of * asked.whole_batches_of]


class Trainer:
    """Owns the loaded models, engines and state of one run; train/rl.py drives it."""

    def __init__(self, cfg: Config, workdir: pathlib.Path):
        self.cfg, self.workdir = cfg, workdir
        self.rung: list[str] = []  # alarms that were told
        self.queries = 0  # searches of training, since it was started or resumed
        self.history: list[dict[str, float]] = []  # of every step so far, what curriculum and alarms look at
        self.mesh = sharding.make_mesh(cfg.mesh)
        self.train_questions, self.test_questions = load_questions(cfg)
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

    def _load_models(self):
        cfg, mesh = self.cfg, self.mesh
        self.model = pretrained.load_model(cfg.policy.model, mesh)
        for question in progress.over((*self.train_questions, *self.test_questions), 'checking prompts', 'question'):
            encode_prompt(self.model.tokenizer, question, cfg.rollout)
        self.policy_engine = open_policy(self.model, cfg.rollout, mesh, dtype=cfg.policy.dtype)

    def load_simulator(self):
        """Opens the simulator; frozen for the whole run, so this is done once."""
        cfg = self.cfg
        self.simulator = Simulator(
            cfg.simulator,
            cfg.endpoint,
            mesh=self.mesh,
            decode_steps=cfg.rollout.decode_steps,
            corpus=self._corpus,
            engine=lambda: self.engine,
            loaded=(cfg.policy.model, self.model),
            log=self.workdir / 'calls.log' if self.workdir else None,
        )
        if not self.learner.frozen:
            self.model = dataclasses.replace(self.model, params={})  # the simulator has a copy, the learner its own

    @functools.cached_property
    def engine(self) -> BM25 | RemoteSearch:
        """The real search engine, of evaluations and of training where that is not simulated."""
        log = Log(self.workdir / 'searches.log' if self.workdir else None)
        return open_engine(self.cfg.engine, lambda: sources.load_passages(self.cfg.data.corpus), log)

    @property
    def generated_tokens(self) -> int:
        """By policy and simulator of ours, since they were loaded."""
        engines = self.policy_engine, self.simulator.engine
        return sum(engine.decoded_tokens for engine in engines if engine)

    def _corpus(self):
        passages = sources.load_passages(self.cfg.data.corpus)
        local = self.engine if isinstance(self.engine, BM25) else BM25(passages)
        return local.search, passages

    def _build_learner(self):
        cfg = self.cfg
        trainable = make_trainable(self.model, cfg.policy, self.mesh, cfg.seed)
        if not trainable.frozen:  # all weights are trained: the learner takes them over
            if cfg.simulator.kind == 'model' and cfg.simulator.model == cfg.policy.model:
                trainable = dataclasses.replace(trainable, params=jax.tree.map(lambda x: x.copy(), trainable.params))
            else:
                self.model = dataclasses.replace(self.model, params={})  # nobody else needs those that were loaded
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
        return noise_probability(self.cfg.curriculum, number, self.cfg.rl.steps, rewards, self.cfg.seed)

    def collect(self, number: int, questions: Sequence[rows.Question] = ()) -> list[Trajectory]:
        """The step's trajectories on simulated search, of its own questions or of others."""
        cfg = self.cfg
        questions = questions or self.questions_of(number)
        search = self.simulator.search(seed=cfg.seed, step=number, noise=self.noise(number))
        if cfg.simulator.questions == 'compacted':
            search = CompactedQuestions(search, self.policy_engine, questions, cfg.rollout.group)
        self.policy_engine.load(self.learner.policy_params, temperature=cfg.rollout.temperature)
        with progress.bar(len(questions) * cfg.rollout.group, f'step {number} rollouts', 'episode') as bar:
            found = rollout(
                questions,
                cfg.rollout.group,
                self.policy_engine,
                search,
                self.model.tokenizer,
                cfg.rollout,
                identity=(cfg.seed, number),
                finished=lambda _: bar.update(),
            )
        self.policy_engine.unload()  # the plan counts on it
        self.queries += sum(len(t.searches) for t in found)
        return found

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
        """Greedy episodes on the held-out questions with the real engine."""
        self.policy_engine.load(self.learner.policy_params, temperature=self.cfg.evaluation.temperature)
        search = engine_search(self.engine.search, self.cfg.evaluation.documents)
        with progress.bar(len(self.test_questions), 'evaluation', 'question') as bar:
            found = rollout(
                self.test_questions,
                1,
                self.policy_engine,
                search,
                self.model.tokenizer,
                self.cfg.rollout,
                identity=(self.cfg.seed, 0),
                stream='evaluation',
                finished=lambda _: bar.update(),
            )
        self.policy_engine.unload()
        return found
