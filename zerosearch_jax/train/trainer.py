"""The parts of a run of reinforcement learning: questions, the policy, the source of search results, rewards."""

import dataclasses
import functools
import pathlib
from collections.abc import Sequence

import jax
import numpy as np

from zerosearch_jax import pretrained, progress, sharding
from zerosearch_jax.data import rows, sources
from zerosearch_jax.data.rows import Question
from zerosearch_jax.generate.engine import Engine
from zerosearch_jax.generate.requests import Role
from zerosearch_jax.models import lora, transformer
from zerosearch_jax.policy import make_trainable, open_beside_policy
from zerosearch_jax.rl import advantages
from zerosearch_jax.rollout.prompts import fitting
from zerosearch_jax.rollout.rewards import Scorer, hop_answers
from zerosearch_jax.rollout.rollout import Trajectory, check_searches, rollout
from zerosearch_jax.run import memory, trained
from zerosearch_jax.search.bm25 import BM25
from zerosearch_jax.search.journal import Journal
from zerosearch_jax.search.remote import RemoteSearch, open_search_engine
from zerosearch_jax.search.search import Result, engine_search, refuse_outage
from zerosearch_jax.simulator.load import open_simulator
from zerosearch_jax.simulator.simulator import CompactedQuestions
from zerosearch_jax.simulator.verify import hops_of
from zerosearch_jax.text import protocol
from zerosearch_jax.train.config import Config, DataConfig, share_base, with_copy
from zerosearch_jax.train.information import add_gains
from zerosearch_jax.train.learner import Learner


def load_questions(cfg: Config) -> tuple[list[Question], list[Question]]:
    """The questions of training and of evaluations; ValueError if they are too few or not those of the corpus."""
    data, evaluation, local = cfg.data, cfg.evaluation, cfg.engine.kind == 'bm25'
    if cfg.simulator.kind == 'oracle' or (cfg.simulator.kind == 'engine' and local):
        sources.check_corpus(data.train, data.corpus)
    if evaluation.questions and cfg.rollout.max_turns and local:
        sources.check_corpus(data.test, data.corpus)
    train = rows.in_folds(sources.load_questions(data.train, 'train', data.unscorable), data.folds)
    if cfg.reward.hop and not any(map(hop_answers, train)):
        raise ValueError(
            f'config.reward.hop: no question of {data.train!r} lists its hops (a list "decomposition" with a "query" '
            'and an "answer" each); set it to 0, or use questions that do'
        )
    test = sources.load_questions(data.test, 'test', data.unscorable) if evaluation.questions else []
    few = evaluation.questions < len(test)  # else all stay in order for `whole_batches_of`
    return _sized(cfg, train, rows.subset(test, evaluation.questions) if few else test)


def long_enough(questions: Sequence[Question], data: DataConfig) -> list[Question]:
    """The questions of the first steps."""
    return [question for question in questions if len(hops_of(question)) >= data.first_hops]


def _sized(cfg: Config, train: list[Question], test: list[Question]) -> tuple[list[Question], list[Question]]:
    """Checks that `train` is enough for a step; returns it with the whole batches of `test`."""
    if len(train) < cfg.rollout.questions:
        raise ValueError(
            f'config.data.train has {len(train)} questions, fewer than the '
            f'{cfg.rollout.questions} of one step (config.rollout.questions)'
        )
    if cfg.data.first_steps and (count := len(long_enough(train, cfg.data))) < cfg.rollout.questions:
        raise ValueError(
            f'config.data.first_hops = {cfg.data.first_hops} leaves {count} questions for the first steps, fewer than '
            f'the {cfg.rollout.questions} of one step (config.rollout.questions); lower it'
        )
    asked, size = cfg.evaluation.questions, cfg.evaluation.whole_batches_of
    if asked and len(test) < size:
        raise ValueError(
            f'{len(test)} questions are left for an evaluation (config.evaluation.questions = {asked}), fewer than '
            f'config.evaluation.whole_batches_of = {size}; ask more, or lower it; questions = 0: no evaluation'
        )
    return train, test[: len(test) // size * size]


class Trainer:
    """Owns the questions, the policy with its engine and learner, the source of search results, and the rewards.

    train/rl.py drives it.

    Args:
      cfg: of the run.
      workdir: directory of the logs of remote calls; None: no logs.
    """

    def __init__(self, cfg: Config, workdir: pathlib.Path | None):
        cfg = with_copy(cfg)
        self.cfg, self._workdir = cfg, workdir
        self._searches = Journal(workdir / 'searches.log' if workdir else None)
        self._unanswered: list[Result] = []
        self.mesh = sharding.make_mesh(cfg.mesh)
        progress.phase(f'opening {cfg.policy.model}')
        questions, self.model = load_questions(cfg), pretrained.open_model(cfg.policy.model)
        fit = (fitting(part, self.model.tokenizer, cfg.rollout, cfg.data.too_long) for part in questions)
        self.train_questions, self.test_questions = _sized(cfg, *fit)
        self.policy_engine, *shared = self._open_engines()  # they compile while weights are loaded
        self._simulator_engine: Engine | None = next(iter(shared), None)
        progress.phase(f'loading {cfg.policy.model}')
        self.model = pretrained.load_model(cfg.policy.model, self.mesh)
        self.learner = self._open_learner()
        grammar = protocol.GRAMMARS[cfg.rollout.grammar]
        self.score = Scorer(cfg.reward, self.model.tokenizer, cfg.rollout.response_tokens, grammar)
        progress.log(self._description())

    def _open_engines(self) -> tuple[Engine, ...]:
        """The policy's engine, and the simulator's if both are adapters of one base, which is then in memory once."""
        cfg, simulator, sizes = self.cfg, self.cfg.simulator, self.model.cfg
        shared, capacity = share_base(cfg), cfg.rollout.prompt_tokens + cfg.rollout.response_tokens
        others, adapters = [], []
        if cfg.policy.lora_rank:
            adapters = [sharding.abstract(lora.layout(sizes, cfg.policy.lora_rank), self.mesh)['layers']]
        if shared:
            alike, slots = simulator.kind == 'self', simulator.slots or cfg.rollout.slots or cfg.rollout.episodes
            others = [Role(slots, stops=False, like=0 if alike else None)]
            capacity = max(capacity, simulator.prompt_tokens + simulator.max_tokens)
            given = simulator.adapter and pretrained.load_adapter(simulator.adapter, sizes, self.mesh)
            adapters += [] if alike else [given['layers'] if given else {}]
        engines = open_beside_policy(
            others, self.model, cfg.rollout, self.mesh, dtype=cfg.policy.dtype, capacity=capacity
        )
        engines[0].compile_ahead(sharding.abstract(transformer.layout(sizes), self.mesh), adapters or [{}])
        return engines

    def _open_learner(self) -> Learner:
        cfg = self.cfg
        trainable = make_trainable(self.model, cfg.policy, self.mesh, cfg.seed)
        if not trainable.frozen:  # all weights are trained: the learner owns them
            if cfg.simulator.kind == 'model' and cfg.simulator.model == cfg.policy.model:
                trainable = dataclasses.replace(trainable, params=jax.tree.map(lambda x: x.copy(), trainable.params))
            else:
                self.model = dataclasses.replace(self.model, params={})  # the loaded weights are not needed any more
        return Learner(cfg, self.model, trainable, self.mesh)

    def _description(self) -> str:
        trained = sum(x.size for x in jax.tree.leaves(self.learner.state['policy'].params)) / 1e6
        shared = self._simulator_engine
        beside = f', and {shared.slots} for the simulator on the same base' if shared else ''
        part = ' (adapters of attention alone)' if self.cfg.policy.lora_rank and self.model.cfg.num_experts else ''
        return (
            f'{self.cfg.policy.model} ({transformer.num_parameters(self.model.cfg) / 1e6:.1f} M weights): '
            f'{trained:.1f} M weights trained{part} on '
            f'{len(self.train_questions)} questions, {len(self.test_questions)} held out; '
            f'mesh {"x".join(map(str, self.mesh.devices.shape))} of {jax.devices()[0].device_kind}; '
            f'{self.policy_engine.slots} slots of {self.policy_engine.capacity} tokens{beside}; '
            f'{self.learner.attention.name} attention ({self.learner.attention.reason})'
        )

    def load_simulator(self):
        """Opens the simulator, once, since it is frozen for the whole run."""
        cfg = self.cfg
        progress.phase(f'opening the simulator ({cfg.simulator.kind})')
        self.simulator = open_simulator(
            cfg.simulator,
            cfg.endpoint,
            mesh=self.mesh,
            decode_steps=cfg.rollout.decode_steps,
            slots=cfg.rollout.slots or cfg.rollout.episodes,
            corpus=self._corpus,
            search_engine=lambda: self.search_engine,
            loaded=(cfg.policy.model, self.model),
            engine=self._simulator_engine,
            log=self._workdir / 'calls.log' if self._workdir else None,
        )
        self.policy_engine.unload()  # and the shared cache, until the first rollout
        if not self.learner.frozen:
            self.model = dataclasses.replace(self.model, params={})  # the simulator has a copy, the learner its own

    def commit_failures(self):
        """Writes the failures of a step that is done, so that a resumed run sees them again."""
        for journal in (*self.simulator.journals, self._searches):
            journal.commit()

    @functools.cached_property
    def weights(self) -> list[str]:
        """Those with which the run begins, and files of wordings, marked by their content."""
        cfg = self.cfg
        sections = [cfg.policy, cfg.simulator] if cfg.simulator.kind == 'model' else [cfg.policy]
        return [*trained.marks(*sections), *trained.wordings(cfg.rollout.prompt, cfg.simulator.template)]

    @functools.cached_property
    def search_engine(self) -> BM25 | RemoteSearch:
        """The real search engine, for evaluations, and for training if that is not simulated."""
        return open_search_engine(self.cfg.engine, lambda: sources.load_passages(self.cfg.data.corpus), self._searches)

    def _corpus(self):
        passages = sources.load_passages(self.cfg.data.corpus)
        local = self.search_engine if isinstance(self.search_engine, BM25) else BM25(passages)
        return local.search, passages

    @property
    def generated_tokens(self) -> int:
        """Tokens that our policy and simulator generated since they were loaded."""
        engines = self.policy_engine, self.simulator.engine
        return sum(engine.decoded_tokens for engine in engines if engine)

    # ---------------------------------------------------------------- questions of a step

    def questions_of(self, step: int) -> list[Question]:
        """The distinct questions of a step, counted from 1: a function of (seed, step) alone."""
        pool, size = self._pool(step), self.cfg.rollout.questions
        epoch, batch = divmod(step - 1, len(pool) // size)
        chosen = rows.permutation(len(pool), self.cfg.seed, epoch)[batch * size : (batch + 1) * size]
        return [pool[i] for i in chosen]

    def _pool(self, step: int) -> list[Question]:
        """The questions that a step may ask."""
        if step <= self.cfg.data.first_steps:
            return long_enough(self.train_questions, self.cfg.data)
        return self.train_questions

    def _spare_questions(self, step: int, round_: int) -> list[Question]:
        """The questions of a step in another order: a function of (seed, step, round) alone."""
        pool, epoch = self._pool(step), 10**6 + step * self.cfg.rl.dynamic_sampling + round_
        chosen = rows.permutation(len(pool), self.cfg.seed, epoch)
        return [pool[i] for i in chosen]

    # ---------------------------------------------------------------- episodes

    def collect(self, step: int, noise: float, questions: Sequence[Question] = ()) -> list[Trajectory]:
        """The step's trajectories.

        Args:
          step: from 1.
          noise: the curriculum's value.
          questions: to ask instead of the step's own.
        """
        cfg = self.cfg
        questions = questions or self.questions_of(step)
        search = self.simulator.source(seed=cfg.seed, step=step, noise=noise)
        if cfg.simulator.questions == 'compacted':
            search = CompactedQuestions(search, self.policy_engine, questions, cfg.rollout.group)
        title, temperature = f'step {step} rollouts', cfg.rollout.temperature
        found = self._rollout(
            questions, cfg.rollout.group, search, title, temperature=temperature, identity=(cfg.seed, step)
        )
        if cfg.reward.information:
            longest = cfg.rollout.prompt_tokens + cfg.rollout.response_tokens
            add_gains(found, self.model.tokenizer, longest, self.learner.logprobs)
        return found

    def _check(self, trajectories: Sequence[Trajectory], step: int):
        """Raises OutsideFailed if nearly all episodes that search failed or, in steps with few, all for some steps."""
        check_searches(trajectories, f'step {step} rollouts')
        searched = [t.searches[-1] for t in trajectories if t.searches]
        self._unanswered = [*self._unanswered, *searched] if all(s.failure for s in searched) else []
        refuse_outage('searches since the last one that was answered', self._unanswered, len(self._unanswered))

    def collect_dynamic(self, step: int, noise: float) -> tuple[list[Trajectory], list[Trajectory], int]:
        """The step's trajectories, with groups of equal rewards replaced by new questions, for some rounds.

        Dynamic sampling: Yu et al., arXiv 2503.14476, §3.2.

        Returns:
          the trajectories, those that they replaced, and the rounds.
        """
        rounds, seen, found = self.cfg.rl.dynamic_sampling, set(), self.collect(step, noise)
        self._check(found, step)
        groups, replaced = self._groups(found), []
        for done in range(rounds):
            equal = [i for i, group in enumerate(groups) if self._has_equal_rewards(group)]
            seen |= {group[0].question.id for group in groups}
            fresh = [q for q in self._spare_questions(step, done) if q.id not in seen][: len(equal)]
            if not fresh:
                rounds = done
                break
            found = self.collect(step, noise, fresh)
            if len(fresh) > 1:  # that all searches of one question fail is no outage
                self._check(found, step)
            for i, group in zip(equal, self._groups(found), strict=False):
                replaced += groups[i]
                groups[i] = group
        return [t for group in groups for t in group], replaced, rounds

    def _groups(self, trajectories: Sequence[Trajectory]) -> list[Sequence[Trajectory]]:
        size = self.cfg.rollout.group
        return [trajectories[i : i + size] for i in range(0, len(trajectories), size)]

    def _has_equal_rewards(self, group: Sequence[Trajectory]) -> bool:
        rewards = np.array([self.score(t) for t in group])
        valid = np.array([not t.failed for t in group])
        return bool(advantages.zero_variance(rewards, np.zeros(len(group), int), valid).all())

    def evaluate(self, questions: Sequence[Question]) -> list[Trajectory]:
        """Episodes on held-out questions with the real engine, at config.evaluation.temperature."""
        cfg = self.cfg.evaluation
        return self._rollout(
            questions,
            1,
            engine_search(self.search_engine.search, cfg.documents),
            'evaluation',
            temperature=cfg.temperature,
            identity=(self.cfg.seed, 0),
            stream='evaluation',
        )

    def _rollout(self, questions, samples: int, search, title: str, *, temperature: float, **identity):
        """Runs episodes with the present policy, whose weights are in its engine only during the rollout."""
        self.policy_engine.load(self.learner.policy_params, temperature=temperature)
        count = len(questions) * samples
        with progress.bar(count, title, 'episode', share=count) as bar:
            found = rollout(
                questions,
                samples,
                self.policy_engine,
                search,
                self.model.tokenizer,
                self.cfg.rollout,
                on_finished=lambda _: bar.update(),
                **identity,
            )
        self.policy_engine.unload()  # the planner assumes it
        memory.give_back()
        return found
