"""The configuration of the algorithm, of its loss and of the critic."""

import dataclasses
from typing import Literal

from zerosearch_jax.rl import algorithms


@dataclasses.dataclass(frozen=True)
class RLConfig:
    """Algorithm, loss and how the update is computed."""

    steps: int = 100  # each: rollouts of config.rollout.questions x group, and updates on them
    # 'reinforce', 'reinforce_baseline', 'reinforce_plus_plus', 'rloo', 'grpo', 'dr_grpo', 'gspo', 'ppo', or the dotted
    # name of an algorithms.Algorithm
    algorithm: str = 'grpo'
    # how tokens are averaged: over all, over sequences of equal weight, by what the budget of a step allows, or as the
    # published system does (algorithms.weigh_tokens); '': as the algorithm does
    aggregate: Literal['', 'token', 'sequence', 'budget', 'micro'] = ''
    clip: float = 0.2  # the ratio is kept within [1 - clip, 1 + clip]; 0: it is not
    clip_high: float = 0.0  # of the ratio above 1, where it differs (DAPO: 0.28); 0: clip
    # whose log-probs the ratio is over: the engine's, of the sampling, or the trainer's, recomputed before the first
    # update: in bfloat16 the two differ by more than GSPO's clip
    old_logprobs: Literal['engine', 'trainer'] = 'engine'
    # truncated importance sampling between engine and trainer, e.g. 2, the ratio being over the trainer's; 0: off
    importance_cap: float = 0.0
    kl: float = 0.001  # weight of the divergence from the initial policy; 0: no reference
    kl_estimator: Literal['k1', 'k2', 'k3'] = 'k3'  # k1: taken off the reward; k2, k3: in the loss
    entropy: float = 0.0  # weight of the entropy bonus
    drop_zero_variance: bool = False  # leave out groups whose rewards are all equal
    dynamic_sampling: int = 0  # rounds of new questions at most, in place of such groups (DAPO)
    observations: Literal['masked', 'policy', 'likelihood'] = 'masked'  # whether documents are trained on, and how
    likelihood_weight: float = 0.01  # of the documents' cross-entropy
    minibatch: int = 0  # trajectories an optimizer step; 0: all
    epochs: int = 1  # passes over a step's trajectories
    row_length: int = 1024  # tokens of a packed row; at least prompt_tokens + response_tokens of config.rollout
    rows_per_micro: int = 1  # rows of a micro-batch; a multiple of data x fsdp; 0: as many as memory allows
    # the backward pass makes again: nothing, all but products, all; auto: the least for which there is memory
    remat: Literal['auto', 'none', 'dots', 'full'] = 'auto'
    chunk: int = 512  # tokens of a row whose logits exist at once

    def __post_init__(self):
        for name in ('steps', 'row_length', 'rows_per_micro', 'chunk', 'epochs'):
            if getattr(self, name) < (name not in ('steps', 'rows_per_micro')):
                raise ValueError(f'{name} must be positive, got {getattr(self, name)}')
        if self.has_critic and self.drop_zero_variance:
            raise ValueError('drop_zero_variance is for algorithms that compare within a group, not for a critic')
        if self.token_advantages and self.observations == 'policy':
            raise ValueError("observations='policy' needs an advantage a trajectory; here every token has its own")
        if self.algorithm in ('grpo', 'gspo') and self.kl and self.kl_estimator == 'k1':
            raise ValueError(
                f"kl_estimator='k1' and {self.algorithm}: divided by the group's deviation, differences of the KL "
                "alone would count as much as those of the reward; use 'k3', or another algorithm"
            )

    @property
    def rescores(self) -> bool:
        """Whether the trainer's log-probs are computed, in a pass of their own, before the first update of a step.

        Importance is between engine and trainer as they were then, whatever the updates since; a single update finds
        the trainer's log-probs itself.
        """
        several = self.epochs > 1 or self.minibatch > 0
        return self.old_logprobs == 'trainer' or (self.importance_cap > 0 and several)

    @property
    def remats(self) -> tuple[str, ...]:
        """What `remat` may become, the fastest first."""
        return ('none', 'dots', 'full') if self.remat == 'auto' else (self.remat,)

    @property
    def has_critic(self) -> bool:
        return algorithms.find_algorithm(self.algorithm).advantage is None

    @property
    def token_advantages(self) -> bool:
        """Whether every token has its own advantage, not its trajectory's."""
        return self.has_critic or (algorithms.find_algorithm(self.algorithm).returns and self.kl_estimator == 'k1')

    @property
    def min_group(self) -> int:
        """Samples of a question that the algorithm needs."""
        return algorithms.find_algorithm(self.algorithm).min_group


@dataclasses.dataclass(frozen=True)
class CriticConfig:
    """The critic of PPO."""

    trunk: Literal['own', 'shared'] = 'own'  # a copy of its own, which is trained; or a head on the policy as it is
    lora_rank: int = 0  # of its own copy; 0: all weights are trained
    learning_rate: float = 1e-5
    warmup_steps: int = 0
    alone_steps: int = 0  # the first steps, in which the critic learns and the policy does not yet
    clip: float = 0.5  # of a value's move away from the one at rollout time; 0: none
    discount: float = 1.0
    trace: float = 1.0  # lambda of the generalized advantage estimation
    over_observations: bool = False  # estimate over documents too, as the published system does (defect D14)
