"""The configuration of an episode."""

import dataclasses
from typing import Literal

from zerosearch_jax import settings
from zerosearch_jax.text.tokenizer import template_arguments


@dataclasses.dataclass(frozen=True)
class RolloutConfig:
    """Budgets of an episode, in tokens and turns."""

    questions: int = 4  # questions a step
    group: int = 4  # samples a question
    max_turns: int = 3  # observations at most; one more action may follow the last
    turn_tokens: int = 96  # tokens of one action
    observation_tokens: int = 160  # tokens of one observation, tags included
    response_tokens: int = 512  # everything after the prompt
    prompt_tokens: int = 256  # a longer prompt is an error
    prompt: Literal['search', 'reason', 'direct', 'documents'] = 'search'  # key of POLICY_PROMPTS, rollout/prompts.py
    prompt_format: Literal['chat', 'raw'] = 'chat'  # raw: for base models, which were never shown a chat template
    template_arguments: str = ''  # of the chat template, a JSON object such as '{"enable_thinking": false}'
    temperature: float = 1.0  # of sampling, and of the log-probs that are trained
    top_p: float = 1.0  # log-probs stay those of the whole softmax, below 1 not what was sampled (defect D10)
    # episodes that run at once, rounded up to data x fsdp; 0: all of a step, as far as a third of an accelerator's
    # memory holds their cache
    slots: int = 0
    cache_gib: float = 0.0  # of a device's memory for their cache: fewer slots if not all fit; 0: no limit
    decode_steps: int = 16  # tokens decoded between two looks of the host

    @property
    def episodes(self) -> int:
        """Those of a step."""
        return self.questions * self.group

    def __post_init__(self):
        settings.require_positive(self, 'questions', 'group', 'decode_steps')
        if self.slots < 0:
            raise ValueError(f'slots must not be negative, got {self.slots}')
        settings.require_positive(self, 'turn_tokens', 'response_tokens', 'prompt_tokens')
        template_arguments(self.template_arguments)
        if not 0 < self.top_p <= 1:
            raise ValueError(f'top_p must be in (0, 1], got {self.top_p}')
