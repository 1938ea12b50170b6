"""The learner: from trajectories and their rewards to updated weights, by any of the algorithms.

    trajectories --flatten, weigh--> sequences --pack--> batch --score, values--> advantages of tokens --> updates

Everything is computed once for all trajectories; mini-batches are parts of it.
"""

import dataclasses
import itertools
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from zerosearch_jax import progress, sharding
from zerosearch_jax.models import attention, lora
from zerosearch_jax.policy import PolicyConfig, Trainable, make_trainable
from zerosearch_jax.pretrained import Model
from zerosearch_jax.rl import algorithms, critic, losses, state
from zerosearch_jax.rl.advantages import gae, whiten, zero_variance
from zerosearch_jax.rl.config import RLConfig
from zerosearch_jax.rl.step import Fit, fit_memory, free_bytes, make_update, own_bytes, score
from zerosearch_jax.text.trajectory import Batch, Segment, TokenSequence, flatten, pack, padding_share
from zerosearch_jax.train import credit
from zerosearch_jax.train.config import Config

MICRO = 64  # trajectories of the published system's micro-batch


class Learned(NamedTuple):
    """The results of a step: metrics, or {} if nothing was trained on; and for each of its N trajectories ..."""

    metrics: dict[str, float]
    advantages: np.ndarray  # ... the mean advantage of its tokens [N], 0 if it was not trained on
    # ... the trainer's log-prob of each sampled token minus the engine's, before the update
    gaps: list[np.ndarray | None]


class Learner:
    """Owns the policy's training state, the reference and the critic, and the programs that update them.

    Args:
      cfg: of the run; the budgets of config.rollout determine the shapes into which trajectories are packed.
      model: the policy's model.
      trainable: its weights, which are donated.
      mesh: of the weights.
    """

    def __init__(self, cfg: Config, model: Model, trainable: Trainable, mesh: jax.sharding.Mesh):
        rl, rollout = cfg.rl, cfg.rollout
        self.rl, self.critic_cfg, self.mesh = rl, cfg.critic, mesh
        self.frozen, self._model_cfg, self._temperature = trainable.frozen, model.cfg, rollout.temperature
        self._trajectories = rollout.questions * rollout.group
        _, self._minibatch = rl.updates(self._trajectories)
        self._longest = rollout.prompt_tokens + rollout.response_tokens
        self._scores_itself = rl.rescores or bool(cfg.reward.information)
        algorithm = algorithms.find_algorithm(rl.algorithm)
        self.aggregate = rl.aggregate or algorithm.aggregate
        self.attention = attention.choose(model.cfg, cfg.policy.dtype, mesh, rl.row_length)
        self._compute = losses.Compute(cfg.policy.dtype, rl.remats[0], rl.chunk, self.attention.name)
        # the reference is a copy of the initial policy, because the state's buffers are donated, in the dtype of its
        # computation
        dtype = cfg.policy.dtype
        self._reference = jax.tree.map(lambda x: jnp.array(x, dtype), trainable.params) if rl.kl else None
        denominators = {'budget': self._minibatch * rollout.response_tokens, 'micro': -(-self._minibatch // MICRO)}
        loss = _loss_config(rl, algorithm.ratio, float(denominators.get(self.aggregate, 0)))
        tx = state.optimizer(cfg.optimizer, rl.steps)
        self.shardings = {'policy': state.state_shardings(trainable.layout, tx, mesh)}
        # not of `model`, whose weights would stay with it
        self._make_update = lambda compute: make_update(
            self._model_cfg, tx, self.shardings['policy'], loss, compute, self._temperature, algorithm.loss
        )
        with jax.set_mesh(mesh):
            critic_params = self._open_critic(trainable, cfg.seed) if rl.has_critic else None
            self.state = {'policy': state.create(trainable.params, tx, self.shardings['policy'])}
            if critic_params is not None:
                self.state['critic'] = state.create(critic_params, self._critic_tx, self.shardings['critic'])
        self._open_programs(Fit(rl.remats[0], rl.rows_per_micro or sharding.shard_count('batch', mesh)))
        left_open = rl.remat == 'auto' or not rl.rows_per_micro
        self._settled = not left_open or sharding.from_first_process(free_bytes(mesh)) is None

    def _open_critic(self, policy: Trainable, seed: int) -> dict:
        cfg, model_cfg = self.critic_cfg, self._model_cfg
        layout = critic.layout(model_cfg)
        params = sharding.init(layout, jax.random.key(seed), self.mesh)
        self._critic_frozen = {}
        if cfg.trunk == 'own':
            # the initial policy, copied because the buffers of both states are donated
            initial = jax.jit(lora.merge)(lora.combine(policy.frozen, policy.params))
            start = Model(model_cfg, None, jax.tree.map(lambda x: x.copy(), initial))
            trunk = make_trainable(start, PolicyConfig(lora_rank=cfg.lora_rank), self.mesh, seed + 1)
            layout, params, self._critic_frozen = trunk.layout | layout, trunk.params | params, trunk.frozen
        rates = {'learning_rate': cfg.learning_rate, 'warmup_steps': cfg.warmup_steps, 'weight_decay': 0.0}
        self._critic_tx = state.optimizer(state.OptimizerConfig(**rates), self.rl.steps)
        self.shardings['critic'] = state.state_shardings(layout, self._critic_tx, self.mesh)
        return params

    def _open_programs(self, fit: Fit):
        """Creates the programs of this fit, which compile when they are first called."""
        self._fit, self._settled = fit, True
        self._compute = dataclasses.replace(self._compute, remat=fit.remat)
        self._update = self._make_update(self._compute)
        if self.rl.has_critic:
            shardings, clip = self.shardings['critic'], self.critic_cfg.clip
            self._critic_update = critic.make_update(self._model_cfg, self._critic_tx, shardings, clip, self._compute)

    @property
    def fit(self) -> Fit | None:
        """The settings with which updates fit into memory; None: the first update will find them."""
        return self._fit if self._settled else None

    @property
    def place(self) -> str:
        """Mesh and devices, on which a fit depends."""
        return f'{"x".join(map(str, self.mesh.devices.shape))} {self.mesh.devices.flat[0].device_kind}'

    def resume(self, fit: Sequence | None):
        """Sets the fit of a resumed run, if the configuration leaves it open: another fit rounds differently."""
        if fit:
            remat = fit[0] if self.rl.remat == 'auto' else self.rl.remat
            self._open_programs(Fit(remat, self.rl.rows_per_micro or fit[1]))

    def _settle(self):
        """Chooses `remat` and `rows_per_micro`, if config.rl leaves them open, by the memory that is free now."""
        free = int(0.95 * sharding.from_first_process(free_bytes(self.mesh)))  # allocators waste some
        most = -(-self._minibatch // (self.rl.row_length // self._longest))
        need = fit_memory(self._compile, free, self.rl.remats, self._fit.rows, self.rl.rows_per_micro or most)
        said = f'rl.remat={self._fit.remat}, rl.rows_per_micro={self._fit.rows}'
        progress.log(f'{said}: an update takes {need / 2**30:.1f} of {free / 2**30:.1f} GiB that are free')

    def _compile(self, fit: Fit) -> int:
        """Compiles the policy's update; returns the bytes that it needs, too many if a TPU's compiler refuses it."""
        self._open_programs(fit)
        batch, _ = self._pack([], self._minibatch)
        try:
            self._update = self._update.lower(self._before('policy', 1), self.frozen, batch).compile()
        except jax.errors.JaxRuntimeError as error:
            if 'RESOURCE_EXHAUSTED' not in str(error) or fit.remat == self.rl.remats[-1]:
                raise
            return 2**62
        return own_bytes(self._update)

    def prepare(self):
        """Compiles the programs of a step before the first one; call it when all else in memory is loaded."""
        with jax.set_mesh(self.mesh):
            if self._settled:
                self._compile(self._fit)
            else:
                self._settle()
            batch, _ = self._pack([], self._trajectories)
            scored = [self._reference] if self._reference is not None else []
            for params in scored + [self.state['policy'].params] * self._scores_itself:
                arguments = params, self.frozen, batch, self._temperature
                score.lower(*arguments, cfg=self._model_cfg, compute=self._compute).compile()

    @property
    def policy_params(self) -> dict:
        """The policy's weights, adapters beside their kernels."""
        return lora.combine(self.frozen, self.state['policy'].params)

    def logprobs(self, sequences: Sequence[TokenSequence]) -> list[np.ndarray]:
        """Log-probs of the weighted tokens of any number of sequences under the present policy."""
        params, size = self.state['policy'].params, self._trajectories
        with jax.set_mesh(self.mesh):
            parts = [self._score(params, sequences[i : i + size]) for i in range(0, len(sequences), size)]
        return [*itertools.chain(*parts)]

    # ---------------------------------------------------------------- one step

    def learn(
        self,
        step: int,
        episodes: Sequence[Sequence[Segment]],
        rewards: Sequence[float | np.ndarray],
        groups: np.ndarray,
        valid: np.ndarray,
        searches: Sequence[int] | None = None,
    ) -> Learned:
        """Updates on trajectories; if nothing is left to train on, nothing changes.

        Args:
          step: from 1; schedules follow it.
          episodes: segments of each trajectory.
          rewards: for each trajectory one number, or one for each turn.
          groups: int [N], the question of each.
          valid: bool [N]; trajectories with a failed search are not trained on.
          searches: of each trajectory, for rl.deepest: those that it leaves out count in the statistics of their groups
            alone; None: all are trained on.
        """
        totals = np.array([np.sum(reward) for reward in rewards])
        if self.rl.drop_zero_variance:
            valid = valid & ~zero_variance(totals, groups, valid)
        trained = np.flatnonzero(valid)
        learned = Learned({}, np.zeros(len(rewards), np.float32), [None] * len(rewards))
        chosen = valid if searches is None else credit.deepest(self.rl.deepest, searches, valid)
        kept = np.flatnonzero(chosen[trained])
        if not len(kept):
            return learned
        on_documents = {'masked': 0.0, 'policy': 1.0, 'likelihood': self.rl.likelihood_weight}[self.rl.observations]
        sampled = [flatten(episodes[i], on_documents) for i in trained]
        with jax.set_mesh(self.mesh):
            if not self._settled:
                self._settle()
            sequences, importance, gap = self._recomputed(sampled)
            reference = self._reference_logprobs(sequences)
            penalties, divergence = credit.k1_penalties(self.rl, sequences, reference)
            earned, targets = [credit.earned(self.rl, episodes[i], rewards[i]) for i in trained], None
            if self.rl.has_critic:
                over = [flatten(episodes[i], observations=self.critic_cfg.over_observations) for i in trained]
                token_rewards = [one.by_token(p) for one, p in zip(earned, penalties, strict=True)]
                advantages, targets = self._critic_advantages(over, token_rewards)
            else:
                advantages = credit.estimate(self.rl, earned, totals, groups, valid, penalties)
            token_advantages = [credit.per_token(self.rl, s, a) for s, a in zip(sequences, advantages, strict=True)]
            weighed = [a * w for a, w in zip(token_advantages, importance, strict=True)]
            parts = (sequences, weighed, reference, *(targets or ()))
            measured, logprobs = self._updates(step, *(part and [part[k] for k in kept] for part in parts))
        learned.metrics.update(measured | divergence | gap)
        acted = {k: credit.sampled(sampled[k]) for k in kept}
        learned.advantages[trained[kept]] = [
            token_advantages[k][acted[k]].mean() if acted[k].any() else 0.0 for k in kept
        ]
        for k, own in zip(kept, logprobs, strict=False):
            engine = sampled[k].logprobs[sampled[k].weights > 0]
            learned.gaps[trained[k]] = (own - engine)[acted[k]]
        return learned

    def _pack(self, sequences: Sequence[TokenSequence], trajectories: int) -> tuple[Batch, algorithms.TokenMap]:
        """Packs sequences in the shape for `trajectories` trajectories, whatever their lengths, and maps tokens."""
        rl, token_map = self.rl, algorithms.TokenMap(sequences)
        rows = -(-trajectories // (rl.row_length // self._longest))
        batch = pack(
            sequences,
            token_map.numbers,
            row_length=rl.row_length,
            rows_per_micro=self._fit.rows,
            micro_batches=-(-rows // self._fit.rows),
        )
        token_map.locate(batch)
        return batch, token_map

    def _reference_logprobs(self, sequences: list[TokenSequence]) -> list[np.ndarray] | None:
        """The reference's log-probs of every weighted token, one array for each sequence."""
        return None if self._reference is None else self._score(self._reference, sequences)

    def _score(self, params: dict, sequences: Sequence[TokenSequence]) -> list[np.ndarray]:
        """Log-probs of every weighted token, one array for each sequence."""
        batch, token_map = self._pack(sequences, self._trajectories)
        logprobs = score(params, self.frozen, batch, self._temperature, cfg=self._model_cfg, compute=self._compute)
        return token_map.gather(sharding.to_host(logprobs))

    def _recomputed(self, sequences: list[TokenSequence]):
        """The effect of the trainer's log-probs: new old log-probs, importance weights, the gap to the engine."""
        if not self.rl.rescores:  # the loss computes the importance weights
            return sequences, [1.0] * len(sequences), {}
        return credit.recomputed(sequences, self._score(self.state['policy'].params, sequences), self.rl.importance_cap)

    def _critic_advantages(self, sequences: list[TokenSequence], rewards: list[np.ndarray]):
        """Advantages of the sampled tokens, and the critic's training data: sequences, returns and old values.

        Advantages are estimated on the weighted tokens of `sequences`.
        """
        cfg = self.critic_cfg
        batch, token_map = self._pack(sequences, self._trajectories)
        packed = critic.values(
            self.state['critic'].params, self._trunk(), batch, cfg=self._model_cfg, compute=self._compute
        )
        values = token_map.gather(sharding.to_host(packed))
        advantages, returns = [], []
        for sequence, value, reward in zip(sequences, values, rewards, strict=True):
            token_rewards = np.zeros(len(value))
            token_rewards[credit.sampled(sequence)] = reward
            one = gae(token_rewards, value, discount=cfg.discount, trace=cfg.trace)
            advantages.append(one[0])
            returns.append(one[1])
        sampled = [a[credit.sampled(s)] for a, s in zip(whiten(advantages), sequences, strict=True)]
        return sampled, (sequences, returns, values)

    def _trunk(self) -> dict:
        """The weights under the value head that the critic does not train."""
        return self._critic_frozen if self.critic_cfg.trunk == 'own' else self.policy_params

    def _updates(self, step: int, sequences, token_advantages, reference, *targets):
        """Metrics of all updates, and the log-probs from the first update, for its sequences."""
        measured: list[dict[str, float]] = []
        first: list[np.ndarray] = []
        updates = -(-len(sequences) // self._minibatch)
        ends = [len(sequences) * i // updates for i in range(updates + 1)]
        parts = [slice(*pair) for pair in itertools.pairwise(ends)] * self.rl.epochs
        for part in progress.track(parts, f'step {step} updates', 'update'):
            row = self._learn_values(step, *(x[part] for x in targets)) if targets else {}
            if not targets or step > self.critic_cfg.alone_steps:
                references = reference and reference[part]
                weighed = algorithms.weigh_tokens(sequences[part], self.aggregate, MICRO)
                learned, logprobs = self._learn_policy(step, weighed, token_advantages[part], references)
                row |= learned
                first = first or logprobs
            measured.append(row)
        return {name: _summary(name, [row[name] for row in measured]) for name in measured[-1]}, first

    def _before(self, role: str, step: int) -> state.TrainState:
        """The state of a role, with the number of steps set to those before `step`."""
        steps_done = jax.device_put(np.int32(step - 1), self.shardings[role].step)
        return self.state[role].replace(step=steps_done)

    def _learn_policy(self, step: int, sequences, token_advantages, reference):
        """Makes one update; returns its metrics, and the weighted tokens' log-probs before it, by sequence."""
        batch, token_map = self._pack(sequences, self._minibatch)
        padding = padding_share(batch)
        batch = batch.replace(advantages=token_map.scatter(token_advantages))
        if reference is not None:
            batch = batch.replace(ref_logprobs=token_map.scatter(reference))
        self.state['policy'], measured = self._update(self._before('policy', step), self.frozen, batch)
        logprobs = token_map.gather(sharding.to_host(measured.pop('logprobs')))
        return {name: float(value) for name, value in measured.items()} | {'padding': padding}, logprobs

    def _learn_values(self, step: int, sequences, returns, values) -> dict[str, float]:
        batch, token_map = self._pack(sequences, self._minibatch)
        self.state['critic'], measured = self._critic_update(
            self._before('critic', step), self._trunk(), batch, token_map.scatter(returns), token_map.scatter(values)
        )
        explained = _explained(np.concatenate(returns), np.concatenate(values))
        return {f'value_{name}': float(value) for name, value in measured.items()} | {'value_explained': explained}


def _loss_config(rl: RLConfig, ratio: str, denominator: float) -> losses.LossConfig:
    """The policy loss of a run; the k1 estimator of the KL is subtracted from the reward, not added to the loss."""
    in_reward = rl.kl_estimator == 'k1'
    return losses.LossConfig(
        clip=rl.clip,
        clip_high=rl.clip_high,
        ratio=ratio,
        importance_cap=0.0 if rl.rescores else rl.importance_cap,
        kl=0.0 if in_reward else rl.kl,
        kl_estimator='k3' if in_reward else rl.kl_estimator,
        entropy=rl.entropy,
        denominator=denominator,
    )


def _explained(returns: np.ndarray, values: np.ndarray) -> float:
    """1 - Var(returns - values) / Var(returns); 0 if the returns do not vary."""
    variance = returns.var() if len(returns) else 0.0
    return float(1 - (returns - values).var() / variance) if variance > 1e-12 else 0.0


def _summary(name: str, values: list[float]) -> float:
    return float(max(values) if name.endswith('_max') else np.mean(values))
