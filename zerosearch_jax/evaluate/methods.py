"""The methods that an evaluation compares: the prompt of a model, whether it searches, and its weights.

All methods decode in the same way, with the same search engine and the same budget of sampled tokens.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Literal

from zerosearch_jax.data.rows import Question
from zerosearch_jax.evaluate.refine import RefinedSearch
from zerosearch_jax.generate.engine import Engine
from zerosearch_jax.rollout.config import RolloutConfig
from zerosearch_jax.rollout.rollout import OnTokens, Trajectory, rollout
from zerosearch_jax.search.search import DocumentSearch, Query, Result
from zerosearch_jax.simulator.writers import Writer
from zerosearch_jax.text import protocol
from zerosearch_jax.text.tokenizer import Tokenizer
from zerosearch_jax.text.trajectory import Kind


@dataclasses.dataclass(frozen=True)
class Method:
    """One way to answer a question (Sun et al., arXiv 2505.04588, §4.1, has all of them)."""

    prompt: Literal['direct', 'reason', 'documents', 'search']  # key of POLICY_PROMPTS (rollout/wording.py)
    refine: bool = False  # whether documents pass through evaluate/refine.py
    trained: bool = False  # whether it has trained weights of its own


METHODS = {
    'direct': Method('direct'),
    'cot': Method('reason'),  # chain of thought
    'rag': Method('documents'),  # the documents of one search for the question
    'agent': Method('search'),  # searches as its prompt says
    'search_o1': Method('search', refine=True),
    'r1': Method('reason', trained=True),  # reinforcement learning without search
    'search_r1': Method('search', trained=True),  # ... with a real engine
    'zerosearch': Method('search', trained=True),  # ... with a simulated one
}

OF_METHODS = {method.prompt for method in METHODS.values()}


def wording(method: Method, cfg: RolloutConfig) -> str:
    """The wording of a method's prompt: that of `cfg` if it is not of another kind of method, else its own."""
    fits = method.prompt in ('search' if cfg.max_turns else 'reason', cfg.prompt)
    return cfg.prompt if fits and cfg.prompt not in OF_METHODS else method.prompt


def episode_config(method: Method, cfg: RolloutConfig) -> RolloutConfig:
    """The budgets of an episode of a method: without turns, one action may have the tokens of all turns."""
    cfg = dataclasses.replace(cfg, prompt=wording(method, cfg))
    if method.prompt == 'search' or (method.prompt not in OF_METHODS and cfg.max_turns):
        return cfg
    room = cfg.response_tokens
    if method.prompt == 'documents':  # they are in the prompt, not in the response
        room -= cfg.observation_tokens
        cfg = dataclasses.replace(cfg, prompt_tokens=cfg.prompt_tokens + cfg.observation_tokens, response_tokens=room)
    return dataclasses.replace(cfg, max_turns=0, turn_tokens=min(room, cfg.turn_tokens * (cfg.max_turns + 1)))


def answer_questions(
    method: Method,
    questions: Sequence[Question],
    policy: Engine,
    source: Callable[[], DocumentSearch],
    refiner: Writer | None,
    tokenizer: Tokenizer,
    cfg: RolloutConfig,
    *,
    seed: int,
    on_finished: Callable[[Trajectory], None],
    on_tokens: OnTokens | None = None,
) -> list[Trajectory]:
    """Runs one episode for each question.

    Args:
      method: how the questions are asked.
      questions: distinct ids.
      policy: loaded with the method's weights.
      source: makes a source of the real engine's results.
      refiner: the model that summarizes documents, if the method does that.
      tokenizer: the policy's.
      cfg: budgets of a search episode.
      seed: of samples at a temperature above 0.
      on_finished: called with every episode when it ends.
      on_tokens: as in `rollout`.
    """
    given = _searched(questions, source()) if method.prompt == 'documents' else None
    search = RefinedSearch(source(), refiner, seed) if method.refine else source()

    def end(trajectory: Trajectory):
        if method.prompt in ('direct', 'documents') and trajectory.answer is None:
            trajectory.answer = _all_of_it(trajectory, tokenizer)
            trajectory.status = 'answered' if trajectory.answer else trajectory.status
        on_finished(trajectory)

    known = questions if given is None else [q for q in questions if not given[q.id].failure]
    found = rollout(
        known,
        1,
        policy,
        search,
        tokenizer,
        episode_config(method, cfg),
        identity=(seed, 0),
        stream='evaluation',
        prompt_results=given,
        on_finished=end,
        on_tokens=on_tokens,
    )
    for question in questions:
        if given and given[question.id].failure:
            failed = Trajectory(question, 0, [], [given[question.id]], 'search_failed')
            on_finished(failed)
            found.append(failed)
    return found


def _searched(questions: Sequence[Question], source: DocumentSearch) -> dict[str, Result]:
    """Searches for each question itself."""
    for question in questions:
        source.submit(Query(question.id, question, 0, 0, question.question))
    found = {}
    while source.active:
        found |= {result.query.handle: result for result in source.step()}
    return found


def _all_of_it(trajectory: Trajectory, tokenizer: Tokenizer) -> str | None:
    """All that the policy wrote after its thoughts, for prompts that ask for the answer and nothing else."""
    prompt, written = (
        [token for s in trajectory.segments if s.kind is kind for token in s.tokens]
        for kind in (Kind.PROMPT, Kind.ACTION)
    )
    opened = '<think>' if protocol.opens_thought(tokenizer.decode_bytes(prompt)) else ''
    return protocol.without_thoughts(opened + tokenizer.decode(written)) or None
