"""The reward of a trajectory: the score of its answer, and optional terms for its form, searches and length.

    reward = answer + format * well_formed + retrieval * found + overlong penalty    for the last turn
             + hop * new hop + information * gain - search for each search + turn    for every turn

Only what the policy wrote is parsed. `answer` may be a user's function, `package.module.function`, which takes
(trajectory, golden answers) and returns a finite number; `turn` may be one that takes a trajectory and returns a finite
number for each turn. If credit is by trajectory (config.rl.credit), the sum counts.
"""

import dataclasses
import math
import re
from collections.abc import Callable, Sequence
from typing import Literal

import numpy as np

from zerosearch_jax import settings
from zerosearch_jax.data.rows import Question, holds_answer, normalize_answer
from zerosearch_jax.rollout import answers
from zerosearch_jax.rollout.rollout import Trajectory
from zerosearch_jax.simulator.verify import answers_of, hops_of
from zerosearch_jax.text.protocol import ANSWER_STOP, TAGS, Grammar, opens_thought, parse_query
from zerosearch_jax.text.tokenizer import Tokenizer
from zerosearch_jax.text.trajectory import Kind

PUBLISHED_DEFAULT = 'Beijing'  # without an answer, the published parser finds this in its own prompt (difference D4)


LARGEST = 1e18  # the largest reward: its square has to fit a float32


@dataclasses.dataclass(frozen=True)
class RewardConfig:
    """The terms of the reward."""

    answer: str = 'f1'  # 'f1', 'em', 'cover_em', 'published_em' (difference D3), or the dotted name of a function
    format: float = 0.0  # added if the actions follow the protocol
    retrieval: float = 0.0  # added if the policy can read a golden answer in the documents of a search
    hop: float = 0.0  # added for a search that finds the answer of a hop before any other search does (new_hops)
    information: float = 0.0  # times the rise of the golden answer's log-prob by a search's documents, in nats a token
    search: float = 0.0  # subtracted for each search
    turn: str = ''  # the dotted name of a function that gives the reward of each turn of a trajectory; '': none
    overlong_tokens: int = 0  # a penalty rises linearly from 0 to 1 over this many last tokens of the budget (DAPO)
    missing: Literal['nothing', 'published'] = 'nothing'  # what counts as the answer if there is none (difference D4)

    def __post_init__(self):
        answer_function(self.answer)
        turn_function(self.turn)


def turn_function(name: str) -> Callable[[Trajectory], Sequence[float]] | None:
    """The user's function of turns, or None if none is named; raises ValueError if it cannot be imported."""
    found = settings.resolve_name(name, {'': None}, 'turn')
    if name and not callable(found):
        raise ValueError(f'turn = {name!r} is not a function')
    return found


def answer_function(name: str) -> Callable[[Trajectory, Sequence[str]], float]:
    """The function that scores an answer.

    Raises:
      ValueError: it is neither one of ours nor an importable function.
    """
    if name in answers.REWARDS:
        return lambda trajectory, golds: answers.REWARDS[name](trajectory.answer, golds)
    found = settings.resolve_name(name, answers.REWARDS, 'answer')
    if not callable(found):
        raise ValueError(f'answer = {name!r} is not a function')
    return found


class Scorer:
    """Rewards trajectories.

    Args:
      cfg: the terms of the reward.
      tokenizer: the policy's.
      response_tokens: the budget of a trajectory.
      grammar: of its actions.
    """

    def __init__(self, cfg: RewardConfig, tokenizer: Tokenizer, response_tokens: int, grammar: Grammar = TAGS):
        self._cfg, self._tokenizer, self._budget, self._grammar = cfg, tokenizer, response_tokens, grammar
        self._answer, self._turn = answer_function(cfg.answer), turn_function(cfg.turn)

    def __call__(self, trajectory: Trajectory) -> float:
        return float(self.by_turn(trajectory).sum())

    def by_turn(self, trajectory: Trajectory) -> np.ndarray:
        """The reward of each turn, float64 [turns]; the terms for the whole trajectory are on the last turn."""
        cfg, rewards = self._cfg, np.zeros(trajectory.turns)
        if cfg.hop or cfg.search:
            for turn, new in zip(trajectory.search_turns, new_hops(trajectory), strict=True):
                rewards[turn] += cfg.hop * bool(new) - cfg.search
        for turn, gain in zip(trajectory.search_turns, trajectory.information, strict=False):
            rewards[turn] += cfg.information * (gain or 0.0)
        if self._turn:
            rewards += self._checked('turn', len(rewards), trajectory, lambda: self._turn(trajectory))
        rewards[-1] += self._whole(trajectory)
        return rewards

    def _whole(self, trajectory: Trajectory) -> float:
        cfg, total = self._cfg, self._answer_score(trajectory)
        if cfg.format:
            total += cfg.format * well_formed(actions(trajectory, self._tokenizer), self._grammar)
        if cfg.retrieval:
            total += cfg.retrieval * found_answer(trajectory)
        return total + overlong_penalty(trajectory.response_tokens, self._budget, cfg.overlong_tokens)

    def _answer_score(self, trajectory: Trajectory) -> float:
        golds = trajectory.question.golden_answers
        if trajectory.answer is None and self._cfg.missing == 'published':
            trajectory = dataclasses.replace(trajectory, answer=PUBLISHED_DEFAULT)
        return float(self._checked('answer', 1, trajectory, lambda: [self._answer(trajectory, golds)])[0])

    def _checked(self, field: str, count: int, trajectory: Trajectory, call: Callable[[], Sequence[float]]):
        """What a function returns; raises ValueError if a user's function fails or returns no finite numbers."""
        question, name = trajectory.question, getattr(self._cfg, field)
        wanted = f'finite number below {LARGEST:g}' + (f' for each of {count} turns' if field == 'turn' else '')
        what = f'config.reward.{field} = {name!r} gives no {wanted} for question {question.id!r} ({question.question})'
        try:
            values = [*call()]
            usable = len(values) == count and all(math.isfinite(v) and abs(v) < LARGEST for v in values)
        except Exception as error:
            raise ValueError(f'{what}: {type(error).__name__}: {error}') from error
        if not usable:
            raise ValueError(f'{what}: {", ".join(map(str, values))}')
        return values


def hop_answers(question: Question) -> set[str]:
    """The normalized answers of the question's hops that can be checked; empty if the question lists no hops."""
    return {normalize_answer(answer) for _, answer in hops_of(question)} - {'', 'yes', 'no'}


def new_hops(trajectory: Trajectory) -> list[str]:
    """For each search, the normalized answer of the hop that it found before any other search, or ''.

    A search finds the answer of the hop that its query asks for (simulator.verify.answers_of), if what the policy can
    read of its documents holds it.
    """
    left, brought = hop_answers(trajectory.question), []
    for search, shown in zip(trajectory.searches, trajectory.shown, strict=False):  # a failed prompt's shows nothing
        answer = normalize_answer(answers_of(search.query, 'hop').told) if left else ''
        held = answer in left and any(holds_answer(document, [answer]) for document in shown)
        brought.append(answer if held else '')
        left = left - {brought[-1]}
    return brought


def actions(trajectory: Trajectory, tokenizer: Tokenizer) -> list[str]:
    """The text of every action, without the token after the answer.

    If the chat template opened a thought before an action, the action gets the opening tag.
    """
    texts, before = [], b''
    for segment in trajectory.segments:
        written = tokenizer.decode_bytes(segment.tokens)
        if segment.kind is Kind.ACTION:
            texts.append(('<think>' if opens_thought(before) else '') + written.decode('utf-8', 'replace'))
        before = written
    end = next((i for i, text in enumerate(texts, 1) if ANSWER_STOP in text), len(texts))
    return texts[:end]


_THINK = r'\s*<think>((?!</?\w+>).)*</think>'
_SOMETHING = r'\s*(?!</?\w+>)\S((?!</?\w+>).)*'
_FINAL = re.compile(_THINK + rf'\s*<answer>{_SOMETHING}</answer>\s*', re.DOTALL)


def well_formed(texts: Sequence[str], grammar: Grammar = TAGS) -> bool:
    """Whether every action thinks and then searches, and the last one thinks and then answers."""
    search = re.compile(_THINK + rf'\s*{grammar.open}{_SOMETHING}{grammar.close}\s*', re.DOTALL)
    valid = all(search.fullmatch(text) and parse_query(text, grammar) for text in texts[:-1])
    return bool(texts) and bool(_FINAL.fullmatch(texts[-1])) and valid


def found_answer(trajectory: Trajectory) -> bool:
    """Whether what the policy can read of any search's documents holds a golden answer."""
    golds = trajectory.question.golden_answers
    return any(holds_answer(document, golds) for shown in trajectory.shown for document in shown)


def overlong_penalty(length: int, budget: int, last: int) -> float:
    """0 up to budget - last tokens, then linearly down to -1 (Yu et al., arXiv 2503.14476, eq. 13)."""
    return -min(max(length - (budget - last), 0) / last, 1.0) if last else 0.0
