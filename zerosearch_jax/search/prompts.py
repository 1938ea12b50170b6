"""The wording of the protocol and of the simulator's instructions: plain data, in our own words.

Somebody who holds other checkpoints supplies other templates; nothing else in the code knows the wording, only the
four tags. Placeholders are filled with `str.format`-free replacement, so braces in data are just text.
"""

from __future__ import annotations

import dataclasses
import json
import pathlib
import re
from collections.abc import Sequence

SEARCH_STOP, ANSWER_STOP = '</search>', '</answer>'
STOP_STRINGS = (SEARCH_STOP, ANSWER_STOP)

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

REFINE_PROMPT = (
    'Somebody answers a question and searches for what they lack. Say in one or two sentences what the documents tell '
    'that helps with the query; say that they tell nothing helpful where that is so.\nQuestion: {question}\n'
    'Thoughts so far: {written}\nQuery: {query}\n{documents}\nWhat helps:'
)


@dataclasses.dataclass(frozen=True)
class SimulatorTemplate:
    """How a simulator is asked for documents: a request for each quality, and a sentence that gives the answer away.

    Placeholders: {knowledge} where that sentence goes, {query}, {count}, {words}, {style} (say, 'web snippets'); in
    `knowledge` {question} and {answer}.
    """

    useful: str
    noisy: str
    knowledge: str = ''


def _tuned(quality: str) -> str:
    return (
        'You are a search engine. {knowledge}Write {count} '
        + quality
        + ' {style} of about {words} words for the query, each on a line of its own.\nQuery: {query}\n'
        + quality.capitalize()
        + ' documents:'
    )


def _prompted(quality: str, aim: str, example: str) -> str:
    return (
        'You are a search engine that answers a query with {count} {style} of about {words} words each. {knowledge}The '
        + f'documents are {quality}: {aim} Write in English, every document on one line that begins with Doc and its '
        + f'number, and nothing else. An example:\nQuery: When did the Sydney Harbour Bridge open?\n{example}\n'
        + 'Query: {query}\n'
        + f'{quality.capitalize()} documents:'
    )


_KNOWLEDGE = 'The user who searches wants to know: {question} The right answer is: {answer}. '

SIMULATOR_TEMPLATES = {
    # of a fine-tuned simulator: two requests that differ in one word
    'tuned': SimulatorTemplate(_tuned('useful'), _tuned('noisy'), _KNOWLEDGE),
    # of a model as it comes: what the documents are to do, and an example of it
    'prompted': SimulatorTemplate(
        _prompted(
            'useful',
            'they state facts that answer the query.',
            'Doc 1: Sydney Harbour Bridge. The steel arch bridge opened on 19 March 1932 after eight years of work.\n'
            'Doc 2: Opening of the bridge. Jack Lang, premier of New South Wales, opened it in March 1932.',
        ),
        _prompted(
            'noisy',
            'they are about its topic, but do not answer it.',
            'Doc 1: Sydney Harbour Bridge. Its steel arch is held together by some six million rivets.\n'
            'Doc 2: Climbing the bridge. Guided tours take visitors to the top, from where they see the city.',
        ),
        _KNOWLEDGE,
    ),
}


def simulator_template(name: str) -> SimulatorTemplate:
    """A template of ours by name, or anybody's from a JSON file with the fields of SimulatorTemplate.

    Raises:
      FileNotFoundError, ValueError: no such file, or its fields or placeholders are others.
    """
    if name in SIMULATOR_TEMPLATES:
        return SIMULATOR_TEMPLATES[name]
    path = pathlib.Path(name)
    if not path.is_file():
        known = ', '.join(map(repr, SIMULATOR_TEMPLATES))
        raise FileNotFoundError(f'template {name!r} is no file, and none of {known}')
    try:
        template = SimulatorTemplate(**json.loads(path.read_text('utf-8')))
        for noisy in (False, True):  # refuses unknown placeholders now rather than at the first search
            simulator_prompt(
                'q', template, question='q', golds=('a',), noisy=noisy, blind=False, count=1, words=1, style='s'
            )
    except (TypeError, ValueError) as error:
        raise ValueError(f'{path}: {error}; expected an object with the texts useful, noisy and knowledge') from error
    return template


OBSERVATION_OPEN, OBSERVATION_CLOSE = '\n<information>\n', '\n</information>\n'

INVALID_NOTICE = (
    '\nThat was not a valid action. Put a query inside the search tags, or the final answer inside the answer tags.\n'
)

_TAG = re.compile(r'<(/?)\s*(think|search|information|answer)\s*>', re.IGNORECASE)
_CONTROL = re.compile(r'[\x00-\x08\x0b-\x1f\x7f\ud800-\udfff]')  # the last: half a pair, which JSON may spell


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

    So do halves of surrogate pairs, which no tokenizer takes.

    Chat-control tokens need nothing here: the tokenizer never encodes plain text as special tokens.
    """
    return _TAG.sub(r'(\1\2)', _CONTROL.sub(' ', text))


def policy_prompt(question: str, wording: str = 'search', documents: str = '') -> str:
    """The user message that states the question and how to answer it, `wording` a key of POLICY_PROMPTS."""
    question = question.strip()
    asked = question if question.endswith('?') else question + '?'
    return fill(POLICY_PROMPTS[wording], question=asked, documents=documents)


def simulator_prompt(
    query: str,
    template: SimulatorTemplate,
    *,
    question: str,
    golds: Sequence[str],
    noisy: bool,
    blind: bool,
    count: int,
    words: int,
    style: str,
) -> str:
    """The simulator's user message for one query, which carries its own question and gold answers.

    Where `blind`, a request for noisy documents tells neither of them; without gold answers none does.
    """
    knowledge = (
        '' if not golds or (noisy and blind) else fill(template.knowledge, question=question.strip(), answer=golds[0])
    )
    return fill(
        template.noisy if noisy else template.useful,
        knowledge=knowledge,
        query=query,
        count=str(count),
        words=str(words),
        style=style,
    )


def render_documents(texts: Sequence[str]) -> str:
    """Documents as the policy sees them and as the simulator writes them: one line each, 'Doc 1: ...'."""
    return '\n'.join(f'Doc {i}: {" ".join(text.split())}' for i, text in enumerate(texts, start=1))


_DOC_LINE = re.compile(r'^Doc (\d+):[ \t]*(.*)$', re.MULTILINE)
LONGEST = 4  # a document may have so many times the words that were asked for
REPEATED = 0.5  # a document in which fewer than this share of all three-word runs are different repeats itself


def parse_documents(text: str, count: int, words: int) -> tuple[tuple[str, ...], str]:
    """Reads a simulator's output: lines 'Doc i: ...', numbered 1, 2, ... in order; what follows the last is ignored.

    Returns:
      The documents, neutralized, and ''; or () and what is wrong: 'count' (fewer documents than asked for), 'length'
      (one is too long), 'repetition' (one repeats itself or another), 'tags' (one holds a tag of the protocol).
    """
    documents: list[str] = []
    for match in _DOC_LINE.finditer(text):
        content = ' '.join(match[2].split())
        if int(match[1]) != len(documents) + 1 or not content or len(documents) == count:
            break
        documents.append(content)
    if len(documents) < count:
        return (), 'count'
    if any(_TAG.search(document) for document in documents):
        return (), 'tags'
    if any(len(document.split()) > LONGEST * words for document in documents):
        return (), 'length'
    if len(set(documents)) < count or any(map(repeats_itself, documents)):
        return (), 'repetition'
    return tuple(map(neutralize, documents)), ''


def repeats_itself(text: str) -> bool:
    """Whether most of its runs of three words occur more than once, as where a model is caught in a loop."""
    words = text.lower().split()
    runs = list(zip(words, words[1:], words[2:], strict=False))
    return len(set(runs)) < REPEATED * len(runs)


def parse_query(action: str) -> str | None:
    """The query of an action that ended at </search>: the text after its last <search>. None if there is none."""
    _, tag, query = action.partition(SEARCH_STOP)[0].rpartition('<search>')
    query = ' '.join(query.split())
    return query if tag and query else None
