"""What the policy reads: its prompt, the documents of a search between their tags; all as tokens, cut to budgets."""

from collections.abc import Sequence

from zerosearch_jax import progress
from zerosearch_jax.data import rows
from zerosearch_jax.data.rows import Question
from zerosearch_jax.rollout.config import RolloutConfig
from zerosearch_jax.text import protocol
from zerosearch_jax.text.tokenizer import Tokenizer, template_arguments

POLICY_PROMPTS = {
    # think, search, read, answer
    'search': (
        'Answer the question. Think inside <think> and </think> whenever you learn something. If you lack a fact, '
        'write one query inside <search> and </search>; the results will appear inside <information> and '
        '</information>. Search as often as you need. Then give only the short answer inside <answer> and </answer>.\n'
        'Question: {question}'
    ),
    # think and answer: chain of thought, and what R1 is trained with
    'reason': (
        'Answer the question. First think step by step inside <think> and </think>. Then give only the short answer '
        'inside <answer> and </answer>.\nQuestion: {question}'
    ),
    'direct': 'Answer the question with the short answer and nothing else.\nQuestion: {question}',
    # the documents of one search that was made before
    'documents': (
        'Answer the question with the short answer and nothing else. The documents may help.\n{documents}\n'
        'Question: {question}'
    ),
}


def policy_prompt(question: str, wording: str = 'search', documents: str = '') -> str:
    """The user message that states the question and how to answer it, `wording` a key of POLICY_PROMPTS."""
    question = question.strip()
    asked = question if question.endswith('?') else question + '?'
    return protocol.fill(POLICY_PROMPTS[wording], question=asked, documents=documents)


class PromptTooLong(rows.Unusable):
    """A question whose prompt is longer than config.rollout.prompt_tokens."""


def encode_prompt(
    tokenizer: Tokenizer, question: Question, cfg: RolloutConfig, documents: Sequence[str] = ()
) -> tuple[int, ...]:
    """The policy's prompt, as a chat turn or as raw text.

    Args:
      tokenizer: the policy's.
      question: what is asked.
      cfg: its `prompt` says how.
      documents: what the wording 'documents' shows, cut to cfg.observation_tokens.

    Raises:
      PromptTooLong: it is longer than cfg.prompt_tokens.
      ValueError: the chat template cannot be rendered, or drops the question.
    """
    shown = tokenizer.encode(_rendered(documents))[: cfg.observation_tokens] if cfg.prompt == 'documents' else []
    text = policy_prompt(question.question, cfg.prompt, tokenizer.decode(shown))
    if cfg.prompt_format == 'chat':
        arguments = template_arguments(cfg.template_arguments)
        tokens = tokenizer.chat([{'role': 'user', 'content': text}], arguments=arguments)
    else:
        tokens = [*tokenizer.prefix, *tokenizer.encode(text + '\n')]
    if len(tokens) > cfg.prompt_tokens:
        raise PromptTooLong(
            f'question {question.id}: its prompt has {len(tokens)} tokens, more than config.rollout.prompt_tokens '
            f"= {cfg.prompt_tokens}; raise it or drop the question (config.data or config.evaluation: too_long='skip')"
        )
    return tuple(tokens)


def fitting(
    questions: Sequence[Question], tokenizer: Tokenizer, cfg: RolloutConfig, choice: rows.Choice
) -> list[Question]:
    """The questions whose prompts are not too long; the others are refused or left out (rows.usable)."""

    def check(question: Question) -> Question:
        encode_prompt(tokenizer, question, cfg)
        return question

    tracked = progress.track(questions, f'checking prompts ({cfg.prompt})', 'question')
    return [*rows.usable(tracked, check, choice, f'questions too long for the prompt {cfg.prompt!r}')]


def encode_observation(tokenizer: Tokenizer, documents: Sequence[str], limit: int) -> tuple[int, ...]:
    """Documents between the information tags, tokenized once and cut to `limit`; the closing tag survives the cut."""
    head, tail = tokenizer.encode(protocol.OBSERVATION_OPEN), tokenizer.encode(protocol.OBSERVATION_CLOSE)
    body = tokenizer.encode(_rendered(documents))
    return (*head, *body[: max(limit - len(head) - len(tail), 0)], *tail)


def _rendered(documents: Sequence[str]) -> str:
    return protocol.render_documents(documents) if documents else 'No results.'
