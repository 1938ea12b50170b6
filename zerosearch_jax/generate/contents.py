"""The tokens in the slots, and those that still have to be prefilled. Only host arrays; nothing is computed here.

Before a prompt is prefilled, its role's slots are searched for its longest prefix. The prefix is copied, or kept if the
free slot itself holds it: a group's prompt is prefilled once, and so is the common prefix of all prompts. Copies and
prefills are ordered in waves, because a slot can be copied only after the copied part was prefilled.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

LEAST_SHARED = 16  # tokens; a shorter common prefix is not worth the copy of a slot. The number is a guess


class Write(NamedTuple):
    """Tokens to prefill in a slot."""

    slot: int
    start: int  # position of the first
    tokens: np.ndarray
    role: int  # whose adapter is used


class Wave(NamedTuple):
    """Copies of slots, and then tokens to prefill, which do not depend on others of the same wave."""

    forks: list[tuple[int, int]]  # source, target
    writes: list[Write]


class Contents:
    """The tokens of each slot.

    Args:
      slots: number of slots.
      capacity: tokens of a slot.
      parts: of the mesh, over which the slots are sharded.
    """

    def __init__(self, slots: int, capacity: int, parts: int = 1):
        self._in_a_part = slots // parts
        self._tokens = np.zeros((slots, capacity), np.int32)  # with the newest, which is not in the cache yet
        self._length = np.zeros(slots, int)  # how many of them are in the cache, or will be after the waves
        self._role = np.full(slots, -1)
        self._waves: list[Wave] = []
        self._wave_of: dict[int, int] = {}  # the last wave that writes a slot

    def begin(self, role: int, prompt: Sequence[int], free: Sequence[int], taken: Sequence[int]) -> int:
        """Chooses a free slot for a prompt, and plans how all tokens but the last get there, by copies and prefill.

        Args:
          role: of the prompt.
          prompt: its tokens.
          free: free slots; the one that holds most of the prompt is chosen.
          taken: the other slots; if one on the same part of the mesh holds more of the prompt, that is copied.

        Returns:
          the slot.
        """
        shared = self._shared(role, prompt[:-1])
        slot = max(free, key=lambda free: (shared[free], -free))
        start, wave = int(shared[slot]), 0
        near = [other for other in taken if other // self._in_a_part == slot // self._in_a_part]
        source = max(near, key=lambda other: (shared[other], -other), default=slot)
        if shared[source] >= start + LEAST_SHARED:
            start, wave = int(shared[source]), self._wave_of.get(source, -1) + 1
            self._wave(wave).forks.append((source, slot))
        self._role[slot], self._length[slot] = role, start
        self._tokens[slot, : len(prompt)] = prompt
        self._write(wave, slot, len(prompt) - 1)
        return slot

    def extend(self, slot: int, tokens: Sequence[int]):
        """Appends given tokens after the newest one; all but the last of them have to be prefilled."""
        start = self._length[slot]
        self._tokens[slot, start + 1 : start + 1 + len(tokens)] = tokens
        self._write(0, slot, start + len(tokens))

    def sampled(self, slot: int, tokens: Sequence[int]):
        """Appends sampled tokens, of which all but the newest are in the cache."""
        start = self._length[slot]
        self._tokens[slot, start + 1 : start + 1 + len(tokens)] = tokens
        self._length[slot] = start + len(tokens)

    def take_waves(self) -> list[Wave]:
        """The waves that have to be done before the next token is sampled, in order."""
        waves, self._waves, self._wave_of = self._waves, [], {}
        return waves

    def _shared(self, role: int, beginning: Sequence[int]) -> np.ndarray:
        """How many tokens of a prefix each slot holds, with the role's adapter [B]."""
        differs = self._tokens[:, : len(beginning)] != np.asarray(beginning, np.int32)
        first = np.pad(differs, ((0, 0), (0, 1)), constant_values=True).argmax(axis=1)
        return np.where(self._role == role, np.minimum(first, self._length), 0)

    def _wave(self, number: int) -> Wave:
        while len(self._waves) <= number:
            self._waves.append(Wave([], []))
        return self._waves[number]

    def _write(self, wave: int, slot: int, end: int):
        start = int(self._length[slot])
        self._wave(wave).writes.append(Write(slot, start, self._tokens[slot, start:end].copy(), int(self._role[slot])))
        self._length[slot], self._wave_of[slot] = end, wave
