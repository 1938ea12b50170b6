"""Demonstrations for supervised fine-tuning: episodes for a policy, requests and documents for a simulator.

A policy's episode follows the decomposition of a question of the built-in world, with real BM25 results. A simulator's
example is a request for useful or noisy documents, and the documents: BM25's results in the world, with or without the
right passage, or those of a recorded search (data/pairs.py).
"""

import functools
import itertools
import re
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np

from zerosearch_jax import progress
from zerosearch_jax.data import pairs, rows, sources
from zerosearch_jax.data.rows import Passage, Question, holds_answer, normalize_answer, permutation
from zerosearch_jax.rollout.config import RolloutConfig
from zerosearch_jax.rollout.prompts import PromptTooLong, encode_observation, encode_prompt
from zerosearch_jax.search.bm25 import BM25
from zerosearch_jax.search.search import Document, Query
from zerosearch_jax.simulator import prompts
from zerosearch_jax.simulator.config import SimulatorConfig
from zerosearch_jax.simulator.prompts import request
from zerosearch_jax.simulator.verify import checkable, share_held
from zerosearch_jax.text import protocol
from zerosearch_jax.text.tokenizer import Tokenizer, conversation, template_arguments
from zerosearch_jax.text.trajectory import Kind, Segment, TokenSequence, flatten

ALIKE = 0.6  # two texts count as one if they share this much of the shorter one's words

Search = Callable[[Sequence[str], int], list[list[Document]]]


def policy_episode(
    question: Question, search: Search, tokenizer: Tokenizer, cfg: RolloutConfig, documents: int, guess: tuple = ()
) -> list[Segment] | None:
    """The episode of one question, or None if the engine does not find a needed passage or a budget is exceeded.

    guess: (hops, answer): it guesses after this many hops, which training should unlearn; (): it follows all hops.
    """
    try:
        segments, learned = [Segment(Kind.PROMPT, encode_prompt(tokenizer, question, cfg))], ''
    except PromptTooLong:
        return None
    hops, answer = guess or (None, question.golden_answers[0])
    for step in question.metadata['decomposition'][:hops]:
        found = search([step['query']], documents)[0]
        if step['passage'] not in [d.id for d in found]:
            return None
        action = f'<think>{learned}I need {step["need"]}.</think>\n'
        action += protocol.GRAMMARS[cfg.grammar].search(step['query'])
        observation = encode_observation(tokenizer, [d.as_text for d in found], cfg)
        segments += [_action(tokenizer, segments, action), Segment(Kind.OBSERVATION, observation)]
        learned = f'{step["need"][0].upper()}{step["need"][1:]} is {step["answer"]}. '
    says = 'I guess that it' if guess else 'So the answer'
    final = f'<think>{learned}{says} is {answer}.</think>\n<answer>{answer}</answer>'
    segments.append(_action(tokenizer, segments, final, tokenizer.eos_ids[0]))
    response, longest = sum(len(s.tokens) for s in segments[1:]), max(len(s.tokens) for s in segments[1::2])
    kept = len(segments) <= 2 * cfg.max_turns + 2 and longest <= cfg.turn_tokens and response <= cfg.response_tokens
    return segments if kept else None


def _action(tokenizer: Tokenizer, before: Sequence[Segment], text: str, *end: int) -> Segment:
    """What the policy writes after these segments; some templates have already begun its thought."""
    opened = protocol.opens_thought(tokenizer.decode_bytes(before[-1].tokens))
    return Segment(Kind.ACTION, (*tokenizer.encode(text.removeprefix('<think>') if opened else text), *end))


def world_search(
    question: Question, noisy: bool, search: Search, *, documents: int, turn: int, rng: np.random.Generator
) -> pairs.RecordedSearch | None:
    """One search of the world; useful documents begin with the passage of the step `turn`, noisy ones hold no answer.

    A request for useful documents holds the step's answer, which that passage holds.
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
    """A recorded search with its documents cut to `words` words; None if it has too few documents.

    Useful searches begin with documents that hold the answer that most of them hold, and this answer becomes the
    question's first, since that is the answer in the request. Noisy searches begin with documents that hold none.
    `checked` leaves out all other documents, however few useful ones remain, and searches for a yes or no; it is not
    for labels of a judge.
    """
    answers, useful = search.question.golden_answers, search.label == 'useful'
    cut = _different([replace(p, text=excerpt(p.title, p.text, words, answers)) for p in search.passages])
    told = sorted(answers, key=lambda a: -sum(holds_answer(_text(p), (a,)) for p in cut))[:1] if useful else []
    right = [p for p in cut if holds_answer(_text(p), told or answers) == useful]
    chosen = right if checked else right + [p for p in cut if p not in right]
    if len(chosen) < (1 if checked and useful else documents) or (checked and not checkable(answers)):
        return None
    question = replace(search.question, golden_answers=(*told, *(a for a in answers if a not in told)))
    return replace(search, question=question, passages=tuple(chosen[:documents]))


def _different(passages: Sequence[Passage]) -> list[Passage]:
    """The passages that do not repeat an earlier one: dumps of an encyclopedia overlap."""
    kept: list[tuple[Passage, set[str]]] = []
    for passage in passages:
        words = set(normalize_answer(passage.text).split())
        if all(len(words & others) < ALIKE * min(len(words), len(others)) for _, others in kept):
            kept.append((passage, words))
    return [passage for passage, _ in kept]


def _text(passage: Passage) -> str:
    return Document(passage.title, passage.text).as_text


# a full stop that does not follow an initial or a short title, before a possible beginning of a sentence
_SENTENCE_END = re.compile(r'(?<!\b[A-Z])(?<!\b(?:Mr|Ms|Dr|St|Jr))(?<!\bMrs)[.!?]["\')]*\s+(?=["\'(]?[A-Z0-9])')


def excerpt(title: str, text: str, words: int, answers: Sequence[str]) -> str:
    """About `words` words of a text, in whole sentences if they fit.

    It begins with the first sentence that holds an answer or else with the first sentence that begins within the text.
    A title that the text repeats is dropped.
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
    """The tokens that only a template may write. In a text they would be encoded as letters, and so be taught."""
    return [token.content for token in tokenizer.hf.added_tokens_decoder.values() if token.special]


def simulator_example(
    item: pairs.Pair | pairs.RecordedSearch, cfg: SimulatorConfig, tokenizer: Tokenizer
) -> list[Segment]:
    """The request and, as the only tokens with loss, the documents and the end of the sequence."""
    history, template = (), prompts.simulator_template(cfg.template)
    if isinstance(item, pairs.Pair):
        history, message, completion = item.history, item.prompt, item.completion
    else:
        # its first answer is the one that the documents hold, whatever the decomposition says
        query = Query(None, replace(item.question, metadata={}), 0, 0, item.query)
        message = request(query, cfg, template, item.label == 'noisy', len(item.passages))
        texts = [protocol.neutralize(Document(p.title, p.text).as_text) for p in item.passages]
        completion = protocol.render_documents(texts)
        for token in control_tokens(tokenizer):
            completion = completion.replace(token, ' ')
    arguments = template_arguments(cfg.template_arguments)
    told = any(said['role'] == 'system' for said in history)
    *before, asked = conversation(message, None if told else template.system)
    prompt = tuple(tokenizer.chat([*before, *history, asked], arguments=arguments))
    if '</think>' not in completion and protocol.opens_thought(tokenizer.decode_bytes(prompt)):
        completion = f'</think>\n{completion}'  # what stands in a thought is no document
    return [Segment(Kind.PROMPT, prompt), Segment(Kind.ACTION, (*tokenizer.encode(completion), tokenizer.eos_ids[0]))]


def balanced(items: Sequence[pairs.Pair | pairs.RecordedSearch], seed: int) -> list[pairs.Pair | pairs.RecordedSearch]:
    """Useful and noisy items in turn, each in an order that depends on `seed`, until one of the two is used up.

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
    kept = [item for pair in zip(*shuffled, strict=False) for item in pair]
    if len(kept) < len(items):
        progress.log(f'{len(items) - len(kept)} of {len(items)} searches are left out: of the label that has more')
    return kept


def policy_demos(
    questions, search, tokenizer, cfg, *, documents: int, count: int, seed: int, guesses: int = 0, late: bool = False
) -> list[list[Segment]]:
    """The first `count` episodes (0: all), with questions in an order that depends on `seed`.

    Each question gives its episode by `policy_episode`, if there is one, and `guesses` more episodes, which answer with
    the answers of the next questions. These do not search; with `late` only the first does not, the second follows one
    hop, the third two, as far as there are hops.
    """

    def made():
        places = permutation(len(questions), seed, 0)
        for number, i in enumerate(places):
            yield policy_episode(questions[i], search, tokenizer, cfg, documents)
            for shift in range(min(guesses, len(questions[i].metadata['decomposition'])) if late else guesses):
                answer = questions[places[(number + shift + 1) % len(places)]].golden_answers[0]
                yield policy_episode(questions[i], search, tokenizer, cfg, documents, (shift * late, answer))

    return _take(made(), count)


def world_searches(name: str, folds: tuple[int, ...], *, documents: int, seed: int) -> list[pairs.RecordedSearch]:
    """One search for each training question of these folds of a built-in world, useful and noisy in turn, over all
    steps of decompositions, as far as possible."""
    questions = rows.in_folds(sources.load_questions(name, 'train'), folds)
    search = BM25(sources.load_passages(name)).search

    def made():
        for number, i in enumerate(permutation(len(questions), seed, 0)):
            question, rng = questions[i], np.random.default_rng([seed, number])
            turn, count = int(rng.integers(len(question.metadata['decomposition']))), some_documents(documents, rng)
            yield world_search(question, bool(number % 2), search, documents=count, turn=turn, rng=rng)

    return _take(made(), 0)


def recorded_searches(
    items: Sequence[pairs.Pair | pairs.RecordedSearch], *, documents: int, words: int, seed: int
) -> list[pairs.Pair | pairs.RecordedSearch]:
    """Recorded searches, cut by `recorded_search`, without those that it leaves out; pairs are unchanged."""

    def made():
        for number, item in enumerate(items):
            if isinstance(item, pairs.RecordedSearch):
                fewer = some_documents(documents, np.random.default_rng([seed, number]))
                item = recorded_search(item, fewer if item.label == 'noisy' else documents, words)
            yield item

    return _take(made(), 0)


def chosen_searches(
    items: Sequence[pairs.Pair | pairs.RecordedSearch], *, fewest: int, query_words: float
) -> list[pairs.Pair | pairs.RecordedSearch]:
    """Searches with at least so many documents, which hold at least this share of the query's words; all pairs."""

    def enough(item: pairs.Pair | pairs.RecordedSearch) -> bool:
        if isinstance(item, pairs.Pair):
            return True
        return len(item.passages) >= fewest and share_held(item.query, map(_text, item.passages)) >= query_words

    return list(filter(enough, items))


def exchange_answers(
    items: Sequence[pairs.Pair | pairs.RecordedSearch], share: float, seed: int
) -> list[pairs.Pair | pairs.RecordedSearch]:
    """Exchanges the answer in request and documents, for about this share of useful searches, by one of the same form.

    It teaches that documents hold the answer in the request, even if the model knows better. A search is unchanged if
    its query or question contains one of the two answers, or if its first document would not hold the new answer.
    """
    forms: dict[str, list[int]] = {}
    for place, item in enumerate(items):
        if isinstance(item, pairs.RecordedSearch) and item.label == 'useful' and item.question.golden_answers:
            forms.setdefault(_form(item.question.golden_answers[0]), []).append(place)
    made, rng = list(items), np.random.default_rng(seed)
    for places in forms.values():
        order = [places[i] for i in rng.permutation(len(places))]
        for place, other in zip(order, (*order[1:], order[0]), strict=True):
            if rng.random() < share:
                made[place] = _retold(items[place], items[other].question.golden_answers[0])
    return made


def _form(answer: str) -> str:
    """An answer with every word as A or a, and every digit as 9: answers of the same form can be exchanged."""
    words = re.sub(r'[^\W\d_]+', lambda word: 'A' if word[0][0].isupper() else 'a', answer)
    return re.sub(r'\d', '9', words)


def _retold(search: pairs.RecordedSearch, answer: str) -> pairs.RecordedSearch:
    """The search with another answer in place of its first one."""
    old = search.question.golden_answers[0]
    if holds_answer(f'{search.query} {search.question.question}', (old, answer)):
        return search
    put = functools.partial(re.compile(rf'(?<!\w){re.escape(old)}(?!\w)', re.IGNORECASE).sub, lambda _: answer)
    passages = tuple(replace(p, title=put(p.title), text=put(p.text)) for p in search.passages)
    if not holds_answer(_text(passages[0]), (answer,)) or holds_answer(_text(passages[0]), (old,)):
        return search
    return replace(search, question=replace(search.question, golden_answers=(answer,)), passages=passages)


def some_documents(most: int, rng: np.random.Generator) -> int:
    """The number of documents of one example: up to `most`, with larger numbers more often."""
    return int(rng.integers(1, most + 1, 2).max())


def _take(candidates, count: int) -> list:
    """The first `count` candidates that are not None; 0: all."""
    taken = list(itertools.islice((c for c in candidates if c is not None), count or None))
    if len(taken) < count:
        raise ValueError(f'only {len(taken)} of {count} demonstrations could be made; ask for fewer')
    return taken


def flattened(made: Sequence[list[Segment]], longest: int) -> list[TokenSequence]:
    """The demonstrations of at most `longest` tokens."""
    sequences = [flatten(segments) for segments in made]
    kept = [sequence for sequence in sequences if len(sequence.tokens) <= longest]
    if len(kept) < len(sequences):
        longer = f'{len(sequences) - len(kept)} demonstrations of more than {longest} tokens (a row, or the model)'
        progress.log(f'{longer} are left out')
    return kept
