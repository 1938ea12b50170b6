"""The learner: from trajectories and their rewards to updated weights, by any of the algorithms.

    trajectories --flatten, weigh--> sequences --pack--> batch --score, values--> advantages a token --> updates

Everything is computed once for all trajectories; mini-batches then take their part of it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Literal

import jax
import numpy as np

from zerosearch_jax import roles, sharding, state
from zerosearch_jax.models import attention, lora
from zerosearch_jax.rl import advantages as adv
from zerosearch_jax.rl import algorithms, critic, losses, step
from zerosearch_jax.text.trajectory import Batch, Segment, TokenSequence, flatten, pack, padding_share


@dataclasses.dataclass(frozen=True)
class RLConfig:
    """Algorithm, loss and how the update is computed."""

    steps: int = 100
    algorithm: Literal[
        'reinforce', 'reinforce_baseline', 'reinforce_plus_plus', 'rloo', 'grpo', 'dr_grpo', 'gspo', 'ppo'
    ] = 'grpo'
    # how tokens are averaged: over all, over sequences of equal weight, by what the budget of a step allows, or as the
    # published system does (algorithms.weigh); '': as the algorithm does
    aggregate: Literal['', 'token', 'sequence', 'budget', 'micro'] = ''
    clip: float = 0.2
    clip_high: float = 0.0  # of the ratio above 1, where it differs (DAPO: 0.28); 0: clip
    importance_cap: float = 0.0  # truncated importance sampling between engine and trainer, e.g. 2; 0: off
    kl: float = 0.001  # weight of the divergence from the initial policy; 0: no reference
    kl_estimator: Literal['k1', 'k2', 'k3'] = 'k3'  # k1: taken off the reward; k2, k3: in the loss
    entropy: float = 0.0
    drop_zero_variance: bool = False  # leave out groups whose rewards are all equal
    dynamic_sampling: int = 0  # rounds of new questions at most, in place of such groups (DAPO)
    observations: Literal['masked', 'policy', 'likelihood'] = 'masked'  # whether documents are trained on, and how
    likelihood_weight: float = 0.01  # of the documents' cross-entropy
    minibatch: int = 0  # trajectories an optimizer step; 0: all
    epochs: int = 1  # passes over a step's trajectories
    row_length: int = 1024  # tokens of a packed row; at least prompt_tokens + response_tokens of config.rollout
    rows_per_micro: int = 1  # rows of a micro-batch; a multiple of data x fsdp
    remat: Literal['none', 'dots', 'full'] = 'none'
    chunk: int = 512  # tokens of a row whose logits exist at once

    def __post_init__(self):
        for name in ('steps', 'row_length', 'rows_per_micro', 'chunk', 'epochs'):
            if getattr(self, name) < (name != 'steps'):
                raise ValueError(f'{name} must be positive, got {getattr(self, name)}')
        if self.algorithm == 'ppo' and self.drop_zero_variance:
            raise ValueError('drop_zero_variance is for algorithms that compare within a group, not for ppo')
        if self.importance_cap and (self.epochs > 1 or self.minibatch):
            raise ValueError('importance_cap is for one update a step: set epochs=1 and minibatch=0')


@dataclasses.dataclass(frozen=True)
class CriticConfig:
    """The critic of PPO."""

    trunk: Literal['own', 'shared'] = 'own'  # a copy of its own, which is trained; or a head on the policy as it is
    lora_rank: int = 0  # of its own copy; 0: all weights are trained
    learning_rate: float = 1e-5
    warmup_steps: int = 0
    alone_steps: int = 0  # steps in which the critic learns and the policy does not yet
    clip: float = 0.5  # of a value's move away from the one at rollout time; 0: none
    discount: float = 1.0
    trace: float = 1.0  # lambda of the generalized advantage estimation
    over_observations: bool = False  # estimate over documents too, as the published system does (spec D14)


MICRO = 64  # trajectories of the published system's micro-batch


class Learner:
    """Owns the policy's training state, the reference and the critic.

    Args:
      rl: algorithm and loss.
      critic_cfg: used by ppo.
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
        model: roles.Model,
        trainable: roles.Trainable,
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
        own = algorithms.ALGORITHMS[rl.algorithm]
        self.aggregate = rl.aggregate or own.aggregate
        self._size = min(rl.minibatch or trajectories, trajectories)
        self._trajectories, self._longest = trajectories, longest
        self.form = attention.choose(model.cfg, dtype, mesh)
        self._compute = losses.Compute(dtype, rl.remat, rl.chunk, self.form.name)
        # the reference is the initial policy; a copy, because the state's buffers are donated
        self._reference = jax.tree.map(lambda x: x.copy(), trainable.params) if rl.kl else None
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
        self._update = step.make_update(model.cfg, tx, self.places['policy'], loss, self._compute, temperature)
        with jax.set_mesh(mesh):
            critic_params = self._open_critic(model, seed) if rl.algorithm == 'ppo' else None
            self.state = {'policy': state.create(trainable.params, tx, self.places['policy'])}
            if critic_params is not None:
                self.state['critic'] = state.create(critic_params, self._critic_tx, self.places['critic'])

    def _open_critic(self, model: roles.Model, seed: int) -> dict:
        cfg = self.critic_cfg
        layout = critic.layout(model.cfg)
        params = sharding.init(layout, jax.random.key(seed), self.mesh)
        self._critic_frozen = {}
        if cfg.trunk == 'own':
            # its own copy, for the buffers of both states are donated
            model = dataclasses.replace(model, params=jax.tree.map(lambda x: x.copy(), model.params))
            split = roles.trainable(model, roles.PolicyConfig(lora_rank=cfg.lora_rank), self.mesh, seed + 1)
            layout, params, self._critic_frozen = split.layout | layout, split.params | params, split.frozen
        optimizer = state.OptimizerConfig(
            learning_rate=cfg.learning_rate, warmup_steps=cfg.warmup_steps, weight_decay=0.0
        )
        self._critic_tx = state.optimizer(optimizer, self.rl.steps)
        self.places['critic'] = state.state_shardings(layout, self._critic_tx, self.mesh)
        self._critic_update = critic.make_update(
            model.cfg, self._critic_tx, self.places['critic'], cfg.clip, self._compute
        )
        return params

    @property
    def policy_params(self) -> dict:
        """The policy's weights, adapters beside their kernels."""
        return lora.combine(self.frozen, self.state['policy'].params)

    # ---------------------------------------------------------------- one step

    def learn(
        self, episodes: Sequence[Sequence[Segment]], rewards: np.ndarray, groups: np.ndarray, valid: np.ndarray
    ) -> tuple[dict[str, float], np.ndarray]:
        """Updates on trajectories.

        Args:
          episodes: segments of each of them.
          rewards: float [N].
          groups: int [N], the question of each.
          valid: bool [N]; those that the outside failed are not trained on.

        Returns:
          Metrics, and the mean advantage of each trajectory's tokens, [N].
        """
        if self.rl.drop_zero_variance:
            valid = valid & ~adv.zero_variance(rewards, groups, valid)
        kept = np.flatnonzero(valid)
        plain = [flatten(episodes[i], observations=self.rl.observations != 'masked') for i in kept]
        with jax.set_mesh(self.mesh):
            reference = self._reference_logprobs(plain)
            penalties = self._penalties(plain, reference)
            if self.rl.algorithm == 'ppo':
                token_advantages, targets = self._critic_advantages(
                    [flatten(episodes[i], observations=True) for i in kept], plain, rewards[kept], penalties
                )
            else:
                shaped = rewards.astype(np.float64)
                shaped[kept] -= [p.sum() for p in penalties]
                whole = adv.ADVANTAGES[self.rl.algorithm](shaped, groups, valid)
                token_advantages = [
                    np.full(int((s.weights > 0).sum()), whole[i], np.float32) for s, i in zip(plain, kept, strict=True)
                ]
                targets = None
            if self.rl.observations == 'likelihood':
                token_advantages = [
                    np.where(np.isnan(s.logprobs[s.weights > 0]), np.float32(self.rl.likelihood_weight), a)
                    for s, a in zip(plain, token_advantages, strict=True)
                ]
            measured = self._updates(plain, token_advantages, reference, targets)
        means = np.zeros(len(rewards), np.float32)
        means[kept] = [a.mean() if len(a) else 0.0 for a in token_advantages]
        return measured, means

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

    def _penalties(self, sequences: list[TokenSequence], reference: list[np.ndarray] | None) -> list[np.ndarray]:
        """What k1 takes off the reward of every weighted token: kl (log pi - log ref); not for unsampled ones."""
        sampled = [s.logprobs[s.weights > 0] for s in sequences]
        if reference is None or self.rl.kl_estimator != 'k1':
            return [np.zeros(len(s), np.float32) for s in sampled]
        return [np.nan_to_num(self.rl.kl * (s - r)) for s, r in zip(sampled, reference, strict=True)]

    def _critic_advantages(self, everything: list[TokenSequence], plain: list[TokenSequence], rewards, penalties):
        """Advantages of the policy's tokens; and what the critic learns from: sequences, returns and old values."""
        cfg = self.critic_cfg
        batch, places = self._mapped(everything, self._trajectories)
        found = critic.values(
            self.state['critic'].params, self._trunk(), batch, cfg=self._model_cfg, compute=self._compute
        )
        values = places.gather(sharding.to_host(found))
        acted = [~np.isnan(s.logprobs[s.weights > 0]) for s in everything]
        if not cfg.over_observations:  # the sequence of the actions, observations cut out
            values = [v[a] for v, a in zip(values, acted, strict=True)]
        advantages, returns = [], []
        for value, act, reward, penalty, sequence in zip(values, acted, rewards, penalties, plain, strict=True):
            token_rewards = np.zeros(len(value))
            own = act if cfg.over_observations else np.ones(len(value), bool)
            token_rewards[own] -= penalty[~np.isnan(sequence.logprobs[sequence.weights > 0])]
            token_rewards[-1:] += reward
            one = adv.gae(token_rewards, value, discount=cfg.discount, trace=cfg.trace)
            advantages.append(one[0])
            returns.append(one[1])
        advantages = adv.whiten(advantages)
        targets = everything, acted, returns, values
        if cfg.over_observations:
            advantages = [a[act] for a, act in zip(advantages, acted, strict=True)]
        spread = []
        for advantage, sequence in zip(advantages, plain, strict=True):  # trained observations have no advantage here
            placed = np.zeros(int((sequence.weights > 0).sum()), np.float32)
            placed[~np.isnan(sequence.logprobs[sequence.weights > 0])] = advantage
            spread.append(placed)
        return spread, targets

    def _trunk(self) -> dict:
        """The weights under the value head that the critic does not train."""
        return self._critic_frozen if self.critic_cfg.trunk == 'own' else self.policy_params

    def _updates(self, plain, token_advantages, reference, targets) -> dict[str, float]:
        weighed = algorithms.weigh(plain, self.aggregate, MICRO)
        measured: list[dict[str, float]] = []
        for _ in range(self.rl.epochs):
            for start in range(0, max(len(weighed), 1), self._size):
                part = slice(start, start + self._size)
                row = self._learn_values(targets, part) if targets else {}
                if not targets or int(self.state['critic'].step) > self.critic_cfg.alone_steps:
                    row |= self._learn_policy(weighed[part], token_advantages[part], reference and reference[part])
                measured.append(row)
        return {name: _summary(name, [row[name] for row in measured if name in row]) for name in measured[-1]}

    def _learn_policy(self, sequences, token_advantages, reference) -> dict[str, float]:
        batch, places = self._mapped(sequences, self._size)
        padding = padding_share(batch)
        batch = batch.replace(advantages=places.scatter(token_advantages))
        if reference is not None:
            batch = batch.replace(ref_logprobs=places.scatter(reference))
        self.state['policy'], measured = self._update(self.state['policy'], self.frozen, batch)
        return {name: float(value) for name, value in measured.items()} | {'padding': padding}

    def _learn_values(self, targets, part: slice) -> dict[str, float]:
        everything, acted, returns, values = (x[part] for x in targets)
        if not self.critic_cfg.over_observations:
            spread = []
            for sequence, act in zip(everything, acted, strict=True):
                weights = sequence.weights.copy()
                weights[weights > 0] = act
                spread.append(dataclasses.replace(sequence, weights=weights))
            everything = spread
        batch, places = self._mapped(everything, self._size)
        self.state['critic'], measured = self._critic_update(
            self.state['critic'], self._trunk(), batch, places.scatter(returns), places.scatter(values)
        )
        explained = _explained(np.concatenate(returns), np.concatenate(values)) if returns else 0.0
        return {f'value_{name}': float(value) for name, value in measured.items()} | {'value_explained': explained}


def _explained(returns: np.ndarray, values: np.ndarray) -> float:
    """1 - Var(returns - values) / Var(returns); 0 where the returns do not vary."""
    variance = returns.var() if len(returns) else 0.0
    return float(1 - (returns - values).var() / variance) if variance > 1e-12 else 0.0


def _summary(name: str, values: list[float]) -> float:
    return float(max(values) if name.endswith('_max') else np.mean(values))
