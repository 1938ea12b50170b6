"""Stop strings, matched on device: an automaton over bytes compiled with the vocabulary into one table.

A tokenizer may spell `</search>` in many ways, and the token that completes it may begin before the tag or run
past it. Matching bytes instead of token ids makes all of them stop at the same place (here one stop string):

    bytes:   ...cats </search>\\n        state: longest end of the text that begins some stop string
    tokens:  | cats| </|sea|rch|>\\n|
    states:  0     0   2    5   8   accept (the `\\n` is ignored: accept is absorbing)

Shapes: S states, V vocabulary, B rows.
"""

import dataclasses
from collections.abc import Sequence

import jax
import numpy as np


@dataclasses.dataclass(frozen=True, eq=False)
class StopTable:
    """Transitions of the stop automaton: state 0 starts, states from `first_accept` on have stopped."""

    table: np.ndarray  # [S, V], the smallest unsigned integer type that holds S - 1
    strings: tuple[str, ...]
    first_accept: int  # state first_accept + i: strings[i] was completed

    @property
    def never(self) -> int:
        """The state of rows that no string can stop."""
        return self.first_accept - 1


def compile_table(strings: Sequence[str], token_bytes: Sequence[bytes]) -> StopTable:
    """Compiles stop strings and a vocabulary into `table[state, token] -> state`.

    The string that is completed by the earliest byte wins, and of several that the same byte completes the longest.
    What follows is ignored, since accepting states are absorbing. A token without bytes (control tokens, padding of the
    vocabulary) leaves the state unchanged, so the match is on the text decoded without control tokens.

    Args:
      strings: stop strings, matched as UTF-8; without any, the table never accepts.
      token_bytes: the bytes of each token id; b'' for control tokens.

    Raises:
      ValueError: an empty or repeated stop string.
    """
    strings = tuple(strings)
    if '' in strings or len(set(strings)) < len(strings):
        raise ValueError(f'stop strings must be distinct and not empty, got {strings}')
    byte_table, first_accept = _byte_automaton([s.encode() for s in strings])

    text = np.frombuffer(b''.join(token_bytes), np.uint8)
    lengths = np.array([len(b) for b in token_bytes], np.int64)
    starts = np.cumsum(lengths) - lengths
    # all tokens step from all states at once, one byte per pass; a token leaves when it has no more bytes
    states = np.arange(len(byte_table), dtype=byte_table.dtype)
    table_SxV = np.repeat(states[:, None], len(token_bytes), axis=1)
    alive = np.flatnonzero(lengths)
    for position in range(lengths.max(initial=0)):
        alive = alive[lengths[alive] > position]
        table_SxV[:, alive] = byte_table[table_SxV[:, alive], text[starts[alive] + position]]
    return StopTable(table_SxV, strings, first_accept)


def advance(table_SxV: jax.Array, state_B: jax.Array, token_B: jax.Array) -> jax.Array:
    """The states [B] after one more token per row; for use inside jit. Keeps the type of `state_B`."""
    return table_SxV[state_B, token_B].astype(state_B.dtype)


def _byte_automaton(strings: list[bytes]) -> tuple[np.ndarray, int]:
    """Aho-Corasick over bytes: `table[state, byte] -> state` and the first accepting state."""
    # a live state is a proper prefix of some string: the longest one that the text ends with
    prefixes = {s[:n] for s in strings for n in range(len(s))} | {b''}
    live = sorted(prefixes, key=lambda p: (len(p), p))
    state_of = {p: i for i, p in enumerate(live)}
    longest_first = sorted(range(len(strings)), key=lambda i: -len(strings[i]))
    first_accept = len(live) + 1  # after the state `never`
    num_states = first_accept + len(strings)

    table = np.zeros((num_states, 256), np.min_scalar_type(num_states - 1))
    table[len(live) :] = np.arange(len(live), num_states)[:, None]
    for prefix, state in state_of.items():
        for byte in set(b''.join(strings)):  # any other byte leads back to the start
            text = prefix + bytes([byte])
            done = next((i for i in longest_first if text.endswith(strings[i])), None)
            if done is not None:
                table[state, byte] = first_accept + done
            else:
                table[state, byte] = next(state_of[text[n:]] for n in range(len(text) + 1) if text[n:] in state_of)
    return table, first_accept
