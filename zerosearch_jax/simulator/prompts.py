"""The requests to a simulator, and the parser of its output. The wording is plain data, in our own words.

For other checkpoints supply another template; nothing else in the code depends on the wording.
"""

import dataclasses
import functools
import re

from zerosearch_jax import settings
from zerosearch_jax.data.rows import Question
from zerosearch_jax.search.search import Query
from zerosearch_jax.simulator.config import SimulatorConfig
from zerosearch_jax.simulator.verify import answers_of
from zerosearch_jax.text.protocol import TAG, fill, neutralize


@dataclasses.dataclass(frozen=True)
class SimulatorTemplate:
    """The requests for useful and for noisy documents, and a sentence, `knowledge`, that contains the answer.

    Placeholders are {knowledge} for that sentence, {query}, {count}, {words}, {style} (for example 'web snippets'); in
    `knowledge` {question} and {answer}. `system` is as in rollout/wording.py's PolicyTemplate, without placeholders.
    """

    useful: str
    noisy: str
    knowledge: str = ''
    system: str | None = None


def _tuned(quality: str) -> str:
    return (
        'You are a search engine. {knowledge}Write {count} '
        + quality
        + ' {style} of about {words} words for the query, each on a line of its own.\nQuery: {query}\n'
        + quality.capitalize()
        + ' documents:'
    )


def _told(quality: str, aim: str) -> str:
    return (
        'Search engine. Write {count} {style} of about {words} words each, every one on a line of its own, '
        + aim
        + '.\nQuery: {query}{knowledge}\n'
        + f'{quality.capitalize()} documents:'
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
    # of another: the answer is last, next to the place to which it should be copied
    'told': SimulatorTemplate(
        _told('useful', 'that tell the answer'),
        _told('noisy', 'beside the point'),
        '\nQuestion: {question}\nAnswer: {answer}',
    ),
    # for a model that was not fine-tuned: what the documents should do, and an example
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


@functools.cache  # a file is read once, so that all searches of a run are asked in the same way
def simulator_template(name: str) -> SimulatorTemplate:
    """One of our templates by its name, or that of a JSON file with the fields of SimulatorTemplate.

    Raises:
      FileNotFoundError, ValueError: there is no such file, or it has unknown fields or placeholders.
    """
    template = settings.resolve_file(SimulatorTemplate, name, SIMULATOR_TEMPLATES, 'config.simulator.template')
    example = Query(None, Question('q', 'q', ('a',)), 0, 0, 'q')
    try:
        for noisy in (False, True):  # refuses unknown placeholders now rather than at the first search
            request(example, SimulatorConfig(), template, noisy, 1)
    except ValueError as error:
        raise ValueError(f'{name}: {error}') from error
    return template


def request(query: Query, cfg: SimulatorConfig, template: SimulatorTemplate, noisy: bool, count: int) -> str:
    """The message that asks a simulator for `count` useful or noisy documents.

    It holds the query's own question and the answer that `cfg.tell` selects; if that is none, `template.knowledge` ends
    after {question}. Requests for noisy documents with `cfg.blind_noise`, and all without golden answers, hold neither.
    """
    question, knowledge = query.question, ''
    if question.golden_answers and not (noisy and cfg.blind_noise):
        knowledge, answer = template.knowledge, answers_of(query, cfg.tell).told
        if not answer:
            knowledge = re.sub(r'(?s)(?<=\{question\}).*\S', '', knowledge)  # all but the space at its end
        knowledge = fill(knowledge, question=question.question.strip(), answer=answer)
    return fill(
        template.noisy if noisy else template.useful,
        knowledge=knowledge,
        query=query.text,
        count=str(count),
        words=str(cfg.words),
        style=cfg.style,
    )


_DOC_LINE = re.compile(r'^Doc (\d+):[ \t]*(.*)$', re.MULTILINE)
LONGEST = 4  # a document may have at most this many times the requested words
REPEATED = 0.5  # a document repeats itself if less than this share of its runs of three words are different


def parse_documents(text: str, count: int, words: int) -> tuple[tuple[str, ...], str]:
    """Parses a simulator's output: lines 'Doc i: ...', numbered 1, 2, ... in order; the rest after them is ignored.

    Returns:
      The documents, neutralized, and ''; or () and what is wrong: 'count' (fewer documents than requested), 'length'
      (one is too long), 'repetition' (one repeats itself or another), 'tags' (one holds a tag of the protocol).
    """
    documents: list[str] = []
    for match in _DOC_LINE.finditer(text):
        content = ' '.join(match[2].split())
        number = match[1][:9]  # a looping model may write too many digits for an int
        if number != match[1] or int(number) != len(documents) + 1 or not content or len(documents) == count:
            break
        documents.append(content)
    if len(documents) < count:
        return (), 'count'
    if any(TAG.search(document) for document in documents):
        return (), 'tags'
    if any(len(document.split()) > LONGEST * words for document in documents):
        return (), 'length'
    if len(set(documents)) < count or any(map(repeats_itself, documents)):
        return (), 'repetition'
    return tuple(map(neutralize, documents)), ''


def repeats_itself(text: str) -> bool:
    """Whether most of its runs of three words occur more than once, as in the output of a looping model."""
    words = text.lower().split()
    runs = list(zip(words, words[1:], words[2:], strict=False))
    return len(set(runs)) < REPEATED * len(runs)
