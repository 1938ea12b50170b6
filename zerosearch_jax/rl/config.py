"""The configuration of the algorithm, of its loss and of the critic."""

import dataclasses
import math
from typing import Literal

from zerosearch_jax.rl import algorithms


@dataclasses.dataclass(frozen=True)
class RLConfig:
    """The algorithm, its loss, and how the update is computed."""

    steps: int = 100  # in each: rollouts of config.rollout.questions x group, and updates on them
    # 'reinforce', 'reinforce_baseline', 'reinforce_plus_plus', 'rloo', 'grpo', 'dr_grpo', 'gspo', 'ppo', or the dotted
    # name of an algorithms.Algorithm
    algorithm: str = 'grpo'
    # what the loss is averaged over: all tokens; sequences, equally; the token budget of a step; or micro-batches as in
    # the published system (algorithms.weigh_tokens); '': as the algorithm does
    aggregate: Literal['', 'token', 'sequence', 'budget', 'micro'] = ''
    # the advantage of a token: that of its trajectory, by the algorithm; or that of its turn (advantages.by_turn), with
    # the averages, ratio and loss of the algorithm; a critic gets the rewards of trajectories or of turns
    credit: Literal['trajectory', 'turn'] = 'trajectory'
    clip: float = 0.2  # the ratio is clipped to [1 - clip, 1 + clip]; 0: no clipping
    clip_high: float = 0.0  # upper bound 1 + clip_high, if it differs (DAPO: 0.28); 0: clip
    # the old log-probs of the ratio: the engine's, from sampling, or the trainer's, recomputed before the first update;
    # in bfloat16 the two differ by more than GSPO's clip
    old_logprobs: Literal['engine', 'trainer'] = 'engine'
    # cap of truncated importance sampling between engine and trainer, e.g. 2; the ratio is over the trainer's; 0: off
    importance_cap: float = 0.0
    kl: float = 0.001  # weight of the KL divergence from the initial policy; 0: no reference
    kl_estimator: Literal['k1', 'k2', 'k3'] = 'k3'  # k1: subtracted from the reward; k2, k3: in the loss
    entropy: float = 0.0  # weight of the entropy bonus
    drop_zero_variance: bool = False  # leave out groups whose rewards are all equal
    dynamic_sampling: int = 0  # the most rounds of new questions that replace such groups (DAPO); 0: off
    # share of a step's trajectories that is trained on, those with the most searches (CuSearch, arXiv 2605.11611);
    # the others count in the statistics of their groups
    deepest: float = 1.0
    observations: Literal['masked', 'policy', 'likelihood'] = 'masked'  # whether documents are trained on, and how
    likelihood_weight: float = 0.01  # weight of the documents' cross-entropy
    minibatch: int = 0  # the most trajectories in an optimizer update: a step is cut into even parts; 0: all
    epochs: int = 1  # passes over a step's trajectories
    row_length: int = 1024  # tokens of a packed row; at least prompt_tokens + response_tokens of config.rollout
    rows_per_micro: int = 1  # rows of a micro-batch; a multiple of data x fsdp; 0: as many as memory allows
    # what the backward pass recomputes: nothing, all but matrix products, all; auto: the least that memory allows
    remat: Literal['auto', 'none', 'dots', 'full'] = 'auto'
    chunk: int = 512  # tokens of a row whose logits exist at once

    def __post_init__(self):
        for name in ('steps', 'row_length', 'rows_per_micro', 'chunk', 'epochs'):
            if getattr(self, name) < (name not in ('steps', 'rows_per_micro')):
                raise ValueError(f'{name} must be positive, got {getattr(self, name)}')
        if not 0 < self.deepest <= 1:
            raise ValueError(f'deepest must be above 0 and at most 1, got {self.deepest}')
        if self.clip_high and not self.clip:
            raise ValueError('clip_high needs clip above 0; without it nothing is clipped')
        if self.has_critic and self.drop_zero_variance:
            raise ValueError(
                'drop_zero_variance compares within groups, a critic does not: set drop_zero_variance=False'
            )
        if self.token_advantages and self.observations == 'policy':
            raise ValueError("observations='policy' needs one advantage for a trajectory; here every token has its own")
        if self.algorithm in ('grpo', 'gspo') and self.kl and self.kl_estimator == 'k1':
            raise ValueError(
                f"kl_estimator='k1' and {self.algorithm}: divided by the group's deviation, differences of the KL "
                "alone would count as much as those of the reward; use 'k3', or another algorithm"
            )

    @property
    def rescores(self) -> bool:
        """Whether the trainer's log-probs are computed in a separate pass before the first update of a step.

        Importance weights compare engine and trainer before the first update; if there is only one update, it computes
        the trainer's log-probs itself.
        """
        several = self.epochs > 1 or self.minibatch > 0
        return self.old_logprobs == 'trainer' or (self.importance_cap > 0 and several)

    def updates(self, trajectories: int) -> tuple[int, int]:
        """For a step's trajectories: optimizer updates of an epoch, and the most trajectories of one, in even parts."""
        trained = math.ceil(self.deepest * trajectories - 1e-9)  # 0.07 * 100 is a little more than 7
        updates = -(-trained // (self.minibatch or trained))
        return updates, -(-trained // updates)

    @property
    def remats(self) -> tuple[str, ...]:
        """The possible values of `remat`, the fastest first."""
        return ('none', 'dots', 'full') if self.remat == 'auto' else (self.remat,)

    @property
    def has_critic(self) -> bool:
        return algorithms.find_algorithm(self.algorithm).advantage is None

    @property
    def token_advantages(self) -> bool:
        """Whether tokens have their own or their turn's advantage instead of their trajectory's."""
        returns = algorithms.find_algorithm(self.algorithm).returns and self.kl_estimator == 'k1'
        return self.has_critic or self.credit == 'turn' or returns

    @property
    def min_group(self) -> int:
        """The fewest samples of a question with which the algorithm, or credit by turn, works."""
        found = algorithms.find_algorithm(self.algorithm)
        return max(found.min_group, 2 if self.credit == 'turn' and found.advantage else 1)


@dataclasses.dataclass(frozen=True)
class CriticConfig:
    """The critic of PPO."""

    trunk: Literal['own', 'shared'] = 'own'  # its own copy of the policy, which is trained; or a head on the policy
    lora_rank: int = 0  # of the adapter on its own copy; 0: all weights are trained
    learning_rate: float = 1e-5
    warmup_steps: int = 0  # steps of the linear warm-up of its learning rate
    alone_steps: int = 0  # number of first steps in which only the critic is trained
    clip: float = 0.5  # in the loss, a value differs from that at rollout time by at most this; 0: no clipping
    discount: float = 1.0  # gamma, for each token
    trace: float = 1.0  # lambda of the generalized advantage estimation
    over_observations: bool = False  # estimate over documents too, as the published system does (difference D14)
