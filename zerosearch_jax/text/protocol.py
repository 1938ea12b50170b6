"""The protocol between policy and environment: how a policy acts, and how external text is made harmless.

A policy searches and reads by one of two grammars: our four tags, or a tool call of its chat template.
Placeholders of templates are filled without `str.format`, so that braces in data stay as they are.
"""

import dataclasses
import json
import re
from collections.abc import Callable, Sequence

from zerosearch_jax import settings

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


def neutralize(text: str, tag: re.Pattern = TAG) -> str:
    """Makes external text harmless: protocol tags lose their brackets, control characters become spaces.

    Halves of surrogate pairs, which no tokenizer accepts, become spaces too. Control tokens of chat templates need
    nothing here: the tokenizer never encodes plain text as special tokens.
    """
    return tag.sub(r'(\1\2)', _CONTROL.sub(' ', text))


def without_thoughts(text: str) -> str:
    """What a model writes after its thoughts: the text after its last </think>, up to a line that begins others."""
    return re.split(r'(?m)^\s*<think>', text.rpartition('</think>')[2])[0].strip()


def opens_thought(prompt: bytes) -> bool:
    """Whether a chat template opened a thought at the end of a prompt, so that the model's text begins inside it."""
    return prompt.rstrip().endswith(b'<think>')


def render_documents(texts: Sequence[str]) -> str:
    """Documents as the policy sees them and as the simulator writes them: one line each, 'Doc 1: ...'."""
    return '\n'.join(f'Doc {i}: {" ".join(text.split())}' for i, text in enumerate(texts, start=1))


# ---------------------------------------------------------------- grammars


def _read_call(text: str) -> str | None:
    try:
        call = settings.parse_json(text)
    except ValueError:
        return None
    match call:
        case {'name': 'search', 'arguments': {'query': str(query)}}:
            return query.encode('utf-8', 'replace').decode()  # JSON may spell half a surrogate pair
    return None


def _write_call(query: str) -> str:
    return '\n' + json.dumps({'name': 'search', 'arguments': {'query': query}}, ensure_ascii=False) + '\n'


@dataclasses.dataclass(frozen=True)
class Grammar:
    """How a policy searches and reads what was found; by every grammar it answers between the answer tags.

    If documents have a role, the chat template ends the policy's turn before them and starts its next one after them;
    otherwise they stand between `before` and `after` in the policy's own turn.
    """

    how: str  # how to search, a clause of the prompt
    open: str  # before a query
    close: str  # after it: there a generation stops
    read: Callable[[str], str | None]  # from the text between them to the query; None: not valid
    write: Callable[[str], str]  # from a query to that text
    notice: str  # the observation after an action that is not valid
    tag: re.Pattern  # what documents must not hold
    before: str = ''
    after: str = ''
    role: str = ''
    tools: tuple[dict, ...] = ()  # for the chat template

    @property
    def stops(self) -> tuple[str, str]:
        """The strings at which a generation stops."""
        return self.close, ANSWER_STOP

    def search(self, query: str) -> str:
        """The text of a search."""
        return f'{self.open}{self.write(query)}{self.close}'


TAGS = Grammar(
    'write one query inside <search> and </search>; the results will appear inside <information> and </information>',
    open='<search>',
    close=SEARCH_STOP,
    read=str,
    write=str,
    notice=INVALID_NOTICE,
    tag=TAG,
    before=OBSERVATION_OPEN,
    after=OBSERVATION_CLOSE,
)
_PARAMETERS = {'type': 'object', 'properties': {'query': {'type': 'string'}}, 'required': ['query']}
_SEARCH = {'name': 'search', 'description': 'Finds documents for a query.', 'parameters': _PARAMETERS}
TOOL_CALL = Grammar(  # the format of Hermes, Qwen2.5 and Qwen3
    how='call the function search with one query, as '
    '<tool_call>{"name": "search", "arguments": {"query": "..."}}</tool_call>; the next message has the results',
    open='<tool_call>',
    close='</tool_call>',
    read=_read_call,
    write=_write_call,
    notice='That was not a valid action.\nCall search with one query, or put the final answer inside the answer tags.',
    tag=re.compile(TAG.pattern.replace('think', 'think|tools|tool_call|tool_response'), re.IGNORECASE),
    role='tool',
    tools=({'type': 'function', 'function': _SEARCH},),
)
GRAMMARS = {'tags': TAGS, 'tool_call': TOOL_CALL}


def parse_query(action: str, grammar: Grammar = TAGS) -> str | None:
    """The query of an action that ended with a search: what follows its last opening tag; None if it is not valid."""
    _, tag, inside = action.partition(grammar.close)[0].rpartition(grammar.open)
    query = ' '.join((grammar.read(inside) or '').split())
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
