"""The main job: reinforcement learning of a search policy against a simulated engine.

    evaluate (real engine) -> [ rollout -> rewards -> advantages -> update -> write ] x steps -> evaluate

Everything of step k is a function of the configuration, the seed, k and the state after step k - 1, so a run that was
killed continues from its last checkpoint to the same end.
"""

from __future__ import annotations

import contextlib
import pathlib
import time

import jax
import numpy as np

from zerosearch_jax import progress, sharding
from zerosearch_jax.evaluate import report
from zerosearch_jax.evaluate.scores import METRICS, as_row, mean_scores
from zerosearch_jax.policy import export_weights
from zerosearch_jax.rl import advantages
from zerosearch_jax.run import alarms, jsonl, metrics, preemption, trackers
from zerosearch_jax.run.checkpoint import Checkpoints
from zerosearch_jax.run.workdir import claim
from zerosearch_jax.train.config import Config
from zerosearch_jax.train.trainer import Trainer

SHOWN = 2  # trajectories on the trackers, of those that are written
DRAWN_EVERY = 10  # steps after which the trackers are given the curves


def train(cfg: Config, workdir: pathlib.Path, resolved: str) -> dict | None:
    """Runs, or resumes, the whole job in `workdir`; returns the summary that it also writes there.

    None where SIGTERM came: the run is saved, and the same call continues it.

    Args:
      cfg: checked configuration.
      workdir: receives config.json, checkpoints/, metrics.jsonl, trajectories.jsonl, evaluation/, curves.png,
        summary.json, and at the end adapter.safetensors or model/.
      resolved: the configuration as JSON text.

    Raises:
      ValueError: `workdir` holds a run with another configuration.
    """
    trackers.check(cfg.run.wandb)
    claim(workdir, resolved)
    trainer = Trainer(cfg, workdir)
    main = jax.process_index() == 0
    with contextlib.closing(Checkpoints(workdir / 'checkpoints')) as checkpoints:
        start = checkpoints.latest() or 0
        if start:
            abstract = jax.eval_shape(lambda: trainer.learner.state)
            trainer.learner.state = None  # memory is for one
            trainer.learner.state, host = checkpoints.restore(start, abstract, trainer.learner.places)
            trainer.history, trainer.rung = host['history'], host['rung']
            progress.say(f'resuming after step {host["step"]}')
        writer = _writer(cfg, workdir, start) if main else None
        try:
            if _evaluated(cfg, start):
                _evaluate_at(trainer, writer, start)
            last, stopped = _loop(trainer, writer, checkpoints, start)
            if stopped:
                progress.say(f'told to stop: saved after step {last}; run the same command again to continue')
            elif last:
                export_weights(
                    trainer.learner.state['policy'].params,
                    trainer.model,
                    bool(cfg.policy.lora_rank),
                    workdir,
                    resolved,
                )
                _evaluate_at(trainer, writer, last)
                if writer is not None:
                    writer.draw(last)
        except KeyboardInterrupt:
            progress.say('interrupted; run the same command again to continue from the last checkpoint')
            raise
        finally:
            if writer is not None:
                writer.close()
                summary = report.summarize(workdir)
                progress.say(report.text(summary, workdir))
    if stopped:
        return None
    return summary if main else {}


def _writer(cfg: Config, workdir: pathlib.Path, step: int) -> metrics.MetricWriter:
    report.forget_evaluations_after(workdir, step)
    return metrics.MetricWriter(workdir, resume_step=step, tensorboard=cfg.run.tensorboard, wandb=cfg.run.wandb)


def _loop(trainer: Trainer, writer, checkpoints: Checkpoints, start: int) -> tuple[int, bool]:
    """Trains to the last step, to the alarm that stops the run, or to a SIGTERM.

    Returns:
      the number of the last step done, and whether it was SIGTERM.
    """
    cfg, number, stopped = trainer.cfg, start, False
    if start < cfg.rl.steps:
        trainer.load_simulator()
    with preemption.Watch() as watch, progress.bar(cfg.rl.steps, 'training', 'step', leave=True, initial=start) as bar:
        while number < cfg.rl.steps and not stopped and not (cfg.alarms.stop and trainer.rung):
            number += 1
            measured, trajectories = train_step(trainer, number)
            if writer is not None:
                writer.write(number, measured)
                if number % cfg.run.trajectories_every == 0:
                    writer.append('trajectories', trajectories[: cfg.run.trajectories])
                    writer.show(number, 'trajectories', [report.told(row) for row in trajectories[:SHOWN]])
                if number % DRAWN_EVERY == 0:
                    writer.draw(number)
            _sound_alarms(trainer, checkpoints, number, measured)
            last = number == cfg.rl.steps or (cfg.alarms.stop and bool(trainer.rung))
            stopped = watch.asked() and not last
            if _evaluated(cfg, number) and not last and not stopped:
                _evaluate_at(trainer, writer, number)  # before the save: a run that is killed here does the step again
                stopped = watch.asked()
            if number % cfg.run.checkpoint_every == 0 or last or stopped:
                host = {'step': number, 'seed': cfg.seed, 'history': [*trainer.history], 'rung': [*trainer.rung]}
                checkpoints.save(number, trainer.learner.state, host)
            bar.set_postfix_str(report.headline(measured))
            bar.update()
            if bar.disable:
                progress.say(f'step {number}/{cfg.rl.steps}  {report.headline(measured)}')
    return number, stopped


def _evaluated(cfg: Config, number: int) -> bool:
    """Whether the weights after a step are evaluated on the way."""
    if number == 0:
        return cfg.evaluation.before
    return bool(cfg.evaluation.every) and number % cfg.evaluation.every == 0


def _sound_alarms(trainer: Trainer, checkpoints: Checkpoints, number: int, measured: dict[str, float]):
    """Tells every alarm once, and keeps the state before what made it ring, once there is one, in last_good/.

    A step's rollouts show the weights of the step before, so the last good state is that of two steps before.
    """
    trainer.history.append({name: value for name, value in measured.items() if name in alarms.WATCHED})
    fresh = [name for name in alarms.ringing(trainer.history, trainer.cfg.alarms) if name not in trainer.rung]
    suspicious = alarms.suspicion_begins(trainer.history, trainer.cfg.alarms)
    kept = trainer.workdir / 'last_good'
    if suspicious and jax.process_index() == 0 and not (trainer.rung and kept.exists()):
        checkpoints.put_aside(kept, number - 2)
    for name in fresh:
        progress.say(f'alarm after step {number}: {name}; {alarms.ADVICE[name]}')
    trainer.rung += fresh


def train_step(trainer: Trainer, number: int) -> tuple[dict[str, float], list[dict]]:
    """One step: rollouts, rewards, advantages, update. Returns its metrics and its trajectories as JSON rows."""
    cfg, began = trainer.cfg, time.perf_counter()
    generated, queries = trainer.generated_tokens, trainer.queries
    trajectories, rounds = trainer.collect_varied(number)
    collected = time.perf_counter()
    reward = np.array([trainer.score(t) for t in trajectories])
    groups = np.repeat(np.arange(cfg.rollout.questions), cfg.rollout.group)
    valid = np.array([not t.failed for t in trajectories])
    learned = trainer.learner.learn(number, [t.segments for t in trajectories], reward, groups, valid)
    ended = time.perf_counter()
    counted = valid if valid.any() else ~valid  # what the outside failed says nothing of the policy
    summary = mean_scores([t for t, counts in zip(trajectories, counted, strict=True) if counts])
    searches = [s for t in trajectories for s in t.searches]
    noisy = [label for s in searches for label in s.labels]
    tokens = sum(t.response_tokens for t in trajectories)
    measured = {
        'reward/mean': float(reward[counted].mean()),
        'reward/std': float(reward[counted].std()),
        **{f'reward/{name}': summary.pop(name) for name in METRICS},
        **{f'rollout/{name}': value for name, value in summary.items()},
        'rollout/noise': trainer.noise(number),
        'rollout/noisy_share': float(np.mean(noisy)) if noisy else 0.0,
        'rollout/failed': float(1 - valid.mean()),
        'rollout/search_failed': float(np.mean([bool(s.failure) for s in searches])) if searches else 0.0,
        'rollout/extra_rounds': rounds,
        **{f'loss/{name}': value for name, value in learned.metrics.items()},
        'speed/tokens_per_second': tokens / (ended - began),
        'speed/rollout_seconds': collected - began,
        'speed/update_seconds': ended - collected,
        'speed/device_seconds': (ended - began) * trainer.mesh.size,
        'cost/queries': trainer.queries - queries,
        'cost/tokens': trainer.generated_tokens - generated,
    }
    if cfg.rollout.group > 1:
        measured['rollout/zero_variance_groups'] = advantages.zero_variance_share(reward, groups, valid)
    written = [
        as_row(t, trainer.model.tokenizer, gaps, step=number, reward=float(r), advantage=float(a))
        for t, r, a, gaps in zip(trajectories, reward, learned.advantages, learned.gaps, strict=True)
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
            jsonl.write_jsonl(path, [as_row(t, trainer.model.tokenizer, step=number) for t in trajectories])
    if writer is None:
        return
    found = jsonl.read_jsonl(path)
    means = {f'eval/{name}': float(np.mean([row[name] for row in found])) for name in METRICS}
    means['eval/searches'] = float(np.mean([len(row['searches']) for row in found]))
    if not report.has_evaluation(trainer.workdir, number):
        writer.write(number, means)
    progress.say(
        f'evaluation after step {number}: EM {means["eval/em"]:.3f}  F1 {means["eval/f1"]:.3f}  '
        f'searches {means["eval/searches"]:.2f}  ({len(found)} questions, {trainer.cfg.engine.kind})'
    )
