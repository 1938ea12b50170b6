"""The wording of the policy's prompt, as plain data: ours, or that of a file."""

import dataclasses
import functools

from zerosearch_jax import settings
from zerosearch_jax.text import protocol


@dataclasses.dataclass(frozen=True)
class PolicyTemplate:
    """The messages that ask a policy {question}.

    {search} says how to search, {searches} how often at most (config.rollout.max_turns); {documents} stands in one of
    ours.
    """

    user: str
    system: str | None = None  # '' is a message without text; None: no message, and the chat template may add its own

    def __post_init__(self):
        protocol.fill(self.user, question='', documents='', search='', searches='')  # refuses unknown placeholders
        if '{question}' not in self.user:
            raise ValueError("the text 'user' must contain {question}")


_SEARCH = (
    'Answer the question. Think inside <think> and </think> whenever you learn something. If you lack a fact, '
    '{search}. Search as often as you need. Then give only the short answer inside <answer> and </answer>.\n'
    'Question: {question}'
)
POLICY_PROMPTS = {
    # think, search, read, answer
    'search': PolicyTemplate(_SEARCH),
    # the same, with the budget
    'budget': PolicyTemplate(_SEARCH.replace('as you need.', 'as you need, at most {searches} times.')),
    # think and answer: for chain of thought, and for training R1
    'reason': PolicyTemplate(
        'Answer the question. First think step by step inside <think> and </think>. Then give only the short answer '
        'inside <answer> and </answer>.\nQuestion: {question}'
    ),
    'direct': PolicyTemplate('Answer the question with the short answer and nothing else.\nQuestion: {question}'),
    # answer from the documents of one search, which are in the prompt
    'documents': PolicyTemplate(
        'Answer the question with the short answer and nothing else. The documents may help.\n{documents}\n'
        'Question: {question}'
    ),
}


@functools.cache  # a file is read once, so that a run asks all its questions in the same way
def policy_template(name: str) -> PolicyTemplate:
    """One of our wordings by its name, or that of a JSON file with the fields of PolicyTemplate.

    Raises:
      FileNotFoundError, ValueError: there is no such file, or it has unknown fields or placeholders.
    """
    found = settings.resolve_file(PolicyTemplate, name, POLICY_PROMPTS, 'config.rollout.prompt')
    if name not in POLICY_PROMPTS and '{documents}' in found.user:
        raise ValueError(f"{name}: {{documents}} belongs in the wording 'documents' only")
    return found
