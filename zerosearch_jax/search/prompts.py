"""The wording of the protocol and of the simulator's instructions: plain data, in our own words.

Somebody who holds other checkpoints supplies other templates; nothing else in the code knows the wording, only the
four tags. Placeholders are filled with `str.format`-free replacement, so braces in data are just text.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

SEARCH_STOP, ANSWER_STOP = '</search>', '</answer>'
STOP_STRINGS = (SEARCH_STOP, ANSWER_STOP)

POLICY_PROMPT = (
    'Answer the question. Think inside <think> and </think> whenever you learn something. If you lack a fact, write '
    'one query inside <search> and </search>; the results will appear inside <information> and </information>. Search '
    'as often as you need. Then give only the short answer inside <answer> and </answer>.\n'
    'Question: {question}'
)

SIMULATOR_PROMPT = (
    'You are a search engine. The user who searches wants to know: {question} The right answer is: {answer}. '
    'Write {count} {quality} documents of about {words} words for the query, each on a line of its own.\n'
    'Query: {query}\n'
    '{Quality} documents:'
)

OBSERVATION_OPEN, OBSERVATION_CLOSE = '\n<information>\n', '\n</information>\n'

INVALID_NOTICE = (
    '\nThat was not a valid action. Put a query inside the search tags, or the final answer inside the answer tags.\n'
)

_TAG = re.compile(r'<(/?)\s*(think|search|information|answer)\s*>', re.IGNORECASE)
_CONTROL = re.compile(r'[\x00-\x08\x0b-\x1f\x7f]')


def fill(template: str, **values: str) -> str:
    """Replaces {name} by its value in one pass; braces inside the values stay as they are.

    Raises:
      ValueError: the template names a placeholder that is not given.
    """

    def value(match: re.Match) -> str:
        if match[1] not in values:
            raise ValueError(f'template placeholder {{{match[1]}}} is unknown; known: {", ".join(sorted(values))}')
        return values[match[1]]

    return re.sub(r'\{(\w+)\}', value, template)


def neutralize(text: str) -> str:
    """Makes text from outside harmless: protocol tags lose their brackets, control characters become spaces.

    Chat-control tokens need nothing here: the tokenizer never encodes plain text as special tokens.
    """
    return _TAG.sub(r'(\1\2)', _CONTROL.sub(' ', text))


def policy_prompt(question: str, template: str = POLICY_PROMPT) -> str:
    """The user message that states the protocol and the question."""
    question = question.strip()
    return fill(template, question=question if question.endswith('?') else question + '?')


def simulator_prompt(
    query: str,
    question: str,
    golds: Sequence[str],
    *,
    noisy: bool,
    count: int,
    words: int,
    template: str = SIMULATOR_PROMPT,
) -> str:
    """The simulator's user message for one query, which carries its own question and gold answers."""
    quality = 'noisy' if noisy else 'useful'
    return fill(
        template,
        query=query,
        question=question.strip(),
        answer=golds[0],
        count=str(count),
        words=str(words),
        quality=quality,
        Quality=quality.capitalize(),
    )


def render_documents(texts: Sequence[str]) -> str:
    """Documents as the policy sees them and as the simulator writes them: one line each, 'Doc 1: ...'."""
    return '\n'.join(f'Doc {i}: {" ".join(text.split())}' for i, text in enumerate(texts, start=1))


_DOC_LINE = re.compile(r'^Doc (\d+):[ \t]*(.*)$', re.MULTILINE)


def parse_documents(text: str, count: int) -> list[str]:
    """Reads 'Doc i: ...' lines, numbered 1, 2, ... in order, at most `count`.

    Returns:
      The documents; empty where the text breaks the format from the start.
    """
    documents = []
    for match in _DOC_LINE.finditer(text):
        content = match[2].strip()
        if int(match[1]) != len(documents) + 1 or not content or len(documents) == count:
            break
        documents.append(content)
    return documents


def parse_query(action: str) -> str | None:
    """The query of an action that ended at </search>: the text after its last <search>. None if there is none."""
    _, tag, query = action.partition(SEARCH_STOP)[0].rpartition('<search>')
    query = ' '.join(query.split())
    return query if tag and query else None
