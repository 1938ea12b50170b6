"""Demonstrations for supervised warm starts, made from the built-in world's training questions and real BM25 results.

A policy demonstration is an episode that follows a question's decomposition; a simulator demonstration is a prompt
for useful or noisy documents and the documents that BM25 finds with, or without, the right passage among them.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence

import numpy as np

from zerosearch_jax.data.rows import Question, normalize_answer, order
from zerosearch_jax.search import prompts, rollout
from zerosearch_jax.search.engines import Document
from zerosearch_jax.text.tokenizer import Tokenizer
from zerosearch_jax.text.trajectory import Kind, Segment

Search = Callable[[Sequence[str], int], list[list[Document]]]


def _texts(documents: Sequence[Document]) -> list[str]:
    return [f'{d.title}. {d.text}' for d in documents]


def policy_episode(
    question: Question, search: Search, tokenizer: Tokenizer, cfg: rollout.RolloutConfig, documents: int
) -> list[Segment] | None:
    """The episode of one question, None where the engine does not find a needed passage or a budget is exceeded."""
    prompt = rollout.encode_prompt(tokenizer, question, cfg)
    segments, learned = [Segment(Kind.PROMPT, prompt)], ''
    for step in question.metadata['decomposition']:
        found = search([step['query']], documents)[0]
        if step['passage'] not in [d.id for d in found]:
            return None
        action = f'<think>{learned}I need {step["need"]}.</think>\n<search>{step["query"]}</search>'
        observation = rollout.encode_observation(tokenizer, _texts(found), cfg.observation_tokens)
        segments += [
            Segment(Kind.ACTION, tuple(tokenizer.encode(action))),
            Segment(Kind.OBSERVATION, observation),
        ]
        learned = f'{step["need"][0].upper()}{step["need"][1:]} is {step["answer"]}. '
    answer = question.golden_answers[0]
    final = f'<think>{learned}So the answer is {answer}.</think>\n<answer>{answer}</answer>'
    segments.append(Segment(Kind.ACTION, (*tokenizer.encode(final), tokenizer.eos_ids[0])))
    response = sum(len(s.tokens) for s in segments[1:])
    return segments if response <= cfg.response_tokens else None


def simulator_example(
    question: Question,
    noisy: bool,
    search: Search,
    tokenizer: Tokenizer,
    *,
    documents: int,
    words: int,
    turn: int,
    rng: np.random.Generator,
) -> list[Segment] | None:
    """One prompt and its documents; useful ones hold the passage of the step `turn`, noisy ones hold no gold answer."""
    step = question.metadata['decomposition'][turn]
    found = search([step['query']], 4 * documents)[0]
    right = [d for d in found if d.id == step['passage']]
    golds = [normalize_answer(answer) for answer in (*question.golden_answers, step['answer'])]
    others = [d for d in found if d.id != step['passage']]
    if noisy:
        others = [d for d in others if not any(gold in normalize_answer(d.text) for gold in golds)]
    chosen = others[:documents] if noisy else right + others[: documents - 1]
    if len(chosen) < documents or not (noisy or right):
        return None
    texts = _texts([chosen[i] for i in rng.permutation(documents)])
    user = prompts.simulator_prompt(
        step['query'], question.question, question.golden_answers, noisy=noisy, count=documents, words=words
    )
    prompt = tuple(tokenizer.chat([{'role': 'user', 'content': user}]))
    completion = (*tokenizer.encode(prompts.render_documents(texts)), tokenizer.eos_ids[0])
    return [Segment(Kind.PROMPT, prompt), Segment(Kind.ACTION, completion)]


def policy_demos(questions, search, tokenizer, cfg, *, documents: int, count: int, seed: int) -> list[list[Segment]]:
    """The first `count` episodes that succeed, questions in an order that `seed` decides."""
    make = functools.partial(policy_episode, search=search, tokenizer=tokenizer, cfg=cfg, documents=documents)
    return _take((make(questions[i]) for i in order(len(questions), seed, 0)), count)


def simulator_demos(
    questions, search, tokenizer, *, documents: int, words: int, count: int, seed: int
) -> list[list[Segment]]:
    """`count` examples, useful and noisy in turn, over all steps of the questions' decompositions."""

    def examples():
        for number, i in enumerate(order(len(questions), seed, 0)):
            question, rng = questions[i], np.random.default_rng([seed, number])
            turn = int(rng.integers(len(question.metadata['decomposition'])))
            yield simulator_example(
                question, bool(number % 2), search, tokenizer, documents=documents, words=words, turn=turn, rng=rng
            )

    return _take(examples(), count)


def _take(candidates, count: int) -> list[list[Segment]]:
    taken = []
    for segments in candidates:
        if segments is not None:
            taken.append(segments)
        if len(taken) == count:
            return taken
    raise ValueError(f'only {len(taken)} of {count} demonstrations could be made; ask for fewer')
