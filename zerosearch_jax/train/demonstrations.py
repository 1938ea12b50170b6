"""Demonstrations for supervised fine-tuning: episodes for a policy, requests and documents for a simulator.

A policy's episode follows the decomposition of a question of the built-in world, with real BM25 results. A simulator's
example is a request for useful or noisy documents and the documents: those that BM25 finds in the world with, or
without, the right passage among them, or those of a search that was recorded (data/pairs.py).
"""

import itertools
import re
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np

from zerosearch_jax.data import pairs
from zerosearch_jax.data.rows import Passage, Question, holds_answer, normalize_answer, permutation
from zerosearch_jax.rollout.config import RolloutConfig
from zerosearch_jax.rollout.prompts import encode_observation, encode_prompt
from zerosearch_jax.search.search import Document, Query
from zerosearch_jax.simulator import prompts
from zerosearch_jax.simulator.config import SimulatorConfig
from zerosearch_jax.simulator.prompts import request
from zerosearch_jax.text import protocol
from zerosearch_jax.text.tokenizer import Tokenizer, template_arguments
from zerosearch_jax.text.trajectory import Kind, Segment

ALIKE = 0.6  # share of the shorter text's words from which on two are taken for one

Search = Callable[[Sequence[str], int], list[list[Document]]]


def policy_episode(
    question: Question, search: Search, tokenizer: Tokenizer, cfg: RolloutConfig, documents: int
) -> list[Segment] | None:
    """The episode of one question, None where the engine does not find a needed passage or a budget is exceeded."""
    prompt = encode_prompt(tokenizer, question, cfg)
    segments, learned = [Segment(Kind.PROMPT, prompt)], ''
    for step in question.metadata['decomposition']:
        found = search([step['query']], documents)[0]
        if step['passage'] not in [d.id for d in found]:
            return None
        action = f'<think>{learned}I need {step["need"]}.</think>\n<search>{step["query"]}</search>'
        observation = encode_observation(tokenizer, [d.as_text for d in found], cfg.observation_tokens)
        segments += [Segment(Kind.ACTION, tuple(tokenizer.encode(action))), Segment(Kind.OBSERVATION, observation)]
        learned = f'{step["need"][0].upper()}{step["need"][1:]} is {step["answer"]}. '
    answer = question.golden_answers[0]
    final = f'<think>{learned}So the answer is {answer}.</think>\n<answer>{answer}</answer>'
    segments.append(Segment(Kind.ACTION, (*tokenizer.encode(final), tokenizer.eos_ids[0])))
    response, longest = sum(len(s.tokens) for s in segments[1:]), max(len(s.tokens) for s in segments[1::2])
    kept = len(segments) <= 2 * cfg.max_turns + 2 and longest <= cfg.turn_tokens and response <= cfg.response_tokens
    return segments if kept else None


def guess_episode(question: Question, answer: str, tokenizer: Tokenizer, cfg: RolloutConfig) -> list[Segment]:
    """An episode that answers at once, with whatever answer is given: what training is to unlearn."""
    action = f'<think>I guess that it is {answer}.</think>\n<answer>{answer}</answer>'
    return [
        Segment(Kind.PROMPT, encode_prompt(tokenizer, question, cfg)),
        Segment(Kind.ACTION, (*tokenizer.encode(action), tokenizer.eos_ids[0])),
    ]


def world_search(
    question: Question, noisy: bool, search: Search, *, documents: int, turn: int, rng: np.random.Generator
) -> pairs.RecordedSearch | None:
    """One search of the world; useful documents begin with the passage of the step `turn`, noisy ones hold no answer.

    The answer that a request for useful ones tells is the step's: what that passage holds.
    """
    step = question.metadata['decomposition'][turn]
    found = search([step['query']], 4 * documents)[0]
    right = [d for d in found if d.id == step['passage']]
    golds = (*question.golden_answers, step['answer'])
    others = [d for d in found if d.id != step['passage']]
    if noisy:
        others = [d for d in others if not holds_answer(d.as_text, golds)]
        chosen = [others[i] for i in rng.permutation(len(others))[:documents]]
    else:
        question = replace(question, golden_answers=(step['answer'],))
        chosen = right and (right + others)[:documents]
    if len(chosen) < documents:
        return None
    passages = tuple(Passage(d.id, d.title, d.text) for d in chosen)
    return pairs.RecordedSearch(question.id, question, step['query'], passages, 'noisy' if noisy else 'useful')


def recorded_search(
    search: pairs.RecordedSearch, documents: int, words: int, *, checked: bool = True
) -> pairs.RecordedSearch | None:
    """A recorded search cut to documents of so many words; None if it has too few.

    Useful ones begin with those that hold an answer, and the question's first answer becomes one that the first of them
    holds: it is the one that a request tells. Noisy ones begin with those that hold none. `checked` leaves out all
    others, however few useful ones remain; a judge's label is not of this kind.
    """
    answers, useful = search.question.golden_answers, search.label == 'useful'
    cut = _different([replace(p, text=excerpt(p.title, p.text, words, answers)) for p in search.passages])
    held = [[a for a in answers if holds_answer(_text(p), (a,))] for p in cut]
    right = [p for p, own in zip(cut, held, strict=True) if bool(own) == useful]
    chosen = right if checked else right + [p for p in cut if p not in right]
    if len(chosen) < (1 if checked and useful else documents):
        return None
    told = next(filter(None, held), [])[:1] if useful else []
    question = replace(search.question, golden_answers=(*told, *(a for a in answers if a not in told)))
    return replace(search, question=question, passages=tuple(chosen[:documents]))


def _different(passages: Sequence[Passage]) -> list[Passage]:
    """Those that say little that one before them says: dumps of an encyclopedia overlap."""
    kept: list[tuple[Passage, set[str]]] = []
    for passage in passages:
        words = set(normalize_answer(passage.text).split())
        if all(len(words & others) < ALIKE * min(len(words), len(others)) for _, others in kept):
            kept.append((passage, words))
    return [passage for passage, _ in kept]


def _text(passage: Passage) -> str:
    return Document(passage.title, passage.text).as_text


# a full stop, which is none of an initial or of a short title, before what may begin a sentence
_SENTENCE_END = re.compile(r'(?<!\b[A-Z])(?<!\b(?:Mr|Ms|Dr|St|Jr))(?<!\bMrs)[.!?]["\')]*\s+(?=["\'(]?[A-Z0-9])')


def excerpt(title: str, text: str, words: int, answers: Sequence[str]) -> str:
    """About so many words of a text, whole sentences where they fit.

    It begins with the first sentence that holds an answer, else with the first one that begins within the text. A title
    that the text repeats is dropped.
    """
    text = ' '.join(text.split())
    rest = text.removeprefix(f'{title} ')
    text = rest if title and rest[:1].isupper() else text
    ends = [match.end() for match in _SENTENCE_END.finditer(text)]
    sentences = [text[a:b].strip() for a, b in itertools.pairwise((0, *ends, len(text)))]
    whole = 1 if len(sentences) > 1 and sentences[0][:1].islower() else 0  # the first may be the end of another
    begin = next((i for i, sentence in enumerate(sentences) if holds_answer(sentence, answers)), whole)
    chosen = _some_words(sentences[begin], words, answers)
    for sentence in sentences[begin + 1 :]:
        if len(f'{chosen} {sentence}'.split()) > words:
            break
        chosen = f'{chosen} {sentence}'
    return chosen


def _some_words(sentence: str, words: int, answers: Sequence[str]) -> str:
    """A sentence; of a long one the first half-overlapping part that holds an answer, or else the beginning."""
    parts = sentence.split()
    if 2 * len(parts) <= 3 * words:
        return sentence
    windows = [' '.join(parts[i : i + words]) for i in range(0, max(len(parts) - words // 2, 1), max(words // 2, 1))]
    return next((window for window in windows if holds_answer(window, answers)), windows[0])


def control_tokens(tokenizer: Tokenizer) -> list[str]:
    """What only a template may write. In a text it is encoded as letters, which no model is to learn."""
    return [token.content for token in tokenizer.hf.added_tokens_decoder.values() if token.special]


def simulator_example(
    item: pairs.Pair | pairs.RecordedSearch, cfg: SimulatorConfig, tokenizer: Tokenizer
) -> list[Segment]:
    """The request and, as the only tokens with loss, the documents and the end of the sequence."""
    history: tuple = ()
    if isinstance(item, pairs.Pair):
        history, message, completion = item.history, item.prompt, item.completion
    else:
        template, count = prompts.simulator_template(cfg.template), len(item.passages)
        query = Query(None, item.question, 0, 0, item.query)
        message = request(query, cfg, template, item.label == 'noisy', count)
        texts = [protocol.neutralize(Document(p.title, p.text).as_text) for p in item.passages]
        completion = protocol.render_documents(texts)
        for token in control_tokens(tokenizer):
            completion = completion.replace(token, ' ')
    arguments = template_arguments(cfg.template_arguments)
    prompt = tuple(tokenizer.chat([*history, {'role': 'user', 'content': message}], arguments=arguments))
    return [Segment(Kind.PROMPT, prompt), Segment(Kind.ACTION, (*tokenizer.encode(completion), tokenizer.eos_ids[0]))]


def balanced(items: Sequence[pairs.Pair | pairs.RecordedSearch], seed: int) -> list[pairs.Pair | pairs.RecordedSearch]:
    """Useful and noisy items in turn, each in an order that `seed` decides, until one of the two is used up.

    Raises:
      ValueError: an item has no label.
    """
    unlabelled = [item.id for item in items if item.label not in pairs.LABELS]
    if unlabelled:
        raise ValueError(
            f'{len(unlabelled)} rows say neither useful nor noisy (the first is {unlabelled[0]}); give them a field '
            '"label", or set config.demos.balance=False'
        )
    parts = [[item for item in items if item.label == label] for label in pairs.LABELS]
    shuffled = [[part[i] for i in permutation(len(part), seed, 0)] for part in parts]
    return [item for pair in zip(*shuffled, strict=False) for item in pair]


def policy_demos(
    questions, search, tokenizer, cfg, *, documents: int, count: int, seed: int, guesses: int = 0
) -> list[list[Segment]]:
    """The first `count` episodes (0: all), questions in an order that `seed` decides.

    Of each question the one that `policy_episode` makes of it, if it can, and so many `guesses`: they do not search,
    and take the answers of the next questions.
    """

    def made():
        places = permutation(len(questions), seed, 0)
        for number, i in enumerate(places):
            yield policy_episode(questions[i], search, tokenizer, cfg, documents)
            for shift in range(1, guesses + 1):
                answer = questions[places[(number + shift) % len(places)]].golden_answers[0]
                yield guess_episode(questions[i], answer, tokenizer, cfg)

    return _take(made(), count)


def world_searches(questions, search, *, documents: int, seed: int) -> list[pairs.RecordedSearch]:
    """One search a question, useful and noisy in turn, over all steps of decompositions; those that can be made."""

    def made():
        for number, i in enumerate(permutation(len(questions), seed, 0)):
            question, rng = questions[i], np.random.default_rng([seed, number])
            turn, count = int(rng.integers(len(question.metadata['decomposition']))), some_documents(documents, rng)
            yield world_search(question, bool(number % 2), search, documents=count, turn=turn, rng=rng)

    return _take(made(), 0)


def recorded_searches(
    items: Sequence[pairs.Pair | pairs.RecordedSearch], *, documents: int, words: int, seed: int
) -> list[pairs.Pair | pairs.RecordedSearch]:
    """Recorded searches cut as `recorded_search` does, those that can be; pairs as they are."""

    def made():
        for number, item in enumerate(items):
            if isinstance(item, pairs.RecordedSearch):
                fewer = some_documents(documents, np.random.default_rng([seed, number]))
                item = recorded_search(item, fewer if item.label == 'noisy' else documents, words)
            yield item

    return _take(made(), 0)


def some_documents(most: int, rng: np.random.Generator) -> int:
    """Documents of one example: a simulator is to write any number up to `most`, and learns the larger ones most."""
    return int(rng.integers(1, most + 1, 2).max())


def _take(candidates, count: int) -> list:
    """The first `count` that could be made, 0: all."""
    taken = list(itertools.islice((c for c in candidates if c is not None), count or None))
    if len(taken) < count:
        raise ValueError(f'only {len(taken)} of {count} demonstrations could be made; ask for fewer')
    return taken
