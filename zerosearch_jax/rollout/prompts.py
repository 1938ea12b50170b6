"""What the policy reads, as tokens: its prompt, and the documents of a search, truncated to budgets."""

import os
from collections.abc import Sequence

from zerosearch_jax import progress
from zerosearch_jax.data import rows
from zerosearch_jax.data.rows import Question
from zerosearch_jax.rollout.config import RolloutConfig
from zerosearch_jax.rollout.wording import policy_template
from zerosearch_jax.text import protocol
from zerosearch_jax.text.tokenizer import Tokenizer, conversation, template_arguments

# stands for what the policy wrote, where the template's text around an observation is looked up
_ACTION = '\ue000'


def policy_prompt(
    question: str,
    wording: str = 'search',
    documents: str = '',
    grammar: protocol.Grammar = protocol.TAGS,
    searches: int | str = '',
) -> str:
    """The user message with the question and the instructions, with the wording of config.rollout.prompt."""
    question = question.strip()
    asked = question if question.endswith('?') else question + '?'
    blanks = {'question': asked, 'documents': documents, 'search': grammar.how, 'searches': str(searches)}
    return protocol.fill(policy_template(wording).user, **blanks)


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
    grammar = protocol.GRAMMARS[cfg.grammar]
    text = policy_prompt(question.question, cfg.prompt, tokenizer.decode(shown), grammar, cfg.max_turns)
    system = policy_template(cfg.prompt).system
    if cfg.prompt_format == 'chat':
        tokens = tokenizer.chat(conversation(text, system), arguments=_arguments(cfg))
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
    if cfg.max_turns:
        encode_notice(tokenizer, cfg)  # a template that cannot show it is refused here

    def check(question: Question) -> Question:
        encode_prompt(tokenizer, question, cfg)
        return question

    tracked = progress.track(questions, f'checking prompts ({cfg.prompt})', 'question')
    return [*rows.usable(tracked, check, choice, f'questions too long for the prompt {cfg.prompt!r}')]


def encode_observation(tokenizer: Tokenizer, documents: Sequence[str], cfg: RolloutConfig) -> tuple[int, ...]:
    """Documents as the grammar shows them, truncated to cfg.observation_tokens, or to none if its tags need more."""
    grammar, limit = protocol.GRAMMARS[cfg.grammar], cfg.observation_tokens
    body = tokenizer.encode(protocol.neutralize(_rendered(documents), grammar.tag))
    if not grammar.role:
        head, tail = tokenizer.encode(grammar.before), tokenizer.encode(grammar.after)
        return (*head, *body[: max(limit - len(head) - len(tail), 0)], *tail)
    # tokens may cross the borders of the template's text, so the whole is tokenized, again if it was too long
    whole = _message(tokenizer, tokenizer.decode(body), cfg)
    while body and len(whole) > limit:
        body = body[: limit - len(whole)]
        whole = _message(tokenizer, tokenizer.decode(body), cfg)
    return whole


def readable(tokenizer: Tokenizer, tokens: Sequence[int], documents: Sequence[str], cfg: RolloutConfig) -> list[str]:
    """What an observation of these tokens shows of each document: its beginning, '' if that was cut off too."""
    text, shown = tokenizer.decode(tokens), []
    whole = protocol.neutralize(_rendered(documents), protocol.GRAMMARS[cfg.grammar].tag)
    for line in tokenizer.decode(tokenizer.encode(whole)).splitlines():  # a tokenizer may normalize characters
        number = line.split(': ')[0] + ': '
        text = ''.join(text.partition(number)[1:])
        seen = os.path.commonprefix([text, line])  # noqa: RUF071 - of characters
        text = text[len(seen) :]  # a document may hold what looks like the next one's number
        shown.append(seen[len(number) :])
    return shown[: len(documents)]


def encode_notice(tokenizer: Tokenizer, cfg: RolloutConfig, action: Sequence[int] = ()) -> tuple[int, ...]:
    """The observation after an action that is not valid; a turn that the action has ended is not ended again.

    Raises:
      ValueError: the chat template does not show it as it is.
    """
    grammar = protocol.GRAMMARS[cfg.grammar]
    if not grammar.role:
        return tuple(tokenizer.encode(grammar.notice))
    tokens = _message(tokenizer, grammar.notice, cfg)
    if grammar.notice not in tokenizer.decode(tokens):
        raise ValueError(
            f'the chat template changes or drops what the role {grammar.role!r} says; fix it, or set '
            "config.rollout.grammar to 'tags'"
        )
    ended = bool(action) and action[-1] == tokens[0] and tokens[0] in tokenizer.eos_ids
    return tokens[ended:]


def _message(tokenizer: Tokenizer, text: str, cfg: RolloutConfig) -> tuple[int, ...]:
    """A message in the grammar's role, from what ends the policy's turn before it to what starts the next one."""
    before = [{'role': 'user', 'content': '?'}, {'role': 'assistant', 'content': _ACTION}]
    message = {'role': protocol.GRAMMARS[cfg.grammar].role, 'content': text}
    return tuple(tokenizer.chat([*before, message], arguments=_arguments(cfg), after=_ACTION))


def _arguments(cfg: RolloutConfig) -> dict:
    """The arguments of the policy's chat template."""
    tools = protocol.GRAMMARS[cfg.grammar].tools if cfg.max_turns else ()
    return ({'tools': [*tools]} if tools else {}) | template_arguments(cfg.template_arguments)


def _rendered(documents: Sequence[str]) -> str:
    return protocol.render_documents(documents) if documents else 'No results.'
