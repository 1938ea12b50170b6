"""The generation engine: slots with a cache each, refilled as rows finish, the same for policy and simulator.

Host state machine, deterministic and replicated: every process runs it on the same small arrays. A request opens a
generation (a slot, its prompt, a token budget); `step` returns the generations that have just stopped; a stopped one
keeps its slot and cache until it is extended (an observation, then more tokens) or closed.

    open --> waiting --> decoding --> stopped --extend--> decoding ...
                                         '----close----> slot free
"""

import collections
import dataclasses
from collections.abc import Callable, Hashable, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from zerosearch_jax import sharding
from zerosearch_jax.generate import programs
from zerosearch_jax.generate.capacity import (
    EXTEND_WIDTH,
    SHARES,
    decode_span,
    extend_rows,
    rounded_capacity,
    slots_that_fit,
)
from zerosearch_jax.generate.sampling import FULL_SUPPORT, Truncation
from zerosearch_jax.models import cache as kv
from zerosearch_jax.models.config import ModelConfig
from zerosearch_jax.text.stop import StopTable


@dataclasses.dataclass(frozen=True)
class Request:
    """One generation to open.

    Requests with the same `group` must have the same prompt; it is prefilled once and shared by copying its cache.
    """

    handle: Hashable
    prompt: tuple[int, ...]
    key: np.ndarray  # uint32 [2], prng.row_key
    budget: int  # tokens to sample at most before it stops
    group: Hashable = None


@dataclasses.dataclass(frozen=True)
class Stopped:
    """A generation that has stopped: what it sampled since it was opened or extended."""

    handle: Hashable
    tokens: tuple[int, ...]
    logprobs: tuple[float, ...]  # under the untruncated softmax at the engine's temperature
    reason: str  # a stop string, 'eos', or 'length' (budget spent)


@dataclasses.dataclass
class _Generation:
    """Host record of one occupied slot."""

    request: Request
    slot: int
    tokens: list[int] = dataclasses.field(default_factory=list)
    logprobs: list[float] = dataclasses.field(default_factory=list)
    decoding: bool = True


class Engine:
    """Owns the cache and the slots of one model.

    Args:
      cfg: the model.
      mesh: the mesh that its weights live on.
      slots: generations that can be live at once; a multiple of data x fsdp.
      cache_bytes: of memory a device for the cache; fewer slots are given where not all fit. None: no limit.
      capacity: tokens a slot can hold, prompt and observations included.
      stop: automaton of the stop strings.
      eos_ids: tokens that end a generation.
      decode_steps: tokens decoded between two looks of the host.
      truncation: restriction of the sampling support (evaluation only).
      dtype: compute and cache dtype.
    """

    def __init__(
        self,
        cfg: ModelConfig,
        mesh: jax.sharding.Mesh,
        *,
        slots: int,
        capacity: int,
        stop: StopTable,
        eos_ids: tuple[int, ...],
        cache_bytes: int | None = None,
        decode_steps: int = 16,
        truncation: Truncation = FULL_SUPPORT,
        dtype=jnp.float32,
    ):
        self.cfg, self.mesh, self.decode_steps = cfg, mesh, decode_steps
        self.capacity = rounded_capacity(capacity)
        self.slots = slots
        if cache_bytes is not None:
            self.slots = min(slots, slots_that_fit(cache_bytes, cfg, mesh, capacity, dtype))
        self._parts = sharding.shard_count('batch', mesh)
        self._extend_rows = extend_rows(self._parts)
        self.decoded_tokens = self.prefilled_tokens = 0
        self._stop, self._eos_ids, self._truncation, self._dtype = stop, eos_ids, truncation, dtype
        self._stop_table = jnp.asarray(stop.table)
        with jax.set_mesh(mesh):
            self._cache = kv.create(cfg, mesh, self.slots, self.capacity, dtype)
        self._params: dict | None = None
        self._temperature = 1.0
        self._clear()

    def _clear(self):
        self._rows = programs.idle_rows(self.slots)
        self._free = list(range(self.slots))
        self._waiting: collections.deque[Request] = collections.deque()
        self._live: dict[Hashable, _Generation] = {}
        self._open: set[Hashable] = set()  # handles of both; never iterated
        self._writes: list[tuple[int, int, Sequence[int]]] = []  # slot, start, tokens

    def load(self, params: dict, *, temperature: float = 1.0, owned: bool = False):
        """Takes new weights; everything cached under the old ones is forgotten.

        Args:
          params: training layout, adapters beside their kernels. A copy is made of it: see programs.serving_layout.
          temperature: of the sampling; 0 is greedy.
          owned: nobody else needs `params`: they go as they are copied.

        Raises:
          RuntimeError: generations are open; their cache would be of other weights.
        """
        if self._open:
            raise RuntimeError(f'{len(self._open)} generations are open: close them before load()')
        self.unload()  # before the new copy is made
        with jax.set_mesh(self.mesh):
            self._params = programs.serving_layout(params, dtype=self._dtype, owned=owned)
        self._temperature = temperature
        self._clear()

    def unload(self):
        """Lets go of the weights, until the next `load`."""
        self._params = None

    @property
    def active(self) -> int:
        """Generations that the next `step` would advance: decoding, or waiting for a slot that is free."""
        decoding = sum(live.decoding for live in self._live.values())
        return decoding + min(len(self._waiting), len(self._free))

    def open(self, request: Request):
        """Queues a generation.

        Raises:
          ValueError: prompt and budget do not fit a slot, or the handle is taken.
        """
        if request.handle in self._open:
            raise ValueError(f'generation {request.handle!r} is already open')
        if not request.prompt or request.budget < 1:
            raise ValueError(f'generation {request.handle!r} needs a prompt and a budget of at least one token')
        self._check_room(request.handle, len(request.prompt) + request.budget)
        self._open.add(request.handle)
        self._waiting.append(request)

    def extend(self, handle: Hashable, tokens: Sequence[int], budget: int):
        """Appends given tokens (an observation) to a stopped generation and lets it sample up to `budget` more.

        Raises:
          ValueError: it has not stopped, the budget is below one, or a slot cannot hold so many tokens.
        """
        live = self._live[handle]
        if live.decoding:
            raise ValueError(f'generation {handle!r} has not stopped')
        if budget < 1:
            raise ValueError(f'generation {handle!r} needs a budget of at least one token')
        slot, start = live.slot, int(self._rows.length[live.slot])
        self._check_room(handle, start + 1 + len(tokens) + budget)
        if len(tokens):
            self._writes.append((slot, start, [int(self._rows.pending[slot]), *tokens[:-1]]))
            self._rows.length[slot] = start + len(tokens)
            self._rows.pending[slot] = tokens[-1]
        self._rows.budget[slot], self._rows.stop_state[slot] = budget, 0
        live.tokens, live.logprobs, live.decoding = [], [], True

    def close(self, handle: Hashable):
        """Frees the slot of a stopped generation."""
        live = self._live[handle]
        if live.decoding:
            raise ValueError(f'generation {handle!r} has not stopped')
        del self._live[handle]
        self._open.discard(handle)
        self._free.append(live.slot)
        self._free.sort()

    def step(self, on_tokens: Callable[[Hashable, list[int]], None] | None = None) -> list[Stopped]:
        """Admits what is waiting, writes what is to be written, decodes, and returns what has stopped.

        `on_tokens` is called with every generation's new tokens.
        """
        if self._params is None:
            raise RuntimeError('the engine has no weights: call load() first')
        with jax.set_mesh(self.mesh):
            forks = self._admit()
            self._flush_writes()
            self._run_forks(forks)
            return self._decode(on_tokens)

    def _place(self, slot: int) -> tuple[int, int]:
        """The part of the mesh that holds a slot, and the slot's number in it."""
        return divmod(slot, self.slots // self._parts)

    def _check_room(self, handle: Hashable, tokens: int):
        if tokens > self.capacity:
            raise ValueError(f'generation {handle!r} needs {tokens} tokens, but a slot holds {self.capacity}')

    def _admit(self) -> list[tuple[int, int]]:
        """Gives free slots to waiting requests, in order; returns the (source, target) slots to copy.

        A prompt is copied within a part of the mesh, and written once in every part that needs it.
        """
        owners = {(live.request.group, self._place(live.slot)[0]): live.slot for live in self._live.values()}
        forks = []
        while self._waiting and self._free:
            request, slot = self._waiting.popleft(), self._free.pop(0)
            self._live[request.handle] = _Generation(request, slot)
            shared = request.group, self._place(slot)[0]
            if request.group is not None and shared in owners:
                forks.append((owners[shared], slot))
            else:
                self._writes.append((slot, 0, request.prompt[:-1]))
                owners[shared] = slot
            self._rows.length[slot] = len(request.prompt) - 1
            self._rows.pending[slot] = request.prompt[-1]
            self._rows.budget[slot], self._rows.stop_state[slot] = request.budget, 0
            self._rows.key[slot] = request.key
        return forks

    def _flush_writes(self):
        """Runs `extend` until every token to be written is in the cache: longest first, smallest fitting shape."""
        jobs: list[list] = [[] for _ in range(self._parts)]  # of each part of the mesh
        for slot, start, tokens in self._writes:
            part, slot = self._place(slot)
            jobs[part].append((slot, start, list(tokens)))
            self.prefilled_tokens += len(tokens)
        self._writes.clear()
        while True:
            jobs = [sorted((j for j in own if j[2]), key=lambda job: (-len(job[2]), job[0])) for own in jobs]
            most = max(map(len, jobs))
            if not most:
                return
            rows = next((size for size in self._extend_rows if size >= most), self._extend_rows[-1])
            self._extend_once([own[:rows] for own in jobs], rows)
            rest = [[(s, b + EXTEND_WIDTH, t[EXTEND_WIDTH:]) for s, b, t in own[:rows]] for own in jobs]
            jobs = [own[rows:] + more for own, more in zip(jobs, rest, strict=True)]

    def _extend_once(self, jobs: list[list], rows: int):
        slots, starts, counts = (np.zeros((self._parts, rows), np.int32) for _ in range(3))
        tokens = np.zeros((self._parts, rows, EXTEND_WIDTH), np.int32)
        for part, own in enumerate(jobs):
            for row, (slot, start, ids) in enumerate(own):
                count = min(EXTEND_WIDTH, len(ids))
                slots[part, row], starts[part, row], counts[part, row] = slot, start, count
                tokens[part, row, :count] = ids[:count]
        self._cache = programs.extend(
            self._params, self._cache, slots, tokens, starts, counts, cfg=self.cfg, dtype=self._dtype
        )

    def _run_forks(self, forks: list[tuple[int, int]]):
        copies: list[list] = [[] for _ in range(self._parts)]
        for source, target in forks:
            part, target = self._place(target)
            copies[part].append((self._place(source)[1], target))
        size = self._extend_rows[-1]
        for begin in range(0, max(map(len, copies)), size):
            sources = np.zeros((self._parts, size), np.int32)
            targets = np.full((self._parts, size), self.slots, np.int32)  # past the end: dropped
            for part, own in enumerate(copies):
                for row, (source, target) in enumerate(own[begin : begin + size]):
                    sources[part, row], targets[part, row] = source, target
            self._cache = programs.fork(self._cache, sources, targets)

    def _decode(self, on_tokens) -> list[Stopped]:
        if not any(live.decoding for live in self._live.values()):
            return []
        active = self._rows.budget > 0
        reach = int(np.max(np.where(active, self._rows.length, 0))) + min(
            self.decode_steps, int(self._rows.budget.max())
        )
        span = decode_span(reach + 1, self.capacity)
        chosen = self._active_slots(active)
        slots_N = np.arange(self.slots) if chosen is None else chosen
        self._cache, rows, tokens, logprobs, counts = programs.decode(
            self._params,
            self._cache,
            jax.tree.map(lambda x: x[slots_N], self._rows),
            chosen,
            self._stop_table,
            np.float32(self._temperature),
            cfg=self.cfg,
            dtype=self._dtype,
            steps=self.decode_steps,
            span=span,
            eos_ids=self._eos_ids,
            first_accept=self._stop.first_accept,
            truncation=self._truncation,
        )
        for whole, part in zip(jax.tree.leaves(self._rows), jax.tree.leaves(rows), strict=True):
            whole[slots_N] = part
        return self._collect(slots_N, np.asarray(tokens), np.asarray(logprobs), np.asarray(counts), on_tokens)

    def _active_slots(self, active: np.ndarray) -> np.ndarray | None:
        """The slots to compute if few are active, filled up with idle ones; None: all of them."""
        if self._parts > 1:
            return None
        shares = SHARES['cpu' if self.mesh.devices.flat[0].platform == 'cpu' else 'accelerator']
        count = next((self.slots // share for share in shares if active.sum() <= self.slots // share), None)
        return None if count is None else np.sort(np.argsort(~active, kind='stable')[:count]).astype(np.int32)

    def _collect(self, slots_N, tokens_NxT, logprobs_NxT, counts_N, on_tokens) -> list[Stopped]:
        self.decoded_tokens += int(counts_N.sum())
        row_of = {slot: row for row, slot in enumerate(slots_N.tolist())}
        stopped = []
        for handle, live in self._live.items():
            if not live.decoding:
                continue
            row = row_of[live.slot]
            fresh = tokens_NxT[row, : counts_N[row]].tolist()
            live.tokens += fresh
            live.logprobs += logprobs_NxT[row, : counts_N[row]].tolist()
            if on_tokens:
                on_tokens(handle, fresh)
            if self._rows.budget[live.slot] == 0:
                live.decoding = False
                reason = self._reason(live.slot, live.tokens[-1])
                stopped.append(Stopped(handle, tuple(live.tokens), tuple(live.logprobs), reason))
        return stopped

    def _reason(self, slot: int, last_token: int) -> str:
        accepted = int(self._rows.stop_state[slot]) - self._stop.first_accept
        if accepted >= 0:
            return self._stop.strings[accepted]
        return 'eos' if last_token in self._eos_ids else 'length'
