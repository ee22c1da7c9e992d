"""Texts that are nearly equal, found by MinHash with banding (Broder 1997; Leskovec, Rajaraman and Ullman, "Mining of
Massive Datasets", chapter 3). Needs numpy.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

MIN_SHARE = 0.8
_NUM_HASHES, _ROWS_OF_A_BAND, _WORDS = 32, 4, 3
_BATCH_SHINGLES = 1 << 16
Hashes = NDArray[np.uint64]


def shingles(words: str) -> Hashes | None:
    """Hashes of the different runs of three words, sorted; None for a text with too few of them to compare."""
    hashes = np.fromiter((zlib.crc32(word.encode()) for word in words.split()), np.uint64)
    if hashes.size < _WORDS:
        return None
    multiplier = np.uint64(0x9E3779B97F4A7C15)
    found = np.unique(((hashes[:-2] * multiplier + hashes[1:-1]) * multiplier + hashes[2:]) * multiplier)
    return found if found.size >= 2 * _WORDS else None


def num_similar(sets: Sequence[Hashes]) -> int:
    """The number of sets that share at least MIN_SHARE (Jaccard) with an earlier set of the same MinHash band."""
    buckets: dict[bytes, int] = {}
    count = 0
    for index, signature in enumerate(_signatures(sets)):
        found = False
        for band in range(0, _NUM_HASHES, _ROWS_OF_A_BAND):
            key = bytes([band]) + signature[band : band + _ROWS_OF_A_BAND].tobytes()
            other = buckets.setdefault(key, index)
            found = found or (other != index and _share(sets[index], sets[other]) >= MIN_SHARE)
        count += found
    return count


def _signatures(sets: Sequence[Hashes]) -> list[Hashes]:
    random = np.random.default_rng(0)
    factors = random.integers(1, 1 << 63, _NUM_HASHES, dtype=np.uint64) * np.uint64(2) + np.uint64(1)
    signatures: list[Hashes] = []
    begin = 0
    while begin < len(sets):
        end, size = begin, 0
        while end < len(sets) and (end == begin or size + sets[end].size <= _BATCH_SHINGLES):
            size += sets[end].size
            end += 1
        every = np.concatenate(sets[begin:end])
        starts = np.cumsum([0, *(part.size for part in sets[begin : end - 1])])
        mixed = (every ^ (every >> np.uint64(31)))[None, :] * factors[:, None]  # [hashes, shingles]
        signatures += list(np.minimum.reduceat(mixed, starts, axis=1).T)
        begin = end
    return signatures


def _share(first: Hashes, second: Hashes) -> float:
    common = np.intersect1d(first, second, assume_unique=True).size
    return common / (first.size + second.size - common)
