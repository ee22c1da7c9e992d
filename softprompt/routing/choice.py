"""The choice of one replica: the same one for the same version, within a bound on its load.

Rendezvous hashing (Thaler and Ravishankar 1998) keeps a version's keys and values, and the cached inputs behind them,
in use on one replica. When a replica comes or goes, only the versions that it gets or had change their place. The bound
is that of consistent hashing with bounded loads (Mirrokni, Thorup and Zadimoghaddam 2018): no replica gets more than
LOAD_FACTOR times its share.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Sequence
from typing import TypeVar

R = TypeVar("R")

LOAD_FACTOR = 1.25


def choose(key: str, replicas: Sequence[R], id_of: Callable[[R], str], load_of: Callable[[R], int]) -> R:
    """The replica with the highest score for `key` among those (one at least) whose load is below the bound."""
    loads = [load_of(replica) for replica in replicas]
    bound = math.ceil(LOAD_FACTOR * (sum(loads) + 1) / len(replicas))
    open_ones = [replica for replica, load in zip(replicas, loads, strict=True) if load < bound]
    return max(open_ones, key=lambda replica: score(key, id_of(replica)))


def score(key: str, replica: str) -> int:
    """The weight of a replica for a key: the same in every process."""
    return int.from_bytes(hashlib.blake2b(f"{replica}\0{key}".encode(), digest_size=8).digest())
