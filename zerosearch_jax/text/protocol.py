"""The protocol between policy and environment: four tags, how they are parsed, and how external text is made harmless.

Placeholders of templates are filled without `str.format`, so that braces in data stay as they are.
"""

import re
from collections.abc import Sequence

SEARCH_STOP, ANSWER_STOP = '</search>', '</answer>'
STOP_STRINGS = (SEARCH_STOP, ANSWER_STOP)


OBSERVATION_OPEN, OBSERVATION_CLOSE = '\n<information>\n', '\n</information>\n'

INVALID_NOTICE = (
    '\nThat was not a valid action. Put a query inside the search tags, or the final answer inside the answer tags.\n'
)

TAG = re.compile(r'<(/?)\s*(think|search|information|answer)\s*>', re.IGNORECASE)
_CONTROL = re.compile(r'[\x00-\x08\x0b-\x1f\x7f\ud800-\udfff]')  # the last: halves of surrogate pairs


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
    """Makes external text harmless: protocol tags lose their brackets, control characters become spaces.

    Halves of surrogate pairs, which no tokenizer accepts, become spaces too. Control tokens of chat templates need
    nothing here: the tokenizer never encodes plain text as special tokens.
    """
    return TAG.sub(r'(\1\2)', _CONTROL.sub(' ', text))


def without_thoughts(text: str) -> str:
    """What a model writes after its thoughts: the text after its last </think>; '' if its thoughts did not end."""
    said = text.rpartition('</think>')[2].strip()
    return '' if said.startswith('<think>') else said


def opens_thought(prompt: bytes) -> bool:
    """Whether a chat template opened a thought at the end of a prompt, so that the model's text begins inside it."""
    return prompt.rstrip().endswith(b'<think>')


def render_documents(texts: Sequence[str]) -> str:
    """Documents as the policy sees them and as the simulator writes them: one line each, 'Doc 1: ...'."""
    return '\n'.join(f'Doc {i}: {" ".join(text.split())}' for i, text in enumerate(texts, start=1))


def parse_query(action: str) -> str | None:
    """The query of an action that ended at </search>: the text after its last <search>. None if there is none."""
    _, tag, query = action.partition(SEARCH_STOP)[0].rpartition('<search>')
    query = ' '.join(query.split())
    return query if tag and query else None


# the content contains no further tag, so that a stray opening or closing tag never becomes part of an answer
_ANSWER = re.compile(r'<answer>((?:(?!</?answer>).)*)</answer>', re.DOTALL)


def extract_answer(action_text: str) -> str | None:
    """The content of the last complete `<answer>...</answer>`, stripped; None if there is none or it is empty.

    Pass only what the policy wrote: the prompt and the documents may contain answer tags of their own. If opening tags
    are nested, the innermost counts.
    """
    answers = _ANSWER.findall(action_text)
    return (answers[-1].strip() or None) if answers else None
