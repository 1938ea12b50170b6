"""What the policy reads, as tokens: its prompt, and the documents of a search between tags, truncated to budgets."""

from collections.abc import Sequence

from zerosearch_jax import progress
from zerosearch_jax.data import rows
from zerosearch_jax.data.rows import Question
from zerosearch_jax.rollout.config import RolloutConfig
from zerosearch_jax.rollout.wording import policy_template
from zerosearch_jax.text import protocol
from zerosearch_jax.text.tokenizer import Tokenizer, conversation, template_arguments


def policy_prompt(question: str, wording: str = 'search', documents: str = '') -> str:
    """The user message with the question and the instructions, with the wording of config.rollout.prompt."""
    question = question.strip()
    asked = question if question.endswith('?') else question + '?'
    return protocol.fill(policy_template(wording).user, question=asked, documents=documents)


class PromptTooLong(rows.Unusable):
    """A question whose prompt is longer than config.rollout.prompt_tokens."""


def encode_prompt(
    tokenizer: Tokenizer, question: Question, cfg: RolloutConfig, documents: Sequence[str] = ()
) -> tuple[int, ...]:
    """The policy's prompt, as a chat turn or as raw text.

    Args:
      tokenizer: the policy's.
      question: the question.
      cfg: its `prompt` is the wording.
      documents: the documents for the wording 'documents', truncated to cfg.observation_tokens.

    Raises:
      PromptTooLong: the prompt is longer than cfg.prompt_tokens.
      ValueError: the chat template cannot be rendered, or drops the question.
    """
    shown = tokenizer.encode(_rendered(documents))[: cfg.observation_tokens] if cfg.prompt == 'documents' else []
    text = policy_prompt(question.question, cfg.prompt, tokenizer.decode(shown))
    system = policy_template(cfg.prompt).system
    if cfg.prompt_format == 'chat':
        tokens = tokenizer.chat(conversation(text, system), arguments=template_arguments(cfg.template_arguments))
    else:
        text = '\n'.join(filter(None, (system, text)))
        tokens = [*tokenizer.prefix, *tokenizer.encode(text.removesuffix('\n') + '\n')]
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
    """Documents between the information tags, tokenized once and truncated to `limit` before the closing tag."""
    head, tail = tokenizer.encode(protocol.OBSERVATION_OPEN), tokenizer.encode(protocol.OBSERVATION_CLOSE)
    body = tokenizer.encode(_rendered(documents))
    return (*head, *body[: max(limit - len(head) - len(tail), 0)], *tail)


def _rendered(documents: Sequence[str]) -> str:
    return protocol.render_documents(documents) if documents else 'No results.'
