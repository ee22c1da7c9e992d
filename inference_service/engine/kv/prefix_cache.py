"""Prefixes known to the engine, and the prefix KV of as many as fit into the memory budget.

Knows no rows or requests. The tensors of every known prefix stay in memory. An evicted prefix KV (least recently
used first) of a soft prompt is computed again when a request needs it, in chunks, as the beginning of that request's
own input; that of a prefix of keys and values is read again. A request needs the prefix KV only in the step in which it
starts, which copies it.
"""

from __future__ import annotations

from dataclasses import dataclass

from inference_service.engine.core.integrity import IntegrityError
from inference_service.engine.kv.key_values import KeyValueReader
from inference_service.engine.kv.kv_cache import PrefixKV
from shared.errors import DamagedBlob, NotFound, PreconditionFailed
from shared.prompt.prefix import Prefix


@dataclass
class _Known:
    """One known prefix. `holds`: requests that use it; `proven`: its KV was once computed and finite."""

    prefix: Prefix
    kv: PrefixKV | None = None
    holds: int = 0
    last_used: int = 0
    leaving: bool = False
    proven: bool = False


class PrefixCache:
    """Known prefixes and their KV; used only by the engine's thread, except `num_virtual` and `kv_bytes`."""

    def __init__(self, max_bytes: int, reader: KeyValueReader | None = None) -> None:
        """`reader`: for prefixes of keys and values."""
        self.max_bytes, self._reader = max_bytes, reader
        self._prefixes: dict[str, _Known] = {}
        self._clock = 0
        self.num_bytes = 0
        self.num_computed = 0
        self.num_hits = 0
        self.num_evictions = 0

    @property
    def num_known(self) -> int:
        """Number of known prefixes."""
        return len(self._prefixes)

    @property
    def num_loaded(self) -> int:
        """Number of prefixes whose KV is in memory."""
        return sum(known.kv is not None for known in self._prefixes.values())

    def __contains__(self, prefix_id: str) -> bool:
        return prefix_id in self._prefixes

    def num_virtual(self, prefix_id: str | None) -> int:
        """Virtual tokens of a known prefix, 0 for the bare model. Raises NotFound."""
        return 0 if prefix_id is None else self._get(prefix_id).prefix.num_virtual_tokens

    def prefix(self, prefix_id: str) -> Prefix:
        """A known prefix. Raises NotFound."""
        return self._get(prefix_id).prefix

    def is_ready(self, prefix_id: str) -> bool:
        """Whether the prefix KV is in memory, or in the prefix itself."""
        known = self._prefixes.get(prefix_id)
        return known is not None and (known.kv is not None or not known.prefix.is_computed)

    def kv_bytes(self, prefix_id: str) -> int:
        """Bytes of the prefix KV; 0 while it is not in memory."""
        known = self._prefixes.get(prefix_id)
        kv = None if known is None else known.kv
        return 0 if kv is None else kv.num_bytes

    def add(self, prefix_id: str, prefix: Prefix) -> None:
        """Add a prefix; a soft prompt's KV is computed later. Adding the same prefix again does nothing.

        Raises PreconditionFailed for another prefix under the same id, or keys and values of other layers; DamagedBlob
        if they are not finite.
        """
        known = self._prefixes.get(prefix_id)
        if known is None:
            kv = None if prefix.is_computed else self._read(prefix)
            self._prefixes[prefix_id] = _Known(prefix)
            if kv is not None:
                self._store(prefix_id, kv)
            return
        if known.prefix is not prefix and not known.prefix.equals(prefix):
            raise PreconditionFailed(f"prefix {prefix_id} is loaded with other content; a version never changes")
        known.leaving = False

    def unload(self, prefix_id: str) -> bool:
        """Remove a prefix now, or when the last request that uses it ends. True if it is gone or was unknown."""
        known = self._prefixes.get(prefix_id)
        if known is None:
            return True
        if known.holds:
            known.leaving = True
            return False
        self._drop_kv(known)
        del self._prefixes[prefix_id]
        return True

    def hold(self, prefix_id: str) -> None:
        """Count a request that uses the prefix. Raises NotFound if it is unknown or being unloaded."""
        known = self._get(prefix_id)
        if known.leaving:
            raise NotFound("soft prompt", prefix_id, "it is being unloaded")
        known.holds += 1
        if known.kv is None and not known.prefix.is_computed:  # it was evicted
            self._store(prefix_id, self._read(known.prefix))

    def release(self, prefix_id: str) -> bool:
        """End a request's use of the prefix. True if this removed the prefix.

        It is removed after its last use if it was marked for removal or never computed successfully.
        """
        known = self._get(prefix_id)
        if known.holds <= 0:
            raise IntegrityError(f"prefix {prefix_id} is released more often than held")
        known.holds -= 1
        return (known.leaving or not known.proven) and not known.holds and self.unload(prefix_id)

    def get(self, prefix_id: str) -> PrefixKV:
        """The prefix KV. Raises IntegrityError if it is not in memory; plans of steps must check `is_ready` first."""
        known = self._get(prefix_id)
        if known.kv is None and not known.prefix.is_computed:
            return self._read(known.prefix)
        if known.kv is None:
            raise IntegrityError(f"a step copies the keys and values of prefix {prefix_id}, which are not computed")
        self._touch(known)
        self.num_hits += 1
        return known.kv

    def keep(self, prefix_id: str, kv: PrefixKV) -> None:
        """Store a computed prefix KV. Raises DamagedBlob, and stores nothing, if it is not finite."""
        if not kv.finite:
            raise DamagedBlob("the soft prompt gives keys or values that are not finite in this model")
        self._store(prefix_id, kv)

    def check_integrity(self) -> None:
        """Raise IntegrityError if the bookkeeping is inconsistent."""
        held = sum(known.kv.num_bytes for known in self._prefixes.values() if known.kv is not None)
        if held != self.num_bytes:
            raise IntegrityError(f"prefix KV takes {held} bytes, but the count says {self.num_bytes}")
        if held > self.max_bytes and self.num_loaded > 1:
            raise IntegrityError(f"prefix KV takes {held} bytes, more than its budget of {self.max_bytes}")
        for prefix_id, known in self._prefixes.items():
            if known.leaving and not known.holds:
                raise IntegrityError(f"prefix {prefix_id} was marked for removal but still exists without use")

    @property
    def num_holds(self) -> int:
        """Uses of all prefixes by requests."""
        return sum(known.holds for known in self._prefixes.values())

    def _read(self, prefix: Prefix) -> PrefixKV:
        if self._reader is None:
            raise PreconditionFailed("this engine can't serve prefixes of keys and values")
        kv = self._reader.read(prefix)
        if not kv.finite:
            raise DamagedBlob("the prefix has keys or values that are not finite in this model's dtype")
        return kv

    def _store(self, prefix_id: str, kv: PrefixKV) -> None:
        known = self._get(prefix_id)
        self._touch(known)
        self.num_computed += 1
        self._drop_kv(known)
        known.kv, known.proven = kv, True
        self.num_bytes += kv.num_bytes
        self._evict(keep=known)

    def _touch(self, known: _Known) -> None:
        self._clock += 1
        known.last_used = self._clock

    def _evict(self, keep: _Known) -> None:
        """Evict prefix KV down to the budget; `keep`, the newest, stays even if it is larger."""
        for known in sorted(
            (p for p in self._prefixes.values() if p.kv is not None and p is not keep), key=lambda p: p.last_used
        ):
            if self.num_bytes <= self.max_bytes:
                return
            self._drop_kv(known)
            self.num_evictions += 1

    def _drop_kv(self, known: _Known) -> None:
        if known.kv is not None:
            self.num_bytes -= known.kv.num_bytes
            known.kv = None

    def _get(self, prefix_id: str) -> _Known:
        known = self._prefixes.get(prefix_id)
        if known is None:
            raise NotFound("soft prompt", prefix_id, "it is not loaded")
        return known
