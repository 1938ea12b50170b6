"""The search episode: think, search, read, answer, over a policy engine and a source of search results.

    prompt --> policy writes --</search>--> search --> observation --> policy writes ... --</answer>--> one token more
                     '--- neither tag --> notice as an observation ---^                                 (its EOS)

The loop always advances the model with more slots to decode, so that neither model waits for the slowest sequences of
the other, and batches stay full. All decisions depend on tokens alone.
"""

import dataclasses
from collections.abc import Callable, Hashable, Mapping, Sequence

from zerosearch_jax import prng
from zerosearch_jax.data.rows import Question
from zerosearch_jax.generate.engine import Engine, Request, Stopped
from zerosearch_jax.rollout.config import RolloutConfig
from zerosearch_jax.rollout.prompts import encode_notice, encode_observation, encode_prompt, readable
from zerosearch_jax.search.search import FEWEST, Query, Result, SearchSource, refuse_outage
from zerosearch_jax.text import protocol
from zerosearch_jax.text.tokenizer import Tokenizer
from zerosearch_jax.text.trajectory import Kind, Segment


@dataclasses.dataclass
class Trajectory:
    """One finished episode."""

    question: Question
    sample: int
    segments: list[Segment]
    searches: list[Result] = dataclasses.field(default_factory=list)
    status: str = ''  # answered, turn_limit, token_limit or search_failed
    answer: str | None = None
    invalid_actions: int = 0
    search_turns: list[int] = dataclasses.field(default_factory=list)  # the turn of each search
    # of each search, what the policy can read of each document; []: the whole did not fit
    shown: list[list[str]] = dataclasses.field(default_factory=list)
    information: list[float | None] = dataclasses.field(default_factory=list)  # of each search, if it is rewarded

    @property
    def turns(self) -> int:
        """The number of turns; a turn is what the policy wrote between two observations."""
        return 1 + sum(segment.kind is Kind.OBSERVATION for segment in self.segments)

    @property
    def failed(self) -> bool:
        """Whether a search of it failed: such a trajectory is counted and never trained on."""
        return self.status == 'search_failed'

    @property
    def response_tokens(self) -> int:
        return sum(len(s.tokens) for s in self.segments if s.kind is not Kind.PROMPT)

    @property
    def action_tokens(self) -> int:
        return sum(len(s.tokens) for s in self.segments if s.kind is Kind.ACTION)


def check_searches(trajectories: Sequence[Trajectory], what: str, before: int = 0):
    """Raises OutsideFailed if (nearly) all episodes of `what` that search have a failed search.

    `before` is the number of earlier episodes, in which no search failed. If there are few episodes, failures in half
    of them are enough.
    """
    searched = before + sum(bool(t.searches) for t in trajectories)
    failures = [s for t in trajectories if t.failed for s in t.searches if s.failure]
    fewest = min(FEWEST, (before + len(trajectories)) / 2)
    refuse_outage(f'{what}, episodes that search', failures, searched, fewest)


class _Episode:
    """Host state of one running trajectory."""

    def __init__(self, trajectory: Trajectory, tokenizer: Tokenizer, cfg: RolloutConfig):
        self.trajectory, self._tokenizer, self._cfg = trajectory, tokenizer, cfg
        self._grammar = protocol.GRAMMARS[cfg.grammar]
        self.turns = 0
        self.closing = False  # the answer is complete; only its end-of-sequence token is missing

    @property
    def tokens_left(self) -> int:
        return self._cfg.response_tokens - self.trajectory.response_tokens

    @property
    def policy_text(self) -> str:
        """What the policy has written so far, as text."""
        actions = [s.tokens for s in self.trajectory.segments if s.kind is Kind.ACTION]
        return b'\n'.join(map(self._tokenizer.decode_bytes, actions)).decode('utf-8', 'replace')

    def act(self, stopped: Stopped) -> tuple[str, object]:
        """Appends an action; returns the next operation and its argument.

        These are ('search', query text), ('observe', tokens), ('sample_end', None) and ('finish', None).
        """
        trajectory = self.trajectory
        trajectory.segments.append(Segment(Kind.ACTION, stopped.tokens, stopped.logprobs))
        if self.closing:
            return 'finish', None
        text = self._tokenizer.decode_bytes(stopped.tokens).decode('utf-8', 'replace')
        answer = protocol.extract_answer(text) if stopped.reason == protocol.ANSWER_STOP else None
        if answer is not None:
            trajectory.answer, trajectory.status, self.closing = answer, 'answered', True
            return ('sample_end' if self.tokens_left else 'finish'), None
        if self.tokens_left <= 0:
            trajectory.status = 'token_limit'
            return 'finish', None
        if self.turns == self._cfg.max_turns:
            trajectory.status = 'turn_limit'
            return 'finish', None
        if stopped.reason == self._grammar.close and (query := protocol.parse_query(text, self._grammar)):
            return 'search', query
        trajectory.invalid_actions += 1
        return 'observe', encode_notice(self._tokenizer, self._cfg, stopped.tokens)

    def read(self, result: Result) -> tuple[str, object]:
        """Takes a search result; returns the next operation, as `act` does."""
        self.trajectory.searches.append(result)
        self.trajectory.search_turns.append(self.turns)
        if result.failure:
            self.trajectory.shown.append([])
            self.trajectory.status = 'search_failed'
            return 'finish', None
        tokens = encode_observation(self._tokenizer, result.documents, self._cfg)
        fits = len(tokens) < self.tokens_left
        self.trajectory.shown.append(readable(self._tokenizer, tokens, result.documents, self._cfg) if fits else [])
        return 'observe', tokens

    def observe(self, tokens: tuple[int, ...]) -> bool:
        """Appends an observation and counts the turn; returns False if no token could follow it."""
        if len(tokens) >= self.tokens_left:
            self.trajectory.status = 'token_limit'
            return False
        self.trajectory.segments.append(Segment(Kind.OBSERVATION, tokens))
        self.turns += 1
        return True


# takes the handle of an episode, (question id, sample), and the kind and tokens of its new text
OnTokens = Callable[[Hashable, Kind, Sequence[int]], None]


def rollout(
    questions: Sequence[Question],
    samples: int,
    policy: Engine,
    search: SearchSource,
    tokenizer: Tokenizer,
    cfg: RolloutConfig,
    *,
    identity: tuple,
    stream: str = 'policy',
    prompt_results: Mapping[str, Result] | None = None,
    on_finished: Callable[[Trajectory], None] = lambda trajectory: None,
    on_tokens: OnTokens | None = None,
) -> list[Trajectory]:
    """Runs `samples` episodes of every question to their end.

    Args:
      questions: distinct ids.
      samples: group size.
      policy: loaded engine whose stop strings are those of the grammar.
      search: the source of results.
      tokenizer: the policy's.
      cfg: budgets.
      identity: (seed, step), on which the randomness depends too.
      stream: random stream, see prng.STREAMS.
      prompt_results: by question id, the search whose documents are in the prompt (cfg.prompt 'documents').
      on_finished: called with every episode when it ends.
      on_tokens: called with new tokens of an episode: actions after every decode call, observations as a whole.

    Returns:
      Trajectories ordered by (question, sample).
    """
    episodes = _opened(questions, samples, policy, tokenizer, cfg, (stream, *identity), prompt_results)

    def advance(handle: Hashable, what: str, value):
        episode = episodes[handle]
        if what == 'search':
            trajectory = episode.trajectory
            turn, so_far = len(trajectory.searches), episode.policy_text
            search.submit(Query(handle, trajectory.question, trajectory.sample, turn, value, so_far))
        elif what == 'sample_end':
            policy.extend(handle, (), 1)
        elif what == 'observe' and episode.observe(value):
            if on_tokens:
                on_tokens(handle, Kind.OBSERVATION, value)
            policy.extend(handle, value, min(cfg.turn_tokens, episode.tokens_left))
        else:
            policy.close(handle)
            on_finished(episode.trajectory)

    policy.listen(on_tokens and (lambda handle, tokens: on_tokens(handle, Kind.ACTION, tokens)))
    while policy.active or search.active:
        if policy.active >= search.active:
            for stopped in policy.step():
                advance(stopped.handle, *episodes[stopped.handle].act(stopped))
        else:
            for result in search.step():
                advance(result.query.handle, *episodes[result.query.handle].read(result))
    return [episode.trajectory for episode in episodes.values()]


def _opened(questions, samples: int, policy: Engine, tokenizer: Tokenizer, cfg: RolloutConfig, randomness, results):
    """{(question id, sample): episode} with the first action requested; `randomness` is (stream, seed, step)."""
    episodes: dict[Hashable, _Episode] = {}
    for question in questions:
        read = [results[question.id]] if results else []
        prompt = encode_prompt(tokenizer, question, cfg, read[0].documents if read else ())
        shown = [readable(tokenizer, prompt, result.documents, cfg) for result in read]
        for sample in range(samples):
            handle = (question.id, sample)
            trajectory = Trajectory(question, sample, [Segment(Kind.PROMPT, prompt)], [*read])
            trajectory.search_turns, trajectory.shown = [0] * len(read), [*shown]
            episodes[handle] = _Episode(trajectory, tokenizer, cfg)
            key = prng.row_key(*randomness, question.id, sample)
            budget = min(cfg.turn_tokens, cfg.response_tokens)
            policy.open(Request(handle, prompt, key, budget))
    return episodes
