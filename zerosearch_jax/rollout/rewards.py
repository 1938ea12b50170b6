"""The reward of a trajectory: the score of its answer, and what may be added for its form, its searches, its length.

    reward = answer + format * well_formed + retrieval * found + overlong penalty

Only what the policy wrote is parsed. `answer` may be a function of the user's own, `package.module.function`, that
takes (trajectory, golden answers) and returns a finite number.
"""

import dataclasses
import math
import re
from collections.abc import Callable, Sequence
from typing import Literal

from zerosearch_jax import settings
from zerosearch_jax.data.rows import holds_answer
from zerosearch_jax.rollout import answers
from zerosearch_jax.rollout.rollout import Trajectory
from zerosearch_jax.text.protocol import ANSWER_STOP, opens_thought
from zerosearch_jax.text.tokenizer import Tokenizer
from zerosearch_jax.text.trajectory import Kind

PUBLISHED_DEFAULT = 'Beijing'  # what the published parser finds in its own prompt where there is no answer (defect D4)


LARGEST = 1e18  # of a reward: its square has to be a float32


@dataclasses.dataclass(frozen=True)
class RewardConfig:
    """What a trajectory is rewarded for."""

    answer: str = 'f1'  # 'f1', 'em', 'cover_em', 'published_em' (defect D3), or the dotted name of a function
    format: float = 0.0  # added where the actions follow the protocol
    retrieval: float = 0.0  # added where a document holds a golden answer
    overlong_tokens: int = 0  # the last so many tokens of the budget cost up to 1, in a straight line (DAPO); 0: off
    missing: Literal['nothing', 'published'] = 'nothing'  # what a trajectory without an answer has said (defect D4)

    def __post_init__(self):
        answer_function(self.answer)


def answer_function(name: str) -> Callable[[Trajectory, Sequence[str]], float]:
    """The function that scores an answer.

    Raises:
      ValueError: neither one of ours nor an importable function.
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
      cfg: for what.
      tokenizer: the policy's.
      response_tokens: the budget of a trajectory.
    """

    def __init__(self, cfg: RewardConfig, tokenizer: Tokenizer, response_tokens: int):
        self._cfg, self._tokenizer, self._budget = cfg, tokenizer, response_tokens
        self._answer = answer_function(cfg.answer)

    def __call__(self, trajectory: Trajectory) -> float:
        cfg, total = self._cfg, self._answer_score(trajectory)
        if cfg.format:
            total += cfg.format * well_formed(actions(trajectory, self._tokenizer))
        if cfg.retrieval:
            total += cfg.retrieval * found_answer(trajectory)
        return total + overlong_penalty(trajectory.response_tokens, self._budget, cfg.overlong_tokens)

    def _answer_score(self, trajectory: Trajectory) -> float:
        """Of the function; raises ValueError where a user's own fails, or returns what is no number below LARGEST."""
        question = trajectory.question
        if trajectory.answer is None and self._cfg.missing == 'published':
            trajectory = dataclasses.replace(trajectory, answer=PUBLISHED_DEFAULT)
        wanted = f'finite number below {LARGEST:g} for question {question.id!r}'
        what = f'config.reward.answer = {self._cfg.answer!r} gives no {wanted}'
        try:
            value = self._answer(trajectory, question.golden_answers)
            usable = math.isfinite(value) and abs(value) < LARGEST
        except Exception as error:
            raise ValueError(f'{what} ({question.question}): {type(error).__name__}: {error}') from error
        if not usable:
            raise ValueError(f'{what} ({question.question}): {value}')
        return float(value)


def actions(trajectory: Trajectory, tokenizer: Tokenizer) -> list[str]:
    """The text of every action, up to the answer: the one token after it is not looked at.

    Where the chat template opened the thought at the end of the prompt, the first action has the opening tag too.
    """
    parts = [s.tokens for s in trajectory.segments if s.kind is Kind.ACTION]
    texts = [tokenizer.decode_bytes(tokens).decode('utf-8', 'replace') for tokens in parts]
    prompt = b''.join(tokenizer.decode_bytes(s.tokens) for s in trajectory.segments if s.kind is Kind.PROMPT)
    if texts and opens_thought(prompt):
        texts[0] = '<think>' + texts[0]
    end = next((i for i, text in enumerate(texts, 1) if ANSWER_STOP in text), len(texts))
    return texts[:end]


_THINK = r'\s*<think>((?!</?\w+>).)*</think>'
_SOMETHING = r'\s*(?!</?\w+>)\S((?!</?\w+>).)*'
_SEARCH = re.compile(_THINK + rf'\s*<search>{_SOMETHING}</search>\s*', re.DOTALL)
_FINAL = re.compile(_THINK + rf'\s*<answer>{_SOMETHING}</answer>\s*', re.DOTALL)


def well_formed(texts: Sequence[str]) -> bool:
    """Whether every action thinks and then searches, and the last one thinks and then answers."""
    return bool(texts) and bool(_FINAL.fullmatch(texts[-1])) and all(map(_SEARCH.fullmatch, texts[:-1]))


def found_answer(trajectory: Trajectory) -> bool:
    """Whether any document of any search holds a golden answer."""
    golds = trajectory.question.golden_answers
    return any(holds_answer(document, golds) for search in trajectory.searches for document in search.documents)


def overlong_penalty(length: int, budget: int, last: int) -> float:
    """0 up to budget - last tokens, then in a straight line down to -1 (Yu et al., arXiv 2503.14476, eq. 13)."""
    return -min(max(length - (budget - last), 0) / last, 1.0) if last else 0.0
