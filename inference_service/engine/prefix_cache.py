"""Soft prompts known to the engine, and the prefix KV of as many as the memory budget takes. Knows nothing of rows or requests.

The small matrix of every known prompt stays, so that a prefix KV that was evicted (least recently used, never while a request holds it) is
computed again when it is wanted, in the time of one short prefill.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from inference_service.engine.kv_cache import PrefixKV
from inference_service.engine.rows import IntegrityError
from shared.errors import DamagedBlob, NotFound, PreconditionFailed
from shared.soft_prompt import SoftPrompt


@dataclass
class Prefix:
    """`loaded_bytes` is what its KV takes when computed; `holds` counts the requests that use it."""

    soft_prompt: SoftPrompt
    kv: PrefixKV | None = None
    holds: int = 0
    last_used: int = 0
    leaving: bool = False


class PrefixCache:
    """`compute` runs the model over a soft prompt. Used by the engine's thread alone, but for `num_virtual`."""

    def __init__(self, compute: Callable[[SoftPrompt], PrefixKV], max_bytes: int) -> None:
        self._compute = compute
        self.max_bytes = max_bytes
        self._prefixes: dict[str, Prefix] = {}
        self._clock = 0
        self.num_bytes = 0
        self.num_computed = 0
        self.num_hits = 0
        self.num_evictions = 0

    @property
    def num_known(self) -> int:
        return len(self._prefixes)

    @property
    def num_loaded(self) -> int:
        return sum(prefix.kv is not None for prefix in self._prefixes.values())

    def __contains__(self, prefix_id: str) -> bool:
        return prefix_id in self._prefixes

    def num_virtual(self, prefix_id: str | None) -> int:
        """Virtual tokens of a known prefix, 0 for the bare model. Raises NotFound."""
        return 0 if prefix_id is None else self._get(prefix_id).soft_prompt.num_virtual_tokens

    def load(self, prefix_id: str, soft_prompt: SoftPrompt) -> None:
        """Make a prefix known and compute its KV now. Loading the same again does nothing. Raises DamagedBlob, PreconditionFailed."""
        known = self._prefixes.get(prefix_id)
        if known is not None:
            if known.soft_prompt is not soft_prompt and not known.soft_prompt.embeddings.equal(soft_prompt.embeddings):
                raise PreconditionFailed(f"prefix {prefix_id} is loaded with another soft prompt; a version never changes")
            known.leaving = False
            self.get(prefix_id)
            return
        self._prefixes[prefix_id] = Prefix(soft_prompt)
        try:
            self.get(prefix_id)
        except Exception:
            del self._prefixes[prefix_id]
            raise

    def unload(self, prefix_id: str) -> bool:
        """Forget a prefix, at once or, if requests hold it, when the last of them ends. True if it is gone now. Unknown ones are gone."""
        prefix = self._prefixes.get(prefix_id)
        if prefix is None:
            return True
        if prefix.holds:
            prefix.leaving = True
            return False
        self._drop_kv(prefix)
        del self._prefixes[prefix_id]
        return True

    def hold(self, prefix_id: str) -> None:
        """A request starts to use the prefix. Raises NotFound if it is unknown or on its way out."""
        prefix = self._get(prefix_id)
        if prefix.leaving:
            raise NotFound("soft prompt", prefix_id, "it is being unloaded")
        prefix.holds += 1

    def release(self, prefix_id: str) -> bool:
        """The request is done. True if the prefix left with it."""
        prefix = self._get(prefix_id)
        if prefix.holds <= 0:
            raise IntegrityError(f"prefix {prefix_id} is released more often than held")
        prefix.holds -= 1
        return prefix.leaving and self.unload(prefix_id)

    def get(self, prefix_id: str) -> PrefixKV:
        """The prefix KV, computed now if it was evicted."""
        prefix = self._get(prefix_id)
        self._clock += 1
        prefix.last_used = self._clock
        if prefix.kv is not None:
            self.num_hits += 1
            return prefix.kv
        kv = self._compute(prefix.soft_prompt)
        if not kv.finite:
            raise DamagedBlob("the soft prompt gives keys or values that are not finite in this model")
        self.num_computed += 1
        prefix.kv = kv
        self.num_bytes += kv.num_bytes
        self._evict(keep=prefix)
        return kv

    def check_integrity(self) -> None:
        held = sum(prefix.kv.num_bytes for prefix in self._prefixes.values() if prefix.kv is not None)
        if held != self.num_bytes:
            raise IntegrityError(f"prefix KV takes {held} bytes, the books say {self.num_bytes}")
        for prefix_id, prefix in self._prefixes.items():
            if prefix.leaving and not prefix.holds:
                raise IntegrityError(f"prefix {prefix_id} was to leave and is still here")

    @property
    def num_holds(self) -> int:
        return sum(prefix.holds for prefix in self._prefixes.values())

    def _evict(self, keep: Prefix) -> None:
        """Down to the budget. Held prefixes stay even above it: their number is bounded by the requests that the queue takes."""
        idle = sorted((p for p in self._prefixes.values() if p.kv is not None and not p.holds and p is not keep), key=lambda p: p.last_used)
        for prefix in idle:
            if self.num_bytes <= self.max_bytes:
                return
            self._drop_kv(prefix)
            self.num_evictions += 1

    def _drop_kv(self, prefix: Prefix) -> None:
        if prefix.kv is not None:
            self.num_bytes -= prefix.kv.num_bytes
            prefix.kv = None

    def _get(self, prefix_id: str) -> Prefix:
        prefix = self._prefixes.get(prefix_id)
        if prefix is None:
            raise NotFound("soft prompt", prefix_id, "it is not loaded")
        return prefix
