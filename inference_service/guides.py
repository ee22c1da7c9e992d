"""Compiled guides of the service: compiles them outside the engine's thread and the event loop, and keeps the latest.

A tenant's compiled guides are its own: how long a guide takes reveals nothing about other tenants.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from dataclasses import dataclass

from inference_service.engine.guide.compiler import GuideCompiler
from inference_service.engine.guide.matcher import CompiledGuide
from shared.errors import SoftPromptError
from shared.process.call_pool import CallPool
from shared.values.guide import Guide

_BYTES_EACH = 2 << 20
_BYTES_OF_A_BYTE = 64
"""A compiled guide takes 0.4 to 2.4 MB with the states that its lexer reached in a few answers (measured)."""
MAX_USES = 1_000
"""Answers under one compiled guide. Its lexer's states grow with the texts that it has seen, and are limited."""
_MAX_WAIT_SECONDS = 30.0

_Key = tuple[str, Guide, str]


@dataclass(frozen=True)
class GuideStats:
    """Statistics of the guides; all but `kept_bytes` only grow."""

    num_compiled: int
    num_reused: int
    """Uses of a guide that was already compiled."""
    num_refused: int
    """Guides that could not be compiled: with errors, too complex, or while too many others waited."""
    kept_bytes: int
    """Estimated bytes of the compiled guides that are kept."""


class Guides:
    """Compiles guides and keeps them up to `max_bytes`, an estimate. Used on the event loop."""

    def __init__(self, compiler: GuideCompiler, max_bytes: int) -> None:
        self._compiler, self._max_bytes = compiler, max_bytes
        self._pool = CallPool("guide_compiler", max_threads=2, timeout_seconds=_MAX_WAIT_SECONDS)
        self._kept: OrderedDict[_Key, CompiledGuide] = OrderedDict()
        self._uses: Counter[_Key] = Counter()
        self._bytes: Counter[str] = Counter()
        self._num_compiled = self._num_reused = self._num_refused = 0

    @property
    def num_bytes(self) -> int:
        """Estimated bytes of the guides that are kept."""
        return self._bytes.total()

    def stats(self) -> GuideStats:
        """Statistics since the start."""
        return GuideStats(self._num_compiled, self._num_reused, self._num_refused, self.num_bytes)

    def lead(self, answer_prefix: str, continues: bool) -> str:
        """The text before the form: what is removed from the beginning of an answer. See `AnswerText`.

        Some tokenizers' decoders remove a space from the beginning of a text; under a guide it is written and removed.
        """
        return "" if continues else answer_prefix or " " * self._compiler.leading_spaces

    async def compiled(self, guide: Guide, lead: str, tenant: str) -> CompiledGuide:
        """The compiled guide for answers that begin with `lead`.

        Raises InvalidInput naming the field, Unavailable if too many guides wait to be compiled.
        """
        key = (tenant, guide, lead)
        found = self._kept.get(key)
        if found is not None and not found.failed and self._uses[key] < MAX_USES:
            self._kept.move_to_end(key)
            self._num_reused += 1
        else:
            self._drop(key)
            try:
                found = await self._pool.call(self._compiler.compile, guide, lead)
            except SoftPromptError:
                self._num_refused += 1
                raise
            self._num_compiled += 1
            self._keep(key, found)
        if key in self._kept:  # it may be too large to be kept
            self._uses[key] += 1
        return found

    def close(self) -> None:
        """Stop the threads."""
        self._pool.close()

    def _keep(self, key: _Key, compiled: CompiledGuide) -> None:
        self._drop(key)
        self._kept[key] = compiled
        self._bytes[key[0]] += _size(key)
        while self.num_bytes > self._max_bytes:
            # Drops from the tenant with the largest part, so that no tenant can evict the guides of others.
            (largest, _) = self._bytes.most_common(1)[0]
            self._drop(next(kept for kept in self._kept if kept[0] == largest))

    def _drop(self, key: _Key) -> None:
        if self._kept.pop(key, None) is not None:
            self._uses.pop(key, None)
            self._bytes[key[0]] -= _size(key)
            self._bytes += Counter()  # without tenants that keep nothing


def _size(key: _Key) -> int:
    return _BYTES_EACH + _BYTES_OF_A_BYTE * key[1].num_bytes
