"""The configuration of an episode."""

import dataclasses
from typing import Literal

from zerosearch_jax import settings
from zerosearch_jax.rollout.wording import policy_template
from zerosearch_jax.text.tokenizer import template_arguments


@dataclasses.dataclass(frozen=True)
class RolloutConfig:
    """Budgets of an episode, in tokens and turns."""

    questions: int = 4  # questions in a step
    group: int = 4  # samples of a question
    max_turns: int = 3  # the most observations; one more action may follow the last one
    turn_tokens: int = 96  # tokens of one action
    observation_tokens: int = 160  # tokens of one observation, tags included
    response_tokens: int = 512  # everything after the prompt
    prompt_tokens: int = 256  # a longer prompt is an error
    # wording: 'search', 'budget', 'reason', 'direct', 'documents', or a JSON file (wording.PolicyTemplate)
    prompt: str = 'search'
    grammar: Literal['tags', 'tool_call'] = 'tags'  # how it searches: by tags, or by tool calls of its chat template
    prompt_format: Literal['chat', 'raw'] = 'chat'  # raw: for base models, which were not trained on a chat template
    template_arguments: str = ''  # for the chat template, a JSON object such as '{"enable_thinking": false}'
    temperature: float = 1.0  # of sampling, and of the log-probs in the loss
    top_p: float = 1.0  # below 1 log-probs stay those of the whole softmax, not of what is sampled (difference D10)
    # episodes that run at once, rounded up to a multiple of data x fsdp; 0: all of a step, or as many as fit with their
    # cache into a third of an accelerator's memory
    slots: int = 0
    mesh: tuple[int, ...] = ()  # sizes of the mesh on which the policy generates; (): config.mesh
    cache_gib: float = 0.0  # GiB of a device's memory for their cache: fewer slots if not all fit; 0: no limit
    decode_steps: int = 16  # tokens that one call of the engine decodes

    @property
    def episodes(self) -> int:
        """Episodes in a step."""
        return self.questions * self.group

    def __post_init__(self):
        settings.require_positive(self, 'questions', 'group', 'decode_steps')
        if self.slots < 0:
            raise ValueError(f'slots must not be negative, got {self.slots}')
        settings.require_positive(self, 'turn_tokens', 'response_tokens', 'prompt_tokens')
        template_arguments(self.template_arguments)
        policy_template(self.prompt)
        if self.grammar == 'tool_call' and self.prompt_format == 'raw':
            raise ValueError("grammar = 'tool_call' needs a chat template: set prompt_format to 'chat'")
        if not 0 < self.top_p <= 1:
            raise ValueError(f'top_p must be in (0, 1], got {self.top_p}')
