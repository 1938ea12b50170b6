"""Supervised fine-tuning on demonstrations: the policy's warm start and the simulator, by the same code.

The loss is on what the model should write (actions, documents), never on prompts and observations. The result is a LoRA
adapter or a whole model, besides the checkpoints from which an interrupted run resumes.
"""

import contextlib
import dataclasses
import functools
import math
import pathlib
import time
from collections.abc import Callable, Sequence
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np

from zerosearch_jax import pretrained, progress, settings, sharding
from zerosearch_jax.data import pairs, rows, sources
from zerosearch_jax.models import attention
from zerosearch_jax.policy import PolicyConfig, Trainable, export_weights, make_trainable
from zerosearch_jax.rl import losses, state
from zerosearch_jax.rl.step import make_update, score
from zerosearch_jax.rollout.config import RolloutConfig
from zerosearch_jax.run import metrics, preemption, preflight, trackers, trained
from zerosearch_jax.run.checkpoint import Checkpoints
from zerosearch_jax.run.workdir import claim
from zerosearch_jax.search.bm25 import BM25
from zerosearch_jax.simulator.config import SimulatorConfig
from zerosearch_jax.simulator.prompts import simulator_template
from zerosearch_jax.text.trajectory import Batch, TokenSequence, pack
from zerosearch_jax.train import demonstrations


@dataclasses.dataclass(frozen=True)
class DemosConfig:
    """Where demonstrations come from, and which of them are trained on."""

    # for a policy 'world:policy', 'toy:policy' or 'toy_chains:policy' (train/demonstrations.py); for a simulator, by
    # commas, 'world:simulator', files or hub:owner/name of requests or recorded searches (data/pairs.py)
    source: str = 'world:policy'
    corpus: str = ''  # the passages of recorded searches
    label: str = 'label'  # the field of recorded searches that is 'useful' or 'noisy'
    # folds that are trained on, by the rows' field `fold`, or for built-in questions by a hash of their ids ...
    folds: tuple[int, ...] = ()
    held_out_folds: tuple[int, ...] = ()  # ... and that are held out; (): the last demonstrations of the same folds
    guesses: int = 0  # for a policy: episodes after each one that answer at once with another question's answer
    late_guesses: bool = False  # whether the second guess is made after one hop, the third after two
    balance: bool = True  # as many useful as noisy demonstrations
    fewest: int = 1  # documents that a search must have ...
    query_words: float = 0.0  # ... and the share of its query's content words that they must hold
    exchanged: float = 0.0  # share of useful searches with another one's answer (demonstrations.exchange_answers)
    count: int = 256  # demonstrations that are trained on, 0: all; they are shuffled in every epoch
    held_out: int = 16  # demonstrations kept for the evaluation loss

    def __post_init__(self):
        if self.held_out_folds and (not self.folds or {*self.folds} & {*self.held_out_folds}):
            raise ValueError(f'folds = {self.folds} (empty: all) and held_out_folds = {self.held_out_folds} overlap')


@dataclasses.dataclass(frozen=True)
class SFTConfig:
    """The length of the training, and how the update is computed (fields as in config.rl)."""

    steps: int = 16  # updates
    batch: int = 8  # demonstrations in a step
    evaluate_every: int = 8  # steps between held-out losses
    patience: int = 0  # early stopping after this many evaluations without a new lowest held-out loss; 0: never
    checkpoint_every: int = 1
    wandb: str = ''  # as config.run.wandb
    row_length: int = 1024
    rows_per_micro: int = 1
    remat: Literal['none', 'dots', 'full'] = 'none'
    chunk: int = 512

    def __post_init__(self):
        sizes = ('steps', 'batch', 'evaluate_every', 'checkpoint_every', 'row_length', 'rows_per_micro', 'chunk')
        settings.require_positive(self, *sizes)


@dataclasses.dataclass(frozen=True)
class Config:
    """The whole configuration, one frozen dataclass for each section."""

    seed: int
    mesh: tuple[int, int, int]
    model: PolicyConfig
    demos: DemosConfig
    simulator: SimulatorConfig  # how a simulator is asked: template, documents, words, ...
    rollout: RolloutConfig  # budgets of a policy's episodes
    sft: SFTConfig
    optimizer: state.OptimizerConfig


parse = functools.partial(settings.build, Config)


# ---------------------------------------------------------------- demonstrations


def load_demonstrations(cfg: Config, model: pretrained.Model) -> tuple[list[TokenSequence], list[TokenSequence]]:
    """The demonstrations that are trained on, and the held-out ones."""
    name, _, role = cfg.demos.source.partition(':')
    if name in rows.BUILT_IN and role == 'policy':
        examples, held_out = _episodes(cfg, model)
    else:
        examples, held_out = (
            [demonstrations.simulator_example(i, cfg.simulator, model.tokenizer) for i in part]
            for part in _read(cfg, demonstrations.control_tokens(model.tokenizer))
        )
    longest = min(cfg.sft.row_length, model.cfg.max_position)
    examples, held_out = (demonstrations.flattened(part, longest) for part in (examples, held_out))
    if not examples:
        raise ValueError('no demonstration is left to train on; look at the fields of config.demos')
    if cfg.sft.patience and not held_out:
        raise ValueError('config.sft.patience watches the held-out loss: set config.demos.held_out above 0')
    return examples, held_out


def _episodes(cfg: Config, model: pretrained.Model) -> tuple[list, list]:
    """Demonstrations for a policy, from built-in questions."""
    if cfg.demos.held_out_folds:
        raise ValueError('config.demos.held_out_folds is for a simulator; of episodes the last held_out are kept')
    name = cfg.demos.source.partition(':')[0]
    made = demonstrations.policy_demos(
        rows.in_folds(sources.load_questions(name, 'train'), cfg.demos.folds),
        BM25(sources.load_passages(name)).search,
        model.tokenizer,
        cfg.rollout,
        documents=cfg.simulator.documents,
        count=cfg.demos.count and cfg.demos.count + cfg.demos.held_out,
        seed=cfg.seed,
        guesses=cfg.demos.guesses,
        late=cfg.demos.late_guesses,
    )
    end = cfg.demos.count or _train_count(len(made), cfg)
    return made[:end], made[end:]


def _read(cfg: Config, control: Sequence[str] = ()) -> tuple[list, list]:
    """Searches and pairs for training a simulator, and held-out ones; no pair may hold a token of `control`."""
    corpus = {p.id: p for p in sources.load_passages(cfg.demos.corpus)} if cfg.demos.corpus else {}
    read = functools.partial(pairs.load_pairs, corpus=corpus, label=cfg.demos.label, control=control)

    def load(folds: tuple[int, ...]) -> list:
        listed = map(str.strip, cfg.demos.source.split(','))
        made = [item for source in listed for item in _searches(cfg, source, folds, read)]
        if cfg.demos.balance:
            return demonstrations.balanced(made, cfg.seed)
        return [made[i] for i in rows.permutation(len(made), cfg.seed, 0)]

    examples = load(cfg.demos.folds)
    if cfg.demos.held_out_folds:
        held_out = load(cfg.demos.held_out_folds)[: cfg.demos.held_out]
    else:
        end = _train_count(len(examples), cfg)
        examples, held_out = examples[:end], examples[end:]
    return examples[: cfg.demos.count or None], held_out


def _searches(cfg: Config, source: str, folds: tuple[int, ...], read: Callable) -> list:
    """Searches of one source as they are trained on, and its pairs."""
    name, _, role = source.partition(':')
    size = {'documents': cfg.simulator.documents, 'seed': cfg.seed}
    if name not in rows.BUILT_IN:
        found = read(source, folds=folds)
        made = demonstrations.recorded_searches(found, words=cfg.simulator.words, **size)
        why = 'too few documents of which their label is true (useful: all hold one answer, noisy: none holds any)'
        _say_left_out(source, found, made, why)
    elif role == 'simulator':
        made = demonstrations.world_searches(name, folds, **size)
    else:
        raise ValueError(f'config.demos.source = {source!r}: there are {name}:policy, alone, and {name}:simulator')
    fewest, share = cfg.demos.fewest, cfg.demos.query_words
    chosen = demonstrations.chosen_searches(made, fewest=fewest, query_words=share)
    _say_left_out(source, made, chosen, f'fewer than {fewest} documents, or fewer words of the query than {share:.0%}')
    return demonstrations.exchange_answers(chosen, cfg.demos.exchanged, cfg.seed)


def _say_left_out(source: str, found: list, kept: list, why: str):
    if len(kept) < len(found):
        progress.log(f'{source}: {len(found) - len(kept)} of {len(found)} searches are left out: {why}')


def _train_count(count: int, cfg: Config) -> int:
    """How many demonstrations are left to train on."""
    if 0 < count <= cfg.demos.held_out:
        raise ValueError(
            f'config.demos.held_out = {cfg.demos.held_out} leaves none of {count} demonstrations; lower it'
        )
    return count - cfg.demos.held_out


# ---------------------------------------------------------------- training


def train(cfg: Config, workdir: pathlib.Path, config_json: str) -> pathlib.Path | None:
    """Runs or resumes fine-tuning in `workdir`; returns the file of the adapter, or the directory of the model.

    Returns None after SIGTERM: the run is saved, and the same call resumes it.
    """
    trackers.check(cfg.sft.wandb)
    cfg, config_json = trained.with_files(cfg, config_json, workdir, ('model',))
    with claim(workdir, Config, config_json):
        return _train(cfg, workdir, config_json)


def _train(cfg: Config, workdir: pathlib.Path, config_json: str) -> pathlib.Path | None:
    preflight.check(cfg.mesh, {'model': cfg.model}, rows={'sft.rows_per_micro': cfg.sft.rows_per_micro})
    simulator_template(cfg.simulator.template)
    mesh = sharding.make_mesh(cfg.mesh)
    model = pretrained.load_model(cfg.model.model, mesh)
    trainable = make_trainable(model, cfg.model, mesh, cfg.seed)
    examples, held_out = load_demonstrations(cfg, model)
    tokens = sum(int(s.weights.sum()) for s in examples)
    progress.log(f'{len(examples)} demonstrations, {tokens} tokens with loss; {len(held_out)} held out')
    with (
        jax.set_mesh(mesh),
        contextlib.closing(Checkpoints(workdir / 'checkpoints')) as checkpoints,
        _writer(cfg, workdir, checkpoints.latest() or 0) as writer,
    ):
        learner = _Learner(cfg, model, trainable, mesh, workdir, config_json)
        learner.resume(checkpoints)
        if not learner.finished:
            every = cfg.sft.checkpoint_every
            checkpoints.require_space(learner.state, learner.state.params, cfg.sft.steps, every)
        _loop(learner, examples, held_out, checkpoints, writer)
        if writer:
            writer.draw(learner.step)
        return learner.export(final=True) if learner.finished else None


def _writer(cfg: Config, workdir: pathlib.Path, step: int):
    made = metrics.open_writer(workdir, step, trackers.TrackersConfig(wandb=cfg.sft.wandb))
    return made or contextlib.nullcontext()


class _Learner:
    """State of one run: the weights being trained, and the lowest held-out loss so far."""

    def __init__(self, cfg: Config, model: pretrained.Model, trainable: Trainable, mesh, workdir, config_json: str):
        self.cfg, self._model, self._frozen = cfg, model, trainable.frozen
        self._workdir, self._resolved = workdir, config_json
        tx = state.optimizer(cfg.optimizer, cfg.sft.steps)
        self._shardings = state.state_shardings(trainable.layout, tx, mesh)
        form = attention.choose(model.cfg, cfg.model.dtype, mesh, cfg.sft.row_length).name
        self._compute = losses.Compute(cfg.model.dtype, cfg.sft.remat, cfg.sft.chunk, form)
        self._update = make_update(model.cfg, tx, self._shardings, None, self._compute)
        self.state = state.create(trainable.params, tx, self._shardings)
        self.step = 0  # steps done
        self.best, self.since = math.inf, 0  # the lowest held-out loss, and evaluations since

    def resume(self, checkpoints: Checkpoints):
        latest = checkpoints.latest()
        if latest:
            abstract = jax.eval_shape(lambda: self.state)
            self.state = None  # there is memory for one state
            self.state, host = checkpoints.restore(latest, abstract, self._shardings)
            self.step, self.since = host['step'], host['since']
            self.best = math.inf if host['best'] is None else host['best']
            progress.log(f'resuming after step {self.step}')

    def save(self, checkpoints: Checkpoints):
        best = self.best if math.isfinite(self.best) else None
        checkpoints.save(self.step, self.state, {'step': self.step, 'best': best, 'since': self.since})

    @property
    def finished(self) -> bool:
        patience = self.cfg.sft.patience
        return self.step >= self.cfg.sft.steps or bool(patience and self.since >= patience)

    def learn(self, sequences: list[TokenSequence]) -> dict[str, float]:
        began = time.perf_counter()
        batch = self._batch(sequences)
        self.state, measured = self._update(self.state, self._frozen, batch)
        self.step += 1
        row = {f'loss/{name}': float(value) for name, value in measured.items()}
        return row | {'speed/tokens_per_second': float((batch.segments > 0).sum()) / (time.perf_counter() - began)}

    def evaluate(self, held_out: list[TokenSequence]) -> float:
        """Mean negative log-likelihood of a held-out token; with early stopping the best weights are written."""
        total, weight, size = 0.0, 0.0, self.cfg.sft.batch
        starts = range(0, len(held_out), size)
        for start in progress.track(starts, 'held-out loss', 'batch'):
            batch = self._batch(held_out[start : start + size])
            logprobs = score(self.state.params, self._frozen, batch, 1.0, cfg=self._model.cfg, compute=self._compute)
            total -= float(jnp.sum(logprobs * batch.weights))
            weight += float(batch.weights.sum())
        loss = total / weight
        self.best, self.since = (loss, 0) if loss < self.best else (self.best, self.since + 1)
        if self.cfg.sft.patience and not self.since:
            self.export()
        return loss

    def _batch(self, sequences: list[TokenSequence]) -> Batch:
        sft = self.cfg.sft
        return pack(
            sequences,
            np.zeros(len(sequences)),
            row_length=sft.row_length,
            rows_per_micro=sft.rows_per_micro,
            micro_batches=-(-len(sequences) // sft.rows_per_micro),
        )

    def export(self, final: bool = False) -> pathlib.Path:
        """Writes the weights as policy.export_weights does.

        At the end of a run with early stopping the best weights are already written.
        """
        adapter = bool(self.cfg.model.lora_rank)
        path = self._workdir / ('adapter.safetensors' if adapter else 'model')
        if final and self.cfg.sft.patience and path.exists():
            return path
        return export_weights(self.state.params, self._model, adapter, self._workdir, self._resolved)


_SHOWN = ('loss/nll', 'loss/held_out', 'speed/tokens_per_second')


def _loop(learner: _Learner, examples: list, held_out: list, checkpoints: Checkpoints, writer):
    cfg = learner.cfg.sft
    bar = progress.bar(cfg.steps, 'fine-tuning', 'step', leave=True, initial=learner.step)
    with preemption.Watch() as watch, bar:
        stopped = False
        while not learner.finished and not stopped:
            row = learner.learn(_step_sequences(learner.cfg, examples, learner.step))
            step = learner.step
            if held_out and (step % cfg.evaluate_every == 0 or step == cfg.steps):
                row['loss/held_out'] = learner.evaluate(held_out)
            if writer:
                writer.write(step, row)
            stopped = watch.stop_requested()
            if step % cfg.checkpoint_every == 0 or learner.finished or stopped:
                learner.save(checkpoints)
            line = '  '.join(f'{name.split("/")[1]} {row[name]:.3f}' for name in row if name in _SHOWN)
            bar.set_postfix_str(line)
            bar.update()
            if bar.disable:
                progress.log(f'step {step}/{cfg.steps}  {line}')


def _step_sequences(cfg: Config, examples: list[TokenSequence], done: int) -> list[TokenSequence]:
    """The demonstrations of the step after `done` steps: a function of (seed, step) alone."""
    items = rows.item_indices(len(examples), cfg.seed, done * cfg.sft.batch, cfg.sft.batch)
    return [examples[index] for _, index in items]
