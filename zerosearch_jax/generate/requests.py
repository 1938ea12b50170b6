"""The requests to an engine, and its results."""

import dataclasses
from collections.abc import Hashable
from typing import NamedTuple

import numpy as np


class Role(NamedTuple):
    """One user of the slots."""

    slots: int  # the most slots that it may have at once
    stops: bool = True  # whether the stop strings end its generations
    like: int | None = None  # an earlier role, with whose weights it generates; None: with its own


@dataclasses.dataclass(frozen=True)
class Request:
    """One generation to open."""

    handle: Hashable
    prompt: tuple[int, ...]
    key: np.ndarray  # uint32 [2], prng.row_key
    budget: int  # the most tokens to sample before it stops
    temperature: float | None = None  # None: the role's


@dataclasses.dataclass(frozen=True)
class Stopped:
    """A stopped generation: the tokens that were sampled since it was opened or extended."""

    handle: Hashable
    tokens: tuple[int, ...]
    logprobs: tuple[float, ...]  # under the untruncated softmax at its temperature
    reason: str  # a stop string, 'eos', or 'length' (budget spent)
