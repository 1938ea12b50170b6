"""The generation engine of one role: open a generation, step until it stops, extend or close it.

A request opens a generation (a slot, its prompt, a token budget); `step` returns the generations that have stopped; a
stopped one keeps its slot and cache until it is extended (an observation, then more tokens) or closed.

    open --> waiting --> decoding --> stopped --extend--> decoding ...
                                         '----close----> slot free

Policy and simulator have one engine each. If both are adapters of one base, they are two roles of the same slots: a
step of either engine advances the slots of both, and finished generations of the other role wait for its next step.
"""

from collections.abc import Callable, Hashable, Sequence

from zerosearch_jax.generate.requests import Request, Stopped
from zerosearch_jax.generate.slots import Slots

__all__ = ['Engine', 'Request', 'Stopped']


class Engine:
    """Generates for one role.

    Args:
      slots: of one role, or of several roles that share them.
      role: number of the role.
    """

    def __init__(self, slots: Slots, role: int = 0):
        self._slots, self._role = slots, role
        self.cfg, self.mesh, self.capacity = slots.cfg, slots.mesh, slots.capacity

    @property
    def slots(self) -> int:
        """The most generations of this role that can be open in slots at once."""
        return self._slots.roles[self._role].slots

    def compile_ahead(self, params: dict, adapters: Sequence[dict]):
        """See Slots.compile_ahead; it covers all roles of the slots."""
        self._slots.compile_ahead(params, adapters)

    @property
    def decoded_tokens(self) -> int:
        return int(self._slots.decoded_tokens[self._role])

    @property
    def prefilled_tokens(self) -> int:
        return int(self._slots.prefilled_tokens[self._role])

    def load(self, params: dict, *, temperature: float = 1.0, owned: bool = False):
        """Copies new weights; the key-value cache of the old weights is dropped.

        Args:
          params: in the training layout, adapters beside their kernels. If roles share a base, the base is copied once,
            and later only the adapter; then an adapter without a base is enough.
          temperature: of sampling; 0 is greedy.
          owned: no other code needs `params`: each is freed when it is copied.

        Raises:
          RuntimeError: generations are open; their cache would belong to other weights.
        """
        self._slots.load(self._role, params, temperature=temperature, owned=owned)

    def unload(self):
        """Frees the weights, except a shared base, until the next `load`, and the cache if nothing is open."""
        self._slots.unload(self._role)

    @property
    def active(self) -> int:
        """Generations that the next `step` would advance or return: decoding, waiting for a free slot, or stopped.

        If roles share slots, those of all roles count.
        """
        return self._slots.active(self._role)

    def listen(self, on_tokens: Callable[[Hashable, list[int]], None] | None):
        """Sets `on_tokens`, which is called with every generation's new tokens after each decode call; None: unset."""
        self._slots.listen(self._role, on_tokens)

    def open(self, request: Request):
        """Queues a generation.

        Raises:
          ValueError: prompt and budget do not fit a slot, or the handle is taken.
        """
        self._slots.open(self._role, request)

    def extend(self, handle: Hashable, tokens: Sequence[int], budget: int):
        """Appends given tokens (an observation) to a stopped generation and lets it sample up to `budget` more.

        Raises:
          ValueError: it has not stopped, the budget is below one, or a slot cannot hold that many tokens.
        """
        self._slots.extend(self._role, handle, tokens, budget)

    def close(self, handle: Hashable):
        """Frees the slot of a stopped generation."""
        self._slots.close(self._role, handle)

    def step(self) -> list[Stopped]:
        """Returns stopped generations; if there are none, fills free slots, prefills and decodes first.

        Raises:
          RuntimeError: a role has generations, but no weights.
        """
        return self._slots.step(self._role)
