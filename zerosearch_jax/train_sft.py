"""Supervised fine-tuning on demonstrations: the policy's warm start and the simulator, by the same code.

Loss is on what the model is to write (actions, documents), never on prompts and observations. The result is a LoRA
adapter, or a whole model, beside the checkpoints from which an interrupted run continues.
"""

from __future__ import annotations

import contextlib
import dataclasses
import pathlib
import time
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np

from zerosearch_jax import metrics, progress, roles, settings, sharding, state
from zerosearch_jax.checkpoint import Checkpoints
from zerosearch_jax.data import rows
from zerosearch_jax.models import attention, weights
from zerosearch_jax.rl import losses, step
from zerosearch_jax.search import demos
from zerosearch_jax.search.engines import BM25
from zerosearch_jax.search.rollout import RolloutConfig
from zerosearch_jax.text.trajectory import Batch, TokenSequence, flatten, pack


@dataclasses.dataclass(frozen=True)
class DemosConfig:
    """Which demonstrations are made from the built-in world's training questions (search/demos.py)."""

    role: Literal['policy', 'simulator'] = 'policy'
    count: int = 256  # demonstrations trained on; the steps below go through them in a fresh order every epoch
    held_out: int = 16  # demonstrations kept for the evaluation loss
    documents: int = 2  # documents a search
    words: int = 25  # words a document, as the simulator's prompt asks for


@dataclasses.dataclass(frozen=True)
class SFTConfig:
    """How long, and how the update is computed (fields as in config.rl)."""

    steps: int = 16
    batch: int = 8  # demonstrations a step
    evaluate_every: int = 8
    row_length: int = 1024
    rows_per_micro: int = 1
    remat: Literal['none', 'dots', 'full'] = 'none'
    chunk: int = 512


SCHEMA = {
    'seed': int,
    'mesh': tuple[int, int, int],
    'model': roles.PolicyConfig,
    'demos': DemosConfig,
    'rollout': RolloutConfig,
    'sft': SFTConfig,
    'optimizer': state.OptimizerConfig,
}


@dataclasses.dataclass(frozen=True)
class Config:
    """The whole configuration, one frozen dataclass a section."""

    seed: int
    mesh: tuple[int, int, int]
    model: roles.PolicyConfig
    demos: DemosConfig
    rollout: RolloutConfig  # budgets of the policy's episodes
    sft: SFTConfig
    optimizer: state.OptimizerConfig


def parse(config) -> Config:
    """Checks a ConfigDict; raises ValueError with one line on a misspelt, missing or mistyped field."""
    return Config(**settings.resolve(config, SCHEMA))


def demonstrations(cfg: Config, model: roles.Model) -> list[TokenSequence]:
    """The demonstrations as token sequences, the held-out ones last."""
    questions, search = rows.load_questions('world', 'train'), BM25(rows.load_passages('world')).search
    count = cfg.demos.count + cfg.demos.held_out
    if cfg.demos.role == 'policy':
        made = demos.policy_demos(
            questions, search, model.tokenizer, cfg.rollout, documents=cfg.demos.documents, count=count, seed=cfg.seed
        )
    else:
        made = demos.simulator_demos(
            questions,
            search,
            model.tokenizer,
            documents=cfg.demos.documents,
            words=cfg.demos.words,
            count=count,
            seed=cfg.seed,
        )
    return [flatten(segments) for segments in made]


def _batch(cfg: Config, sequences: list[TokenSequence]) -> Batch:
    return pack(
        sequences,
        np.zeros(len(sequences)),
        row_length=cfg.sft.row_length,
        rows_per_micro=cfg.sft.rows_per_micro,
        micro_batches=-(-len(sequences) // cfg.sft.rows_per_micro),
    )


def _held_out_loss(
    cfg: Config, model: roles.Model, compute: losses.Compute, params: dict, frozen: dict, held_out: list[TokenSequence]
) -> float:
    """Mean negative log-likelihood of a held-out token."""
    total, weight = 0.0, 0.0
    for start in range(0, len(held_out), cfg.sft.batch):
        batch = _batch(cfg, held_out[start : start + cfg.sft.batch])
        logprobs = step.score(params, frozen, batch, 1.0, cfg=model.cfg, compute=compute)
        total -= float(jnp.sum(logprobs * batch.weights))
        weight += float(batch.weights.sum())
    return total / weight


def train(cfg: Config, workdir: pathlib.Path, resolved: str) -> pathlib.Path:
    """Runs, or resumes, fine-tuning in `workdir`; returns the file of the adapter, or the directory of the model."""
    metrics.claim(workdir, resolved)
    mesh = sharding.make_mesh(cfg.mesh)
    model = roles.load_model(cfg.model.model, mesh)
    split = roles.trainable(model, cfg.model, mesh, cfg.seed)
    tx = state.optimizer(cfg.optimizer, cfg.sft.steps)
    places = state.state_shardings(split.layout, tx, mesh)
    sequences = demonstrations(cfg, model)
    taught, held_out = sequences[: cfg.demos.count], sequences[cfg.demos.count :]
    form = attention.choose(model.cfg, cfg.model.dtype, mesh).name
    compute = losses.Compute(cfg.model.dtype, cfg.sft.remat, cfg.sft.chunk, form)
    update = step.make_update(model.cfg, tx, places, None, compute)
    with (
        jax.set_mesh(mesh),
        contextlib.closing(Checkpoints(workdir / 'checkpoints')) as checkpoints,
        metrics.MetricWriter(workdir, resume_step=checkpoints.latest() or 0) as writer,
    ):
        current = state.create(split.params, tx, places)
        start = checkpoints.latest() or 0
        if start:
            current, _ = checkpoints.restore(start, jax.eval_shape(lambda: current), places)
        with progress.bar(cfg.sft.steps, f'{cfg.demos.role} fine-tuning', 'step', leave=True, initial=start) as bar:
            for number in range(start + 1, cfg.sft.steps + 1):
                began = time.perf_counter()
                batch = _batch(cfg, _step_sequences(cfg, taught, number))
                current, measured = update(current, split.frozen, batch)
                row = {f'loss/{name}': float(value) for name, value in measured.items()}
                row['speed/tokens_per_second'] = float((batch.segments > 0).sum()) / (time.perf_counter() - began)
                if held_out and (number % cfg.sft.evaluate_every == 0 or number == cfg.sft.steps):
                    row['loss/held_out'] = _held_out_loss(cfg, model, compute, current.params, split.frozen, held_out)
                writer.write(number, row)
                checkpoints.save(number, current, {'step': number})
                line = '  '.join(f'{name.split("/")[1]} {row[name]:.3f}' for name in row if name in _SHOWN)
                bar.set_postfix_str(line)
                bar.update()
                if bar.disable:
                    progress.say(f'step {number}/{cfg.sft.steps}  {line}')
        return _export(cfg, model, current.params, workdir, resolved)


_SHOWN = ('loss/nll', 'loss/held_out', 'speed/tokens_per_second')


def _step_sequences(cfg: Config, taught: list[TokenSequence], number: int) -> list[TokenSequence]:
    """The demonstrations of a step, counted from 1: a function of (seed, step) alone."""
    items = rows.item_indices(len(taught), cfg.seed, (number - 1) * cfg.sft.batch, cfg.sft.batch)
    return [taught[index] for _, index in items]


def _export(cfg: Config, model: roles.Model, params: dict, workdir: pathlib.Path, resolved: str) -> pathlib.Path:
    """Writes the adapter in bfloat16 with its configuration as metadata, or the whole model in float32."""
    if not cfg.model.lora_rank:
        weights.save(params, model.cfg, workdir / 'model')
        model.tokenizer.save(workdir / 'model')
        return workdir / 'model'
    path = workdir / 'adapter.safetensors'
    half = jax.tree.map(lambda w: np.asarray(w.astype(jnp.bfloat16)), params)
    weights.save_tree(path, half, {'config': resolved})
    return path
