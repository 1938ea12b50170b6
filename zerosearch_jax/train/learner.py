"""The learner: from trajectories and their rewards to updated weights, by any of the algorithms.

    trajectories --flatten, weigh--> sequences --pack--> batch --score, values--> advantages a token --> updates

Everything is computed once for all trajectories; mini-batches then take their part of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from zerosearch_jax import pretrained, progress, sharding
from zerosearch_jax.models import attention, lora
from zerosearch_jax.policy import PolicyConfig, Trainable, make_trainable
from zerosearch_jax.rl import advantages as adv
from zerosearch_jax.rl import algorithms, critic, losses, state, step
from zerosearch_jax.rl.config import CriticConfig, RLConfig
from zerosearch_jax.text.trajectory import Batch, Segment, TokenSequence, flatten, pack, padding_share

MICRO = 64  # trajectories of the published system's micro-batch


class Learned(NamedTuple):
    """What came of a step: metrics, {} where nothing was left to train on; and of each of its N trajectories ..."""

    metrics: dict[str, float]
    advantages: np.ndarray  # ... the mean advantage of its tokens [N], 0 where it was not trained on
    # ... of each sampled token the trainer's log-prob less the engine's, before the update
    gaps: list[np.ndarray | None]


class Learner:
    """Owns the policy's training state, the reference and the critic.

    Args:
      rl: algorithm and loss.
      critic_cfg: used by ppo, and whatever else has no advantage of its own.
      optimizer: of the policy.
      model: the policy's model.
      trainable: its weights; taken over (donated).
      mesh: where they are.
      dtype: compute dtype.
      temperature: of the rollouts.
      trajectories: of a step at most.
      longest: tokens of one, prompt included, at most.
      response_tokens: budget of one, for the aggregate 'budget'.
      seed: of new weights.
    """

    def __init__(
        self,
        rl: RLConfig,
        critic_cfg: CriticConfig,
        optimizer: state.OptimizerConfig,
        model: pretrained.Model,
        trainable: Trainable,
        mesh: jax.sharding.Mesh,
        *,
        dtype: str,
        temperature: float,
        trajectories: int,
        longest: int,
        response_tokens: int,
        seed: int,
    ):
        self.rl, self.critic_cfg, self.mesh = rl, critic_cfg, mesh
        self.frozen, self._model_cfg, self._temperature = trainable.frozen, model.cfg, temperature
        own = algorithms.find(rl.algorithm)
        self._advantage = own.advantage
        self.aggregate = rl.aggregate or own.aggregate
        self._size = min(rl.minibatch or trajectories, trajectories)
        self._trajectories, self._longest = trajectories, longest
        self.form = attention.choose(model.cfg, dtype, mesh, rl.row_length)
        self._compute = losses.Compute(dtype, rl.remat, rl.chunk, self.form.name)
        # the reference is the initial policy; a copy, because the state's buffers are donated, and in the dtype that
        # it is computed in
        self._reference = jax.tree.map(lambda x: jnp.array(x, dtype), trainable.params) if rl.kl else None
        loss = losses.LossConfig(
            clip=rl.clip,
            clip_high=rl.clip_high,
            ratio=own.ratio,
            importance_cap=rl.importance_cap,
            kl=rl.kl if rl.kl_estimator != 'k1' else 0.0,
            kl_estimator=rl.kl_estimator if rl.kl_estimator != 'k1' else 'k3',
            entropy=rl.entropy,
            denominator={'budget': float(self._size * response_tokens), 'micro': -(-self._size // MICRO)}.get(
                self.aggregate, 0.0
            ),
        )
        tx = state.optimizer(optimizer, rl.steps)
        self.places = {'policy': state.state_shardings(trainable.layout, tx, mesh)}
        self._update = step.make_update(
            model.cfg, tx, self.places['policy'], loss, self._compute, temperature, own.loss
        )
        with jax.set_mesh(mesh):
            critic_params = self._open_critic(trainable, seed) if rl.has_critic else None
            self.state = {'policy': state.create(trainable.params, tx, self.places['policy'])}
            if critic_params is not None:
                self.state['critic'] = state.create(critic_params, self._critic_tx, self.places['critic'])

    def _open_critic(self, policy: Trainable, seed: int) -> dict:
        cfg, model_cfg = self.critic_cfg, self._model_cfg
        layout = critic.layout(model_cfg)
        params = sharding.init(layout, jax.random.key(seed), self.mesh)
        self._critic_frozen = {}
        if cfg.trunk == 'own':
            # the initial policy, copied because the buffers of both states are donated
            initial = jax.jit(lora.merge)(lora.combine(policy.frozen, policy.params))
            start = pretrained.Model(model_cfg, None, jax.tree.map(lambda x: x.copy(), initial))
            split = make_trainable(start, PolicyConfig(lora_rank=cfg.lora_rank), self.mesh, seed + 1)
            layout, params, self._critic_frozen = split.layout | layout, split.params | params, split.frozen
        optimizer = state.OptimizerConfig(
            learning_rate=cfg.learning_rate, warmup_steps=cfg.warmup_steps, weight_decay=0.0
        )
        self._critic_tx = state.optimizer(optimizer, self.rl.steps)
        self.places['critic'] = state.state_shardings(layout, self._critic_tx, self.mesh)
        self._critic_update = critic.make_update(
            model_cfg, self._critic_tx, self.places['critic'], cfg.clip, self._compute
        )
        return params

    @property
    def policy_params(self) -> dict:
        """The policy's weights, adapters beside their kernels."""
        return lora.combine(self.frozen, self.state['policy'].params)

    # ---------------------------------------------------------------- one step

    def learn(
        self,
        number: int,
        episodes: Sequence[Sequence[Segment]],
        rewards: np.ndarray,
        groups: np.ndarray,
        valid: np.ndarray,
    ) -> Learned:
        """Updates on trajectories; where nothing is left to train on, nothing changes.

        Args:
          number: of the step, from 1; schedules follow it.
          episodes: segments of each trajectory.
          rewards: float [N].
          groups: int [N], the question of each.
          valid: bool [N]; those that the outside failed are not trained on.
        """
        if self.rl.drop_zero_variance:
            valid = valid & ~adv.zero_variance(rewards, groups, valid)
        kept = np.flatnonzero(valid)
        learned = Learned({}, np.zeros(len(rewards), np.float32), [None] * len(rewards))
        if not len(kept):
            return learned
        plain = [flatten(episodes[i], observations=self.rl.observations != 'masked') for i in kept]
        with jax.set_mesh(self.mesh):
            reference = self._reference_logprobs(plain)
            penalties, divergence = self._penalties(plain, reference)
            targets = None
            if self._advantage is None:
                sequences = [flatten(episodes[i], observations=self.critic_cfg.over_observations) for i in kept]
                advantages, targets = self._critic_advantages(sequences, rewards[kept], penalties)
            else:
                shaped = rewards.astype(np.float64)
                shaped[kept] -= [p.sum() for p in penalties]
                advantages = self._advantage(shaped, groups, valid)[kept]
            token_advantages = [self._spread(s, a) for s, a in zip(plain, advantages, strict=True)]
            measured, logprobs = self._updates(number, plain, token_advantages, reference, targets)
        learned.metrics.update(measured | divergence)
        learned.advantages[kept] = [a.mean() if len(a) else 0.0 for a in token_advantages]
        for i, sequence, own in zip(kept, plain, logprobs, strict=False):
            learned.gaps[i] = (own - sequence.logprobs[sequence.weights > 0])[_sampled(sequence)]
        return learned

    def _spread(self, sequence: TokenSequence, advantage: np.ndarray) -> np.ndarray:
        """A trajectory's advantage, or one a sampled token, on all its weighted tokens."""
        own = _sampled(sequence)
        other = advantage if self.rl.observations == 'policy' else self.rl.likelihood_weight
        placed = np.full(own.shape, other, np.float32)
        placed[own] = advantage
        return placed

    def _pack(self, sequences: Sequence[TokenSequence], numbers: Sequence, trajectories: int) -> Batch:
        """Packed in one shape for so many trajectories, whatever their number and lengths."""
        rl = self.rl
        rows = -(-trajectories // (rl.row_length // self._longest))
        return pack(
            sequences,
            numbers,
            row_length=rl.row_length,
            rows_per_micro=rl.rows_per_micro,
            micro_batches=-(-rows // rl.rows_per_micro),
        )

    def _mapped(self, sequences: Sequence[TokenSequence], trajectories: int) -> tuple[Batch, algorithms.TokenMap]:
        places = algorithms.TokenMap(sequences)
        batch = self._pack(sequences, places.numbers, trajectories)
        places.find(batch)
        return batch, places

    def _reference_logprobs(self, sequences: list[TokenSequence]) -> list[np.ndarray] | None:
        """Of every weighted token, a sequence's in one array."""
        if self._reference is None:
            return None
        batch, places = self._mapped(sequences, self._trajectories)
        found = step.score(
            self._reference, self.frozen, batch, self._temperature, cfg=self._model_cfg, compute=self._compute
        )
        return places.gather(sharding.to_host(found))

    def _penalties(self, sequences: list[TokenSequence], reference: list[np.ndarray] | None):
        """What k1 takes off the reward of every sampled token: kl (log pi - log ref); and the mean divergence."""
        if reference is None or self.rl.kl_estimator != 'k1':
            return [np.zeros(int(_sampled(s).sum()), np.float32) for s in sequences], {}
        gaps = [(s.logprobs[s.weights > 0] - r)[_sampled(s)] for s, r in zip(sequences, reference, strict=True)]
        return [self.rl.kl * gap for gap in gaps], {'kl': float(np.concatenate(gaps).mean())}

    def _critic_advantages(self, sequences: list[TokenSequence], rewards: np.ndarray, penalties: list[np.ndarray]):
        """Advantages of the sampled tokens; and what the critic learns from: sequences, returns and old values.

        The weighted tokens of `sequences` are those that advantages are estimated on.
        """
        cfg = self.critic_cfg
        batch, places = self._mapped(sequences, self._trajectories)
        found = critic.values(
            self.state['critic'].params, self._trunk(), batch, cfg=self._model_cfg, compute=self._compute
        )
        values = places.gather(sharding.to_host(found))
        advantages, returns = [], []
        for sequence, value, reward, penalty in zip(sequences, values, rewards, penalties, strict=True):
            token_rewards = np.zeros(len(value))
            token_rewards[_sampled(sequence)] -= penalty
            token_rewards[-1:] += reward
            one = adv.gae(token_rewards, value, discount=cfg.discount, trace=cfg.trace)
            advantages.append(one[0])
            returns.append(one[1])
        own = [a[_sampled(s)] for a, s in zip(adv.whiten(advantages), sequences, strict=True)]
        return own, (sequences, returns, values)

    def _trunk(self) -> dict:
        """The weights under the value head that the critic does not train."""
        return self._critic_frozen if self.critic_cfg.trunk == 'own' else self.policy_params

    def _updates(self, number: int, plain, token_advantages, reference, targets):
        """Metrics of all updates, and the log-probs that the first one found, of the sequences that it was made on."""
        weighed = algorithms.weigh(plain, self.aggregate, MICRO)
        measured: list[dict[str, float]] = []
        first: list[np.ndarray] = []
        starts = [*range(0, len(weighed), self._size)] * self.rl.epochs
        for start in progress.over(starts, f'step {number} updates', 'update'):
            part = slice(start, start + self._size)
            row = self._learn_values(number, *(x[part] for x in targets)) if targets else {}
            if not targets or number > self.critic_cfg.alone_steps:
                given = weighed[part], token_advantages[part], reference and reference[part]
                learned, logprobs = self._learn_policy(number, *given)
                row |= learned
                first = first or logprobs
            measured.append(row)
        return {name: _summary(name, [row[name] for row in measured]) for name in measured[-1]}, first

    def _at(self, role: str, number: int) -> state.TrainState:
        """The state of a role before step `number`, of whose updates some may be done."""
        step_done = jax.device_put(np.int32(number - 1), self.places[role].step)
        return self.state[role].replace(step=step_done)

    def _learn_policy(self, number: int, sequences, token_advantages, reference):
        """One update: its metrics, and the weighted tokens' log-probs before it, a sequence's in one array."""
        batch, places = self._mapped(sequences, self._size)
        padding = padding_share(batch)
        batch = batch.replace(advantages=places.scatter(token_advantages))
        if reference is not None:
            batch = batch.replace(ref_logprobs=places.scatter(reference))
        self.state['policy'], measured = self._update(self._at('policy', number), self.frozen, batch)
        logprobs = places.gather(sharding.to_host(measured.pop('logprobs')))
        return {name: float(value) for name, value in measured.items()} | {'padding': padding}, logprobs

    def _learn_values(self, number: int, sequences, returns, values) -> dict[str, float]:
        batch, places = self._mapped(sequences, self._size)
        self.state['critic'], measured = self._critic_update(
            self._at('critic', number), self._trunk(), batch, places.scatter(returns), places.scatter(values)
        )
        explained = _explained(np.concatenate(returns), np.concatenate(values))
        return {f'value_{name}': float(value) for name, value in measured.items()} | {'value_explained': explained}


def _sampled(sequence: TokenSequence) -> np.ndarray:
    """Of the weighted tokens, those that the policy sampled."""
    return ~np.isnan(sequence.logprobs[sequence.weights > 0])


def _explained(returns: np.ndarray, values: np.ndarray) -> float:
    """1 - Var(returns - values) / Var(returns); 0 where the returns do not vary."""
    variance = returns.var() if len(returns) else 0.0
    return float(1 - (returns - values).var() / variance) if variance > 1e-12 else 0.0


def _summary(name: str, values: list[float]) -> float:
    return float(max(values) if name.endswith('_max') else np.mean(values))
