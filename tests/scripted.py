"""An engine and a search that play scripts, questions for them, and what comes of an episode."""

from zerosearch_jax.data.rows import Question
from zerosearch_jax.generate.engine import Stopped
from zerosearch_jax.rollout.config import RolloutConfig
from zerosearch_jax.rollout.rollout import rollout
from zerosearch_jax.search.search import Result
from zerosearch_jax.simulator.writers import Completion
from zerosearch_jax.text import protocol
from zerosearch_jax.text.tokenizer import byte_tokenizer

BYTES = byte_tokenizer()


EOS = BYTES.eos_ids[0]


CFG = RolloutConfig(
    max_turns=3, turn_tokens=400, observation_tokens=200, response_tokens=2000, prompt_tokens=1000, temperature=1.0
)


ROME = Question('rome', 'Where is Rome', ('Italy',))


PARIS = Question('paris', 'Where is {Paris}', ('France', 'Europe'))


OSLO = Question('oslo', 'Where is Oslo', ('Norway',))


class FakeEngine:
    """Plays scripts instead of a model: ends a generation where the real engine does, and notes what it was told.

    Args:
      script: function of (handle, number of the generation, engine) to the ids that would be sampled.
    """

    def __init__(self, script, tokenizer=BYTES, stops=protocol.STOP_STRINGS, capacity=10**6):
        self.capacity, self.decoded = capacity, 0
        self.context, self.requests, self.budgets, self.closed = {}, [], {}, []
        self._script, self._tokenizer, self._stops, self._queue = script, tokenizer, stops, []
        self._on_tokens = None

    @property
    def active(self):
        return len(self._queue)

    def open(self, request):
        assert request.handle not in self.context or request.handle in self.closed
        self.context[request.handle] = list(request.prompt)
        self.requests.append(request)
        self._start(request.handle, request.budget)

    def extend(self, handle, tokens, budget):
        assert handle not in self.closed
        self.context[handle] += tokens
        self._start(handle, budget)

    def close(self, handle):
        assert handle not in [h for h, _ in self._queue]
        self.closed.append(handle)

    def _start(self, handle, budget):
        assert budget >= 1
        assert len(self.context[handle]) + budget <= self.capacity
        self.budgets.setdefault(handle, []).append(budget)
        self._queue.append((handle, budget))

    def listen(self, on_tokens):
        self._on_tokens = on_tokens

    def step(self):
        if not self._queue:
            return []
        handle, budget = self._queue.pop(0)
        sampled, reason = [], None
        for token in self._script(handle, len(self.budgets[handle]) - 1, self):
            sampled.append(token)
            text = self._tokenizer.decode_bytes(sampled).decode('utf-8', 'replace')
            reason = next((stop for stop in self._stops if stop in text), None)
            reason = reason or ('eos' if token in self._tokenizer.eos_ids else None)
            reason = reason or ('length' if len(sampled) == budget else None)
            if reason:
                break
        assert reason, 'the script ended before the generation did'
        self.context[handle] += sampled
        self.decoded += len(sampled)
        if self._on_tokens:
            self._on_tokens(handle, sampled[:3])
            self._on_tokens(handle, sampled[3:])
        logprobs = tuple(-1.0 - i / 8 for i in range(len(sampled)))
        return [Stopped(handle, tuple(sampled), logprobs, reason)]


class FakeSearch:
    """Answers every query with `answer(query)`, a Result, `at_a_time` in each step, and notes the queries."""

    def __init__(self, answer=lambda query: Result(query, (f'about {query.text}',)), at_a_time=None):
        self.queries, self._answer, self._queue, self._at_a_time = [], answer, [], at_a_time

    @property
    def active(self):
        return len(self._queue)

    def submit(self, query):
        self.queries.append(query)
        self._queue.append(query)

    def step(self):
        n = self._at_a_time or len(self._queue)
        queue, self._queue = self._queue[:n], self._queue[n:]
        return [self._answer(query) for query in queue]


def play(texts, search=None, cfg=CFG, questions=(ROME,), samples=1, tokenizer=BYTES):
    """A rollout whose actions are the given texts, or lists of ids; an end-of-sequence token follows each."""
    search = FakeSearch() if search is None else search

    def script(handle, number, engine):
        text = texts(handle, number) if callable(texts) else texts[number]
        return [*(tokenizer.encode(text) if isinstance(text, str) else text), tokenizer.eos_ids[0]]

    engine = FakeEngine(script, tokenizer, protocol.GRAMMARS[cfg.grammar].stops)
    on_tokens = []
    spy = lambda handle, kind, tokens: on_tokens.append((handle, kind, tuple(tokens)))  # noqa: E731
    found = rollout(questions, samples, engine, search, tokenizer, cfg, identity=(0, 1), on_tokens=spy)
    assert engine.active == search.active == 0
    assert sorted(engine.closed) == sorted((q.id, s) for q in questions for s in range(samples))
    for trajectory in found:  # what the learner sees is what the engine saw
        context = engine.context[trajectory.question.id, trajectory.sample]
        assert [t for s in trajectory.segments for t in s.tokens] == context
        own = [
            (k, t)
            for handle, k, tokens in on_tokens
            if handle == (trajectory.question.id, trajectory.sample)
            for t in tokens
        ]
        assert own == [(s.kind, t) for s in trajectory.segments[1:] for t in s.tokens]
    return (found[0] if len(found) == 1 else found), engine, search


def kinds(trajectory):
    return ''.join(segment.kind.name[0] for segment in trajectory.segments)


def texts_of(trajectory, kind):
    return [BYTES.decode(s.tokens, skip_special_tokens=False) for s in trajectory.segments if s.kind is kind]


class FakeWriter:
    """A writer that answers every message with one text, and notes the messages."""

    def __init__(self, text='Rome is in Italy.', failure=''):
        self.asked, self.identities, self._queue, self._said = [], [], [], (text, failure)

    def ask(self, handle, message, identity, system=None):
        self.asked.append(message)
        self.identities.append(identity)
        self._queue.append(Completion(handle, *self._said))

    @property
    def active(self):
        return len(self._queue)

    def step(self):
        done, self._queue = self._queue, []
        return done
