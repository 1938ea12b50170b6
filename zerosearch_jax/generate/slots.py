"""The slots of one model, refilled when generations finish, for one role or for adapters of one base.

This is a state machine on the host, deterministic and replicated: every process runs it on the same small arrays. A
generation takes a free slot, decodes in it, and keeps it while it is stopped, until it is extended (by an observation
and more tokens) or closed.

A prompt is prefilled except for the prefix that another slot, or the free one, holds (generate/contents.py). When all
slots are free, their contents are forgotten.
"""

import collections
import concurrent.futures
import dataclasses
from collections.abc import Callable, Hashable, Iterator, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from zerosearch_jax import sharding
from zerosearch_jax.generate import ahead, programs, serving
from zerosearch_jax.generate.capacity import FORK_ROWS, rounded_capacity, shapes, slot_count, slots_that_fit
from zerosearch_jax.generate.contents import Contents, Write
from zerosearch_jax.generate.requests import Request, Role, Stopped
from zerosearch_jax.generate.sampling import FULL_SUPPORT, Truncation
from zerosearch_jax.models import cache as kv
from zerosearch_jax.models.config import ModelConfig
from zerosearch_jax.text.stop import StopTable


@dataclasses.dataclass
class _Generation:
    """Host record of one occupied slot."""

    role: int
    handle: Hashable
    slot: int
    tokens: list[int] = dataclasses.field(default_factory=list)
    logprobs: list[float] = dataclasses.field(default_factory=list)
    decoding: bool = True


class Slots:
    """Owns cache, weights and slots of one model.

    Args:
      cfg: the model.
      mesh: of its weights.
      roles: if there are several, all are adapters of one base, which is in memory once; roles without weights of their
        own are last.
      capacity: tokens that a slot can hold, prompt and observations included.
      stop: automaton of the stop strings.
      eos_ids: tokens that end a generation.
      cache_bytes: the most bytes of each device for the cache; fewer slots are made if not all fit. None: no limit.
      decode_steps: tokens that one call decodes.
      truncation: restriction of the sampling support (evaluation only).
      dtype: compute and cache dtype.
    """

    def __init__(
        self,
        cfg: ModelConfig,
        mesh: jax.sharding.Mesh,
        roles: Sequence[Role],
        *,
        capacity: int,
        stop: StopTable,
        eos_ids: tuple[int, ...],
        cache_bytes: int | None = None,
        decode_steps: int = 16,
        truncation: Truncation = FULL_SUPPORT,
        dtype=jnp.float32,
    ):
        self.cfg, self.mesh, self.decode_steps = cfg, mesh, decode_steps
        self.capacity, self.roles = rounded_capacity(capacity), tuple(roles)
        if cache_bytes is not None:
            most = slots_that_fit(cache_bytes // len(self.roles), cfg, mesh, capacity, dtype)
            self.roles = tuple(role._replace(slots=min(role.slots, most)) for role in self.roles)
        self.count = slot_count(mesh, sum(role.slots for role in self.roles))
        self._parts = sharding.shard_count('batch', mesh)
        # a trajectory has a generation in one role at a time
        self._shapes = shapes(mesh, max(role.slots for role in self.roles), self.capacity)
        self.decoded_tokens, self.prefilled_tokens = np.zeros((2, len(self.roles)), int)
        self._stop, self._eos_ids, self._dtype = stop, eos_ids, dtype
        self._stop_table = jnp.asarray(stop.table)
        self._model = {'cfg': cfg, 'dtype': dtype}  # static arguments of the programs
        self._sampling = {'steps': decode_steps, 'eos_ids': eos_ids, 'truncation': truncation}
        self._sampling['first_accept'] = stop.first_accept
        self._adapter = [i if role.like is None else role.like for i, role in enumerate(self.roles)]
        self._weights = serving.Weights(cfg, mesh, len({*self._adapter}), dtype)
        self._cache: kv.KVCache | None = None  # from `load` until `unload`
        self._temperatures = [1.0] * len(self.roles)
        self._compiling: concurrent.futures.Future | None = None
        self._listeners: list[Callable | None] = [None] * len(self.roles)
        self._clear()

    def _clear(self):
        self._rows = programs.idle_rows(self.count)
        self._free = list(range(self.count))
        self._waiting: list[collections.deque[Request]] = [collections.deque() for _ in self.roles]
        self._live: dict[tuple[int, Hashable], _Generation] = {}
        self._open: set[tuple[int, Hashable]] = set()  # (role, handle) of open generations; never iterated
        self._stopped: list[list[Stopped]] = [[] for _ in self.roles]
        self._contents = Contents(self.count, self.capacity, self._parts)

    # ---------------------------------------------------------------- weights

    def compile_ahead(self, params: dict, adapters: Sequence[dict]):
        """Compiles all programs in the background; the first step waits for them.

        Args:
          params: abstract weights without adapters, in the training layout.
          adapters: layers of each role's adapter, abstract too; {} if it has none.
        """
        weights = self._weights.abstract(params, adapters)
        cache = kv.abstract(self.cfg, self.mesh, self.count, self.capacity, self._dtype)
        shapes = self._shapes, self.count, self.mesh
        made = ahead.calls(weights, cache, self._stop_table, *shapes, self._model, self._sampling)
        self._compiling = ahead.compile_in_threads(made, self.mesh)

    def wait(self):
        """Waits until `compile_ahead` is done; raises its error."""
        if self._compiling:
            self._compiling = self._compiling.result()  # None

    def load(self, role: int, params: dict, *, temperature: float, owned: bool):
        """See Engine.load."""
        if self._open:
            raise RuntimeError(f'{len(self._open)} generations are open: close them before load()')
        self._weights.load(self._adapter[role], params, owned)
        if self._cache is None:
            with jax.set_mesh(self.mesh):
                self._cache = kv.create(self.cfg, self.mesh, self.count, self.capacity, self._dtype)
        self._temperatures[role] = temperature
        self._clear()

    def unload(self, role: int):
        """See Engine.unload."""
        self._weights.unload(self._adapter[role])
        if not self._open:
            self._cache = None

    # ---------------------------------------------------------------- requests of the roles

    def listen(self, role: int, on_tokens: Callable | None):
        """See Engine.listen."""
        self._listeners[role] = on_tokens

    def open(self, role: int, request: Request):
        """See Engine.open."""
        if (role, request.handle) in self._open:
            raise ValueError(f'generation {request.handle!r} is already open')
        if not request.prompt or request.budget < 1:
            raise ValueError(f'generation {request.handle!r} needs a prompt and a budget of at least one token')
        self._check_room(request.handle, len(request.prompt) + request.budget)
        self._open.add((role, request.handle))
        self._waiting[role].append(request)

    def extend(self, role: int, handle: Hashable, tokens: Sequence[int], budget: int):
        """See Engine.extend."""
        live, rows = self._live[role, handle], self._rows
        if live.decoding:
            raise ValueError(f'generation {handle!r} has not stopped')
        if budget < 1:
            raise ValueError(f'generation {handle!r} needs a budget of at least one token')
        slot, start = live.slot, int(rows.length[live.slot])
        self._check_room(handle, start + 1 + len(tokens) + budget)
        if len(tokens):
            self._contents.extend(slot, tokens)
            rows.length[slot], rows.pending[slot] = start + len(tokens), tokens[-1]
        rows.budget[slot], rows.stop_state[slot] = budget, self._first_state(role)
        live.tokens, live.logprobs, live.decoding = [], [], True

    def close(self, role: int, handle: Hashable):
        """See Engine.close."""
        live = self._live[role, handle]
        if live.decoding:
            raise ValueError(f'generation {handle!r} has not stopped')
        del self._live[role, handle]
        self._open.discard((role, handle))
        self._free.append(live.slot)
        self._free.sort()
        if not self._open:
            self._contents = Contents(self.count, self.capacity, self._parts)

    def active(self, role: int) -> int:
        """See Engine.active."""
        decoding = sum(live.decoding for live in self._live.values())
        admitted = sum(min(len(self._waiting[role]), self._spare(role)) for role in range(len(self.roles)))
        return decoding + admitted + len(self._stopped[role])

    def step(self, role: int) -> list[Stopped]:
        """See Engine.step."""
        if not self._stopped[role]:
            self.wait()
            params = self._weights.get({self._adapter[role] for role, _ in self._open})
            with jax.set_mesh(self.mesh):
                self._admit()
                self._write_waves(params)
                self._decode(params)
        stopped, self._stopped[role] = self._stopped[role], []
        return stopped

    def _spare(self, role: int) -> int:
        """Number of slots that a role may still take."""
        return self.roles[role].slots - sum(of == role for of, _ in self._live)

    def _first_state(self, role: int) -> int:
        return 0 if self.roles[role].stops else self._stop.never

    def _check_room(self, handle: Hashable, tokens: int):
        if tokens > self.capacity:
            raise ValueError(f'generation {handle!r} needs {tokens} tokens, but a slot holds {self.capacity}')

    # ---------------------------------------------------------------- prompts and observations

    def _place(self, slot: int) -> tuple[int, int]:
        """The part of the mesh that holds a slot, and the slot's number in it."""
        return divmod(slot, self.count // self._parts)

    def _admit(self):
        """Gives slots to waiting requests, in order."""
        for role, waiting in enumerate(self._waiting):
            for _ in range(min(len(waiting), self._spare(role))):
                self._seat(role, waiting.popleft())

    def _seat(self, role: int, request: Request):
        rows, prompt = self._rows, request.prompt
        slot = self._contents.begin(role, prompt, self._free, [live.slot for live in self._live.values()])
        self._free.remove(slot)
        self._live[role, request.handle] = _Generation(role, request.handle, slot)
        rows.length[slot], rows.pending[slot], rows.budget[slot] = len(prompt) - 1, prompt[-1], request.budget
        rows.key[slot], rows.stop_state[slot] = request.key, self._first_state(role)
        rows.role[slot] = self._adapter[role]
        rows.temperature[slot] = self._temperatures[role] if request.temperature is None else request.temperature

    def _write_waves(self, params: dict):
        for wave in self._contents.take_waves():
            self._fork(wave.forks)
            self._extend(params, wave.writes)

    def _extend(self, params: dict, writes: Sequence[Write]):
        width, blocks = self._shapes.width, [[] for _ in range(self._parts)]
        for slot, start, tokens, role in writes:
            self.prefilled_tokens[role] += len(tokens)
            part, place = self._place(slot)
            for begin in range(0, len(tokens), width):
                blocks[part].append((place, start + begin, tokens[begin : begin + width], role))
        most_rows = self._shapes.extend[-1][0]
        while any(blocks):
            now, blocks = [own[:most_rows] for own in blocks], [own[most_rows:] for own in blocks]
            rows, reach = max(map(len, now)), max(start + len(tokens) for own in now for _, start, tokens, _ in own)
            self._extend_once(params, now, *next(s for s in self._shapes.extend if s[0] >= rows and s[1] >= reach))

    def _extend_once(self, params: dict, blocks: list[list], rows: int, span: int):
        slots, starts, counts, roles = np.zeros((4, self._parts, rows), np.int32)
        tokens = np.zeros((self._parts, rows, self._shapes.width), np.int32)
        for part, own in enumerate(blocks):
            for row, (slot, start, ids, role) in enumerate(own):
                slots[part, row], starts[part, row], counts[part, row] = slot, start, len(ids)
                roles[part, row] = self._adapter[role]
                tokens[part, row, : len(ids)] = ids
        self._cache = programs.extend(
            params, self._cache, slots, tokens, starts, counts, roles, span=span, **self._model
        )

    def _fork(self, forks: Sequence[tuple[int, int]]):
        copies: list[list] = [[] for _ in range(self._parts)]
        for source, target in forks:
            part, target = self._place(target)
            copies[part].append((self._place(source)[1], target))
        for begin in range(0, max(map(len, copies)), FORK_ROWS):
            sources = np.zeros((self._parts, FORK_ROWS), np.int32)
            targets = np.full((self._parts, FORK_ROWS), self.count, np.int32)  # past the end: dropped
            for part, own in enumerate(copies):
                for row, (source, target) in enumerate(own[begin : begin + FORK_ROWS]):
                    sources[part, row], targets[part, row] = source, target
            self._cache = programs.fork(self._cache, sources, targets)

    # ---------------------------------------------------------------- decode

    def _decode(self, params: dict):
        """Samples in every slot that has budget, and collects the generations that stop."""
        tokens = np.zeros((self.count, self.decode_steps), np.int32)
        logprobs, counts = np.zeros(tokens.shape, np.float32), np.zeros(self.count, int)
        for slots, span in self._groups():
            there = slots[slots < self.count]
            rows = jax.tree.map(lambda x, at=slots: x[np.minimum(at, self.count - 1)], self._rows)
            rows.budget[len(there) :] = 0
            self._cache, rows, *sampled = programs.decode(
                params,
                self._cache,
                rows,
                slots if self._shapes.decode else None,
                self._stop_table,
                span=span,
                **self._model,
                **self._sampling,
            )
            wholes, parts = jax.tree.leaves((self._rows, tokens, logprobs, counts)), jax.tree.leaves((rows, sampled))
            for whole, part in zip(wholes, parts, strict=True):
                whole[there] = np.asarray(part)[: len(there)]
        self._collect(tokens, logprobs, counts)

    def _groups(self) -> Iterator[tuple[np.ndarray, int]]:
        """The slots of each call of `decode`, and the positions that it reads; numbers past the end are idle rows."""
        active, shapes = np.flatnonzero(self._rows.budget > 0), self._shapes.decode
        if not shapes:
            yield from [(np.arange(self.count), self.capacity)] * bool(len(active))
            return
        reach = self._rows.length + np.minimum(self._rows.budget, self.decode_steps)
        active = active[np.argsort(-reach[active], kind='stable')]  # long ones together
        while len(active):
            fitting = [shape for shape in shapes if shape[1] >= reach[active[0]]]
            size, span = next((shape for shape in fitting if shape[0] >= len(active)), fitting[-1])
            chosen, active = active[:size], active[size:]
            past = self.count + np.arange(size - len(chosen))
            yield np.concatenate([chosen, past]).astype(np.int32), span

    def _collect(self, tokens_BxT: np.ndarray, logprobs_BxT: np.ndarray, counts_B: np.ndarray):
        for live in self._live.values():
            if not live.decoding:
                continue
            slot, count = live.slot, int(counts_B[live.slot])
            fresh = tokens_BxT[slot, :count].tolist()
            self._contents.sampled(slot, fresh)
            self.decoded_tokens[live.role] += count
            live.tokens += fresh
            live.logprobs += logprobs_BxT[slot, :count].tolist()
            if listener := self._listeners[live.role]:
                listener(live.handle, fresh)
            if self._rows.budget[slot] == 0:
                live.decoding = False
                reason = self._reason(slot, live.tokens[-1])
                done = Stopped(live.handle, tuple(live.tokens), tuple(live.logprobs), reason)
                self._stopped[live.role].append(done)

    def _reason(self, slot: int, last_token: int) -> str:
        accepted = int(self._rows.stop_state[slot]) - self._stop.first_accept
        if accepted >= 0:
            return self._stop.strings[accepted]
        return 'eos' if last_token in self._eos_ids else 'length'
