"""The main loop: reinforcement learning of a search policy against a simulated engine.

    evaluate (real engine) -> [ rollout -> rewards -> advantages -> update -> write ] x steps -> evaluate

Everything of step k is a function of the configuration, the seed, k and the state after step k - 1, so a run that was
killed continues from its last checkpoint to the same end.
"""

import contextlib
import dataclasses
import pathlib
import time
from collections.abc import Sequence

import jax
import numpy as np

from zerosearch_jax import progress, settings
from zerosearch_jax.evaluate import report
from zerosearch_jax.evaluate.scores import METRICS, as_row, counted, mean_scores
from zerosearch_jax.policy import export_weights
from zerosearch_jax.rl import advantages
from zerosearch_jax.rollout.rollout import Trajectory, check_searches
from zerosearch_jax.run import alarms, jsonl, metrics, preemption, preflight, trackers, trained
from zerosearch_jax.run.checkpoint import Checkpoints, complete_steps
from zerosearch_jax.run.workdir import claim
from zerosearch_jax.search.search import OutsideFailed
from zerosearch_jax.simulator.curriculum import noise_probability
from zerosearch_jax.train import config as train_config
from zerosearch_jax.train.config import Config
from zerosearch_jax.train.trainer import Trainer

SHOWN = 2  # how many of the written trajectories are sent to the trackers
# settings on which an evaluation's result depends, and which a resumed run may change
ASKED_OTHERWISE = {f'evaluation.{name}' for name in ('questions', 'documents', 'temperature', 'whole_batches_of')}
DRAWN_EVERY = 10  # steps after which the curves are sent to the trackers


@dataclasses.dataclass
class Past:
    """The history that curriculum and alarms need; it is in the checkpoint beside the state."""

    history: list[dict[str, float]] = dataclasses.field(default_factory=list)  # watched metrics of every step so far
    fired: list[str] = dataclasses.field(default_factory=list)  # alarms that were reported

    def host_item(self, step: int, seed: int) -> dict:
        """The JSON item of a checkpoint, in which the fired alarms are called 'rung'."""
        return {'step': step, 'seed': seed, 'history': [*self.history], 'rung': [*self.fired]}

    def stopped(self, cfg: Config) -> list[str]:
        """The alarms that end the run here, by the configuration of today."""
        return alarms.fired_alarms(self.history, cfg.sounding) if cfg.alarms.stop else []

    def noise(self, cfg: Config, step: int) -> float:
        """The curriculum's value at a step."""
        rewards = [row['reward/mean'] for row in self.history]
        return noise_probability(cfg.curriculum, step, cfg.rl.steps, rewards, cfg.seed)


def train(cfg: Config, workdir: pathlib.Path, config_json: str) -> dict | None:
    """Runs or resumes the whole job in `workdir`; returns the summary, which is also written there.

    Returns None after SIGTERM: the run is saved, and the same call resumes it.

    Args:
      cfg: checked configuration.
      workdir: receives config.json, checkpoints/, metrics.jsonl, trajectories.jsonl, evaluation/, curves.png,
        summary.json, and at the end adapter.safetensors or model/.
      config_json: the configuration as JSON text.

    Raises:
      ValueError, OSError: as workdir.claim; weights that are not finite.
    """
    trackers.check(cfg.run.wandb)
    names = ('policy', 'simulator') if cfg.simulator.kind == 'model' else ('policy',)
    cfg, config_json = trained.with_files(cfg, config_json, workdir, names)
    train_config.check_steps(cfg, workdir)

    def prepare(changed: Sequence[str]):
        if set(changed) & ASKED_OTHERWISE:
            report.put_evaluations_aside(workdir)

    with claim(workdir, Config, config_json, free=settings.MAY_CHANGE_IN_A_RUN, prepare=prepare):
        return _train(cfg, workdir, config_json)


def _check(cfg: Config, workdir: pathlib.Path) -> int:
    """Checks what can be checked before anything is loaded; returns the last completed step."""
    done = max(complete_steps(workdir / 'checkpoints'), default=0)
    to_come = done < cfg.rl.steps
    searched = cfg.simulator.kind == 'engine' or (cfg.evaluation.questions and cfg.rollout.max_turns)
    preflight.check(
        cfg.mesh,
        {'policy': cfg.policy},
        rollout_mesh=cfg.rollout.mesh,
        engine=cfg.engine if to_come and searched else None,
        simulator=cfg.simulator if to_come else None,
        endpoint=cfg.endpoint,
        corpus=cfg.data.corpus,
        rows={'rl.rows_per_micro': cfg.rl.rows_per_micro} if to_come else None,
    )
    return done


def _train(cfg: Config, workdir: pathlib.Path, config_json: str) -> dict | None:
    start = _check(cfg, workdir)
    with progress.job(_work(cfg, cfg.rl.steps) + cfg.evaluation.questions, _work(cfg, start)) as job:
        return _run(cfg, workdir, config_json, job)


def _work(cfg: Config, step: int) -> int:
    """The work done after a step, in episodes; an update takes about as long as the rollout of its episodes."""
    every = cfg.evaluation.every
    evaluations = cfg.evaluation.before + (step // every if every else 0) if step else 0
    return evaluations * cfg.evaluation.questions + 2 * cfg.rollout.episodes * step


def _run(cfg: Config, workdir: pathlib.Path, config_json: str, job: progress.Job) -> dict | None:
    trainer, past = Trainer(cfg, workdir), Past()
    main = jax.process_index() == 0
    with contextlib.closing(Checkpoints(workdir / 'checkpoints', keep_every=cfg.run.keep_every)) as checkpoints:
        start, learner = checkpoints.latest() or 0, trainer.learner
        if start:
            past = _restore(trainer, checkpoints, start)
        if start < cfg.rl.steps and (ended := past.stopped(cfg)):
            progress.log(f'an alarm ended this run ({", ".join(ended)}); to go on, change its limit or alarms.stop')
        elif start < cfg.rl.steps:
            policy, every = learner.state['policy'].params, cfg.run.checkpoint_every
            checkpoints.require_space(learner.state, policy, cfg.rl.steps, every)
        writer = _writer(cfg, workdir, start)
        if main and start < cfg.rl.steps:
            trained.note_earlier_export(workdir, start)
        try:
            if start < cfg.rl.steps:
                trainer.load_simulator()
                trainer.learner.prepare()
            if _evaluated(cfg, start):
                _evaluate_at(trainer, workdir, writer, start)
            last, stopped = _loop(trainer, past, workdir, writer, checkpoints, start, job)
            if stopped:
                progress.log(f'SIGTERM: saved after step {last}; run the same command again to continue')
            elif last:
                params, adapter = trainer.learner.state['policy'].params, bool(cfg.policy.lora_rank)
                export_weights(params, trainer.model, adapter, workdir, config_json)
                if main:
                    trained.note_export(workdir, last)
                _evaluate_at(trainer, workdir, writer, last)
                if writer is not None:
                    writer.draw(last)
        except (KeyboardInterrupt, OutsideFailed) as error:
            why = 'interrupted' if isinstance(error, KeyboardInterrupt) else 'searches failed'
            if isinstance(error, OutsideFailed) and cfg.simulator.kind in ('model', 'self'):
                why += ' (if it was those of the simulator, they will fail again: see launch.audit_simulator)'
            progress.log(f'{why}; run the same command again to continue from the last checkpoint')
            raise
        finally:
            if writer is not None:
                writer.close()
                summary = report.summarize(workdir)
                progress.log(report.summary_text(summary, workdir))
    if stopped:
        return None
    return summary if main else {}


def _restore(trainer: Trainer, checkpoints: Checkpoints, step: int) -> Past:
    """Restores the state after a step into the learner; returns the rest of the checkpoint."""
    learner = trainer.learner
    abstract = jax.eval_shape(lambda: learner.state)
    learner.state = None  # there is memory for one state
    learner.state, host = checkpoints.restore(step, abstract, learner.shardings)
    if (begun := host.get('weights', trainer.weights)) != trainer.weights:
        raise ValueError(
            f'this run began with other weights: {", ".join(begun)}; now there are {", ".join(trainer.weights)}; '
            'put them back, or start a new run in another --workdir'
        )
    if host.get('fit_on', learner.place) == learner.place:
        learner.resume(host.get('fit'))
    progress.log(f'resuming after step {host["step"]}')
    return Past(host['history'], host['rung'])


def _writer(cfg: Config, workdir: pathlib.Path, step: int) -> metrics.MetricWriter | None:
    return metrics.open_writer(workdir, step, cfg.run, lambda: report.forget_evaluations_after(workdir, step))


def _loop(
    trainer: Trainer, past: Past, workdir, writer, checkpoints: Checkpoints, start: int, job: progress.Job
) -> tuple[int, bool]:
    """Trains until the last step, an alarm that stops the run, or SIGTERM.

    Returns:
      the last completed step, and whether SIGTERM ended it.
    """
    cfg, learner, step, stopped = trainer.cfg, trainer.learner, start, False
    with preemption.Watch() as watch:
        while step < cfg.rl.steps and not stopped and not past.stopped(cfg):
            step += 1
            measured, trajectories = train_step(trainer, step, past.noise(cfg, step))
            trainer.commit_failures()
            if writer is not None:
                _write(writer, cfg, step, measured, trajectories)
            _sound_alarms(past, workdir, cfg, checkpoints, step, measured)
            if ended := past.stopped(cfg):
                progress.log(f'step {step}: an alarm ends the run ({", ".join(ended)})')
            last = step == cfg.rl.steps or bool(ended)
            stopped = watch.stop_requested() and not last
            if _evaluated(cfg, step) and not last and not stopped:
                _evaluate_at(trainer, workdir, writer, step)  # before the save: if killed here, the step is repeated
                stopped = watch.stop_requested()
            if step % cfg.run.checkpoint_every == 0 or last or stopped:
                host = past.host_item(step, cfg.seed) | {'fit': learner.fit, 'fit_on': learner.place}
                checkpoints.save(step, learner.state, host | {'weights': trainer.weights})
            job.reach(_work(cfg, step))
            job.show(figures=f'reward {measured["reward/mean"]:.2f}  searches {measured["rollout/searches"]:.2f}')
            progress.log(f'step {step}/{cfg.rl.steps}  {report.headline(measured)}')
    return step, stopped


def _write(writer: metrics.MetricWriter, cfg: Config, step: int, measured: dict, trajectories: list[dict]):
    writer.write(step, measured)
    if step % cfg.run.trajectories_every == 0:
        writer.append('trajectories', trajectories[: cfg.run.trajectories])
        writer.show(step, 'trajectories', [report.trajectory_text(row) for row in trajectories[:SHOWN]])
    if step % DRAWN_EVERY == 0:
        writer.draw(step)


def _evaluated(cfg: Config, step: int) -> bool:
    """Whether the weights after a step are evaluated during the run."""
    if step == 0:
        return cfg.evaluation.before
    return bool(cfg.evaluation.every) and step % cfg.evaluation.every == 0


def _sound_alarms(past: Past, workdir, cfg: Config, checkpoints: Checkpoints, step: int, measured: dict[str, float]):
    """Reports every alarm once, and keeps the state from before the first suspicious step, if any, in last_good/.

    A step's rollouts show the weights after the step before, so the last good state is that of two steps before.
    """
    past.history.append({name: value for name, value in measured.items() if name in alarms.WATCHED})
    fresh = [name for name in alarms.fired_alarms(past.history, cfg.sounding) if name not in past.fired]
    last_good = workdir / 'last_good'
    if (
        alarms.newly_over_limit(past.history, cfg.sounding)
        and jax.process_index() == 0
        and not (past.fired and last_good.exists())
    ):
        checkpoints.put_aside(last_good, step - 2)
    for name in fresh:
        progress.log(f'alarm after step {step}: {name}; {alarms.ADVICE[name]}')
    past.fired += fresh


def train_step(trainer: Trainer, step: int, noise: float) -> tuple[dict[str, float], list[dict]]:
    """One step: rollouts, rewards, advantages, update. Returns its metrics and its trajectories as JSON rows."""
    cfg, began = trainer.cfg, time.perf_counter()
    tokens_before = trainer.generated_tokens
    kept, replaced, rounds = trainer.collect_dynamic(step, noise)
    collected = time.perf_counter()
    trajectories, own = [*kept, *replaced], slice(len(kept))  # all count in the metrics, and `kept` are trained on
    turns = [trainer.score.by_turn(t) for t in trajectories]
    reward = np.array([one.sum() for one in turns])
    groups = np.arange(len(trajectories)) // cfg.rollout.group
    valid = np.array([not t.failed for t in trajectories])
    counts = [len(t.searches) for t in kept]
    learned = trainer.learner.learn(step, [t.segments for t in kept], turns[own], groups[own], valid[own], counts)
    ended = time.perf_counter()
    means = mean_scores([t for t in trajectories if not t.failed])  # failed searches say nothing about the policy
    searches = [s for t in trajectories for s in t.searches]
    means['searches'] = len(searches) / len(trajectories)  # except that it searched
    tokens = sum(t.response_tokens for t in trajectories)
    measured = {
        'reward/mean': float(reward[valid].mean()),
        'reward/std': float(reward[valid].std()),
        **{f'reward/{name}': means.pop(name) for name in METRICS},
        'reward/earlier_turns': _mean([one[:-1].sum() for one, counts in zip(turns, valid, strict=True) if counts]),
        **{f'rollout/{name}': value for name, value in means.items()},
        **_information(trajectories),
        'rollout/noise': noise,
        'rollout/noisy_share': _mean([label for s in searches for label in s.labels]),
        'rollout/mislabelled': _mean([s.mislabelled for s in searches if s.mislabelled is not None]),
        'rollout/attempts_useful': _mean([s.attempts for s in searches if s.labels and not s.noisy]),
        'rollout/attempts_noisy': _mean([s.attempts for s in searches if s.noisy]),
        'rollout/failed': float(1 - valid.mean()),
        'rollout/search_failed': _mean([bool(s.failure) for s in searches]),
        'rollout/extra_rounds': rounds,
        **{f'loss/{name}': value for name, value in learned.metrics.items()},
        'speed/tokens_per_second': tokens / (ended - began),
        'speed/rollout_seconds': collected - began,
        'speed/update_seconds': ended - collected,
        'speed/device_seconds': (ended - began) * trainer.mesh.size,
        'cost/queries': len(searches),
        'cost/failed_queries': sum(bool(s.failure) for s in searches),
        'cost/tokens': trainer.generated_tokens - tokens_before,
    }
    if cfg.rl.dynamic_sampling and valid[own].any():
        measured['reward/kept'] = float(reward[own][valid[own]].mean())
    if cfg.rollout.group > 1:
        measured['rollout/zero_variance_groups'] = advantages.zero_variance_share(reward, groups, valid)
    written = [
        as_row(
            t,
            trainer.model.tokenizer,
            gaps,
            step=step,
            reward=float(r.sum()),
            turn_rewards=r.tolist(),
            advantage=float(a),
        )
        for t, r, a, gaps in zip(kept, turns[own], learned.advantages, learned.gaps, strict=True)
    ]
    return measured, written


def _information(trajectories: Sequence[Trajectory]) -> dict[str, float]:
    """Metrics of what searches tell, {} where it is not rewarded."""
    gains = [gain for t in trajectories for gain in t.information]
    known = [gain for gain in gains if gain is not None]
    found = {'rollout/information': _mean(known), 'rollout/information_missing': len(gains) - len(known)}
    return found if gains else {}


def _mean(values: Sequence[float]) -> float:
    """The mean, or 0 without values."""
    return float(np.mean(values)) if values else 0.0


def _evaluate_at(trainer: Trainer, workdir: pathlib.Path, writer, step: int):
    """Evaluates after a step; questions on disk are not asked again, unless their search failed."""
    if not trainer.test_questions:
        return
    path = report.evaluation_file(workdir, step)
    found = {row['id']: row for row in counted(jsonl.shared_jsonl(path))}
    missing = [question for question in trainer.test_questions if question.id not in found]
    if missing:
        made = trainer.evaluate(missing)
        check_searches(made, f'evaluation after step {step}', len(found))
        found |= {t.question.id: as_row(t, trainer.model.tokenizer, step=step) for t in made}
        if writer is not None:
            jsonl.write_jsonl(path, [found[question.id] for question in trainer.test_questions])
    if writer is None:
        return
    means = report.evaluation_means([*found.values()])
    if missing or not report.has_evaluation(workdir, step):
        writer.write(step, means)
    progress.log(f'evaluation after step {step}: {report.evaluation_text(means)}, {trainer.cfg.engine.kind}')
