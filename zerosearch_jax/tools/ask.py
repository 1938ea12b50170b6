"""Asks a policy questions, one at a time, with any search engine; prints the episode while it runs, or JSON."""

import dataclasses
import json
import os
import re
import sys
import time
from collections.abc import Collection, Iterable, Iterator, Sequence

import jax

from zerosearch_jax import pretrained, progress, sharding
from zerosearch_jax.data.rows import Question
from zerosearch_jax.evaluate import methods, sources
from zerosearch_jax.evaluate.evaluation import Config
from zerosearch_jax.policy import open_policy, policy_params
from zerosearch_jax.rollout.prompts import PromptTooLong
from zerosearch_jax.rollout.rollout import OnTokens, Trajectory
from zerosearch_jax.run import preflight, trained
from zerosearch_jax.text.tokenizer import Tokenizer
from zerosearch_jax.text.trajectory import Kind
from zerosearch_jax.tools.screen import Screen

DOCUMENTS = 2  # documents for a search, if the policy's training does not say, as that of smollm2_policy


class Asker:
    """Owns the policy and the source of search results.

    Args:
      cfg: of an evaluation; its methods and data sets are not used.
      checkpoint: trained weights, see run/trained.py; '': those of cfg.policy.
      base: the model that an adapter belongs to; '': the one that it names, else cfg.policy.model.
      step: the checkpoint of a run; None: as in trained.find.
      given: fields that were set explicitly: the policy is asked as in its training except for these.

    Raises:
      FileNotFoundError, ValueError: the message says what to change.
    """

    def __init__(
        self,
        cfg: Config,
        checkpoint: str = '',
        base: str = '',
        step: int | None = None,
        given: Collection[str] = (),
    ):
        _check_one_choice(checkpoint, base, step, given)
        if cfg.evaluation.simulated and cfg.simulator.kind == 'oracle':
            raise ValueError("config.simulator.kind = 'oracle' needs the answers of the questions; choose another")
        cfg = trained.resolved(cfg, 'policy', 'simulator')
        policy, self._size, documents = cfg.policy, cfg.rollout, cfg.evaluation.documents
        if checkpoint or cfg.policy.adapter:
            found = trained.find(checkpoint or cfg.policy.adapter, step)
            self._size, documents = found.rollout_config(cfg.rollout, given), documents or found.documents(DOCUMENTS)
            progress.log(f'{found.reference} {found.state}: {trained.asked_line(self._size, documents)}')
        if checkpoint:
            if base and found.is_model:
                raise ValueError(f'{checkpoint} is a whole model; leave out --base, which names one under an adapter')
            asked = dataclasses.replace(policy, model=base or policy.model)
            policy = found.policy_config(asked, ['policy.model'] if base else [])
        evaluation = dataclasses.replace(cfg.evaluation, documents=documents or DOCUMENTS)
        cfg = dataclasses.replace(cfg, evaluation=evaluation)
        preflight.check(
            cfg.mesh,
            {'policy': policy},
            rollout_mesh=cfg.rollout.mesh,
            engine=None if cfg.evaluation.simulated else cfg.engine,
            simulator=cfg.simulator if cfg.evaluation.simulated else None,
            endpoint=cfg.endpoint,
            corpus=cfg.evaluation.corpus,
        )
        self._cfg, mesh = cfg, sharding.make_mesh(cfg.mesh)
        self._method = methods.Method(self._size.prompt)
        size = methods.episode_config(self._method, self._size)
        model = pretrained.load_model(policy.model, mesh)
        self.tokenizer: Tokenizer = model.tokenizer
        self._policy = open_policy(model, size, mesh, dtype=policy.dtype)
        self._policy.load(policy_params(model, policy, mesh), temperature=cfg.evaluation.temperature)
        self._source, _ = sources.open_source(cfg, mesh, None)

    def ask(self, question: str, on_tokens: OnTokens | None = None) -> Trajectory:
        """Runs one episode, a function of the seed and the question; `on_tokens` gets its tokens while it runs."""
        asked = [Question(question, question, ())]
        (trajectory,) = methods.answer_questions(
            self._method,
            asked,
            self._policy,
            self._source,
            None,
            self.tokenizer,
            self._size,
            seed=self._cfg.seed,
            on_finished=lambda _: None,
            on_tokens=on_tokens,
        )
        return trajectory


def _check_one_choice(checkpoint: str, base: str, step: int | None, given: Collection[str]):
    """Raises ValueError if weights are chosen in two ways, one of which would count for nothing."""
    fields = [f'config.{name}' for name in ('policy.model', 'policy.adapter') if name in given]
    if checkpoint and fields:
        raise ValueError(
            f'{checkpoint} is asked in place of config.policy, so leave out {fields[0]}; '
            '--base names the model under an adapter'
        )
    if not checkpoint and (base or step is not None):
        raise ValueError(
            f'{"--base" if base else "--step"} is for --checkpoint or a run before the questions; there is neither'
        )


def split_arguments(checkpoint: str, arguments: Sequence[str]) -> tuple[str, Sequence[str]]:
    """The weights and the questions; without --checkpoint, a directory before the questions is the weights.

    Raises:
      ValueError: what is before the questions is a path, but no directory.
    """
    if checkpoint or not arguments:
        return checkpoint, arguments
    if os.path.isdir(arguments[0]):  # pathlib's raises if a question is too long for a name
        return arguments[0], arguments[1:]
    if _is_path(arguments[0]):
        raise ValueError(
            f'{arguments[0]!r} is no directory of a run; other weights are given with --checkpoint; '
            'if it is a question, end it with "?"'
        )
    return checkpoint, arguments


def _is_path(text: str) -> bool:
    """Whether a mistyped path is more likely than a question: no space, or a directory before its last slash."""
    parent, slash, _ = text.rpartition('/')
    return bool(slash) and '?' not in text and (not re.search(r'\s', text) or os.path.isdir(parent or '/'))


def read_lines() -> Iterator[str]:
    """The lines of process 0's stdin on all processes, without empty ones."""
    prompt = sys.stdin.isatty()
    while True:
        if prompt:
            progress.log('question (Ctrl-D ends):')
        line = sharding.from_first_process('' if jax.process_index() else sys.stdin.readline())
        if not line:
            return
        if line.strip():
            yield line.strip()


def answer_all(asker: Asker, questions: Iterable[str], *, as_json: bool):
    """Asks the questions in turn and prints the episodes; of several processes only the first one prints."""
    out = sys.stdout
    out.reconfigure(errors='backslashreplace')
    screen = None if as_json or jax.process_index() else Screen(out, asker.tokenizer)
    for question in questions:
        began = time.perf_counter()
        if screen:
            screen.put(f'{question}\n', 'question')
        try:
            trajectory = asker.ask(question, screen and (lambda _, kind, tokens: screen.write(kind, tokens)))
        except PromptTooLong as error:
            progress.log(str(error))
            if as_json and jax.process_index() == 0:
                print(json.dumps({'question': question, 'answer': None, 'status': 'refused'}), file=out, flush=True)
            continue
        found = record(trajectory, asker.tokenizer) | {'seconds': round(time.perf_counter() - began, 3)}
        if screen:
            screen.end()
            screen.put(f'{result_line(found)}\n\n')
        elif jax.process_index() == 0:
            print(json.dumps(found), file=out, flush=True)


def record(trajectory: Trajectory, tokenizer: Tokenizer) -> dict:
    """An episode as JSON: `text` is all text after the prompt, `tokens` the number that the policy sampled."""
    response = [token for s in trajectory.segments if s.kind is not Kind.PROMPT for token in s.tokens]
    return {
        'question': trajectory.question.question,
        'answer': trajectory.answer,
        'status': trajectory.status,
        'searches': [
            {'query': s.query.text, 'documents': list(s.documents), 'failure': s.failure} for s in trajectory.searches
        ],
        'text': tokenizer.decode(response),
        'tokens': trajectory.action_tokens,
    }


def result_line(found: dict) -> str:
    """The last line of an episode."""
    failure = next((s['failure'] for s in found['searches'] if s['failure']), '')
    ends = {'turn_limit': 'no answer: out of turns', 'token_limit': 'no answer: out of tokens'}
    answer = ends.get(found['status'], f'no answer: search failed ({failure})')
    if found['answer'] is not None:
        answer = f'answer: {" ".join(found["answer"].split())}'
    count = len(found['searches'])
    return f'{answer}  ({count} search{"" if count == 1 else "es"}, {found["tokens"]} tokens, {found["seconds"]:.1f} s)'
