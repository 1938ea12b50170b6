"""The generation engine, as one role sees it: open a generation, step until it stops, extend or close it.

A request opens a generation (a slot, its prompt, a token budget); `step` returns the generations that have stopped; a
stopped one keeps its slot and cache until it is extended (an observation, then more tokens) or closed.

    open --> waiting --> decoding --> stopped --extend--> decoding ...
                                         '----close----> slot free

Policy and simulator have an engine each. Where both are adapters of one base, they are two roles of the same slots: a
step of either advances the rows of both, and what the other role has finished waits for its next step.
"""

from collections.abc import Callable, Hashable, Sequence

from zerosearch_jax.generate.requests import Request, Stopped
from zerosearch_jax.generate.slots import Slots

__all__ = ['Engine', 'Request', 'Stopped']


class Engine:
    """Generates for one role.

    Args:
      slots: where; of one role, or of several that share them.
      role: which of them.
    """

    def __init__(self, slots: Slots, role: int = 0):
        self._slots, self._role = slots, role
        self.cfg, self.mesh, self.capacity = slots.cfg, slots.mesh, slots.capacity

    @property
    def slots(self) -> int:
        """Generations of this role that can be live at once."""
        return self._slots.roles[self._role].slots

    def compile_ahead(self, params: dict, adapters: Sequence[dict]):
        """See Slots.compile_ahead; of all roles of the slots."""
        self._slots.compile_ahead(params, adapters)

    @property
    def decoded_tokens(self) -> int:
        return int(self._slots.decoded_tokens[self._role])

    @property
    def prefilled_tokens(self) -> int:
        return int(self._slots.prefilled_tokens[self._role])

    def load(self, params: dict, *, temperature: float = 1.0, owned: bool = False):
        """Takes new weights; everything cached under the old ones is forgotten.

        Args:
          params: training layout, adapters beside their kernels; a copy is made of it. Where roles share a base, that
            is taken once, and of later weights the adapter alone; an adapter without a base will do.
          temperature: of the sampling; 0 is greedy.
          owned: nobody else needs `params`: they go as they are copied.

        Raises:
          RuntimeError: generations are open; their cache would be of other weights.
        """
        self._slots.load(self._role, params, temperature=temperature, owned=owned)

    def unload(self):
        """Lets go of the weights, but a shared base, until the next `load`, and of the cache if nothing is open."""
        self._slots.unload(self._role)

    @property
    def active(self) -> int:
        """Generations that the next `step` would advance or return: decoding, waiting for a slot that is free, or done.

        Where roles share slots, those of all.
        """
        return self._slots.active(self._role)

    def listen(self, on_tokens: Callable[[Hashable, list[int]], None] | None):
        """`on_tokens` is called with every generation's new tokens, at each look of the host; None: nobody is."""
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
          ValueError: it has not stopped, the budget is below one, or a slot cannot hold so many tokens.
        """
        self._slots.extend(self._role, handle, tokens, budget)

    def close(self, handle: Hashable):
        """Frees the slot of a stopped generation."""
        self._slots.close(self._role, handle)

    def step(self) -> list[Stopped]:
        """Returns what has stopped; where nothing has yet, admits what is waiting, writes what is to be written, and
        decodes.

        Raises:
          RuntimeError: a role has generations, but no weights.
        """
        return self._slots.step(self._role)
