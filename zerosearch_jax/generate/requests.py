"""What an engine is asked, and what it answers."""

import dataclasses
from collections.abc import Hashable
from typing import NamedTuple

import numpy as np


class Role(NamedTuple):
    """One user of the slots."""

    slots: int  # that it may have at once
    stops: bool = True  # whether the stop strings end its generations


@dataclasses.dataclass(frozen=True)
class Request:
    """One generation to open."""

    handle: Hashable
    prompt: tuple[int, ...]
    key: np.ndarray  # uint32 [2], prng.row_key
    budget: int  # tokens to sample at most before it stops


@dataclasses.dataclass(frozen=True)
class Stopped:
    """A generation that has stopped: what it sampled since it was opened or extended."""

    handle: Hashable
    tokens: tuple[int, ...]
    logprobs: tuple[float, ...]  # under the untruncated softmax at the role's temperature
    reason: str  # a stop string, 'eos', or 'length' (budget spent)
