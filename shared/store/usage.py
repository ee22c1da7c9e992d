"""Usage in the store: the segments of replicas' journals on their way to the trainer, and the budgets that are used up.

A journal has a random id, its life, and numbers its segments from 1. Segment `usage/<life>/<number>.jsonl` is created
once and removed by a trainer that has added it to its database. Lines that can't be added go to `usage-refused/`.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Annotated, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    StringConstraints,
    TypeAdapter,
    ValidationError,
    model_validator,
)

from shared.errors import DamagedBlob, Overloaded
from shared.store.base import ObjectBackend
from shared.store.layout import BUDGETS_KEY, MAX_SMALL_BYTES, MAX_USAGE_BYTES, USAGE, USAGE_REFUSED

HOUR_SECONDS = 3600
REFUSED_DAYS = 90
"""How long refused segments are kept."""
_FIRST_HOUR = 1_577_836_800  # 2020: no replica is older
_MAX_CLOCK_SECONDS = 86_400  # how far a replica's clock may be ahead
_MAX_KEY_BYTES = 2000  # of PostgreSQL's index, whose rows have at most 2704 bytes
_SEGMENT = re.compile(rf"{USAGE}([0-9a-f]{{32}})/(\d{{9}})\.jsonl")


def _printable(value: str) -> str:
    if not value.isprintable():
        raise ValueError("has control characters")
    return value


_Text = Annotated[str, StringConstraints(max_length=200), AfterValidator(_printable)]
_Count = Annotated[int, Field(ge=0, le=1 << 40)]


class UsageRecord(BaseModel):
    """Use of one replica by one caller with one version, within one hour. Readers ignore unknown fields."""

    model_config = ConfigDict(frozen=True, extra="ignore", strict=True)

    hour: Annotated[int, Field(ge=0, le=1 << 40, multiple_of=HOUR_SECONDS)]
    """Its first second, since the epoch (UTC)."""
    tenant: Annotated[_Text, Field(min_length=1)]
    caller: _Text
    prompt: Annotated[_Text, Field(max_length=63)] = ""
    """Empty for the bare model."""
    version: Annotated[int, Field(ge=0, lt=1_000_000_000)] = 0
    base_model: _Text
    requests: _Count
    """Completions and scores that ended."""
    input_tokens: _Count
    virtual_tokens: _Count
    cached_tokens: _Count
    """Part of the input tokens."""
    generated_tokens: _Count

    @model_validator(mode="after")
    def _can_be_stored(self) -> Self:
        if len("".join((self.tenant, self.caller, self.prompt, self.base_model)).encode()) > _MAX_KEY_BYTES:
            raise ValueError(f"its names have more than {_MAX_KEY_BYTES} bytes")
        return self

    @property
    def key(self) -> tuple[int, str, str, str, int, str]:
        """The dimensions that it counts for: records with the same key are added."""
        return self.hour, self.tenant, self.caller, self.prompt, self.version, self.base_model


COUNTS = ("requests", "input_tokens", "virtual_tokens", "cached_tokens", "generated_tokens")


def summed(records: Iterable[UsageRecord]) -> list[UsageRecord]:
    """One record for each key, in the order of the keys."""
    found: dict[tuple[int, str, str, str, int, str], UsageRecord] = {}
    for record in records:
        before = found.get(record.key)
        counts = {} if before is None else {name: getattr(before, name) + getattr(record, name) for name in COUNTS}
        found[record.key] = record.model_copy(update=counts)
    return [found[key] for key in sorted(found)]


def encode_segment(records: Iterable[UsageRecord]) -> bytes:
    """JSON lines."""
    return "".join(f"{record.model_dump_json()}\n" for record in records).encode()


@dataclass(frozen=True)
class Segment:
    """The records of a segment, and its lines that are none."""

    records: list[UsageRecord]
    unread: bytes = b""
    problem: str = ""
    """What is wrong with the first of these lines."""


def decode_segment(data: bytes, hours: range | None = None) -> Segment:
    """Inverse of `encode_segment`. `hours`: those that a record may have; None: any, because clocks may be wrong."""
    found, unread, problem = list[UsageRecord](), list[bytes](), ""
    for number, line in enumerate(data.splitlines(keepends=True), start=1):
        if not line.strip():
            continue
        try:
            record = UsageRecord.model_validate_json(line)
            if hours is None or record.hour in hours:
                found.append(record)
                continue
            reason = "hour: is not between 2020 and tomorrow: a clock is wrong"
        except ValidationError as error:
            first = error.errors(include_input=False, include_url=False)[0]
            reason = f"{'.'.join(map(str, first['loc'])) or 'record'}: {first['msg']}"
        problem = problem or f"line {number}: {reason}"
        unread.append(line)
    return Segment(summed(found), b"".join(unread), problem)


@dataclass(frozen=True, order=True)
class SegmentId:
    """A segment of the journal `life` (32 hexadecimal digits)."""

    life: str
    number: int

    @property
    def key(self) -> str:
        """Its key in the store."""
        return f"{USAGE}{self.life}/{self.number:09d}.jsonl"


class UsageSegments:
    """The segments of one store."""

    def __init__(self, backend: ObjectBackend) -> None:
        self._backend = backend

    def publish(self, segment: SegmentId, data: bytes) -> None:
        """Write a segment. One that exists was written by an earlier attempt, with the same content."""
        self._backend.create(segment.key, data)

    def all(self) -> list[SegmentId]:
        """All segments, those of one life in order. Other objects are ignored."""
        found = (_SEGMENT.fullmatch(info.key) for info in self._backend.list(USAGE))
        return sorted(SegmentId(match[1], int(match[2])) for match in found if match)

    def read(self, segment: SegmentId) -> Segment | None:
        """Its content; None if it is gone. Raises DamagedBlob if it is too large."""
        data = self._backend.get(segment.key, MAX_USAGE_BYTES)
        hours = range(_FIRST_HOUR, int(time.time()) + _MAX_CLOCK_SECONDS)
        return None if data is None else decode_segment(data, hours)

    def exists(self, segment: SegmentId) -> bool:
        """Whether the store has it."""
        return self._backend.head(segment.key) is not None

    def refuse(self, segment: SegmentId, unread: bytes = b"") -> None:
        """Keep unreadable lines for the operator, by default all; of a segment that is far too large, only a note."""
        try:
            data = unread or self._backend.get(segment.key, 4 * MAX_USAGE_BYTES)
        except DamagedBlob as error:
            data = error.message.encode()
        if data is not None:
            self._backend.put(f"{USAGE_REFUSED}{segment.life}-{segment.number:09d}.jsonl", data)

    def remove(self, segment: SegmentId) -> None:
        """Remove it after it was folded or refused."""
        self._backend.delete(segment.key)


def forget_refused(backend: ObjectBackend) -> int:
    """Remove refused segments after REFUSED_DAYS. Returns their number."""
    oldest = datetime.now(UTC) - timedelta(days=REFUSED_DAYS)
    old = [info.key for info in backend.list(USAGE_REFUSED) if info.modified_at < oldest]
    for key in old:
        backend.delete(key)
    return len(old)


class UsedUp(BaseModel):
    """A hard budget of a tenant that is used up until `resets_at`, in seconds since the epoch."""

    model_config = ConfigDict(frozen=True, extra="ignore")
    budget: Annotated[str, StringConstraints(max_length=100)]
    resets_at: float = Field(ge=0, le=4e9)

    def error(self, now: float) -> Overloaded:
        """The error for a call of the tenant at `now`."""
        resets = datetime.fromtimestamp(self.resets_at, UTC).strftime("%Y-%m-%d %H:%M UTC")
        text = f"your tenant's budget {self.budget!r} is used up; it resets at {resets}"
        return Overloaded(text, retry_after_seconds=max(1.0, self.resets_at - now), budget=self.budget)


def write_used_up(backend: ObjectBackend, tenants: Mapping[str, UsedUp]) -> None:
    """Write which tenants have used up a hard budget, if that has changed."""
    data = json.dumps({name: tenants[name].model_dump() for name in sorted(tenants)}).encode()
    try:
        before = backend.get(BUDGETS_KEY, MAX_SMALL_BYTES * 64)
    except DamagedBlob:
        before = b""
    if before != data and (tenants or before is not None):
        backend.put(BUDGETS_KEY, data)


def read_used_up(backend: ObjectBackend) -> dict[str, UsedUp]:
    """Inverse of `write_used_up`. Raises DamagedBlob."""
    data = backend.get(BUDGETS_KEY, MAX_SMALL_BYTES * 64)
    try:
        return _USED_UP.validate_json(data or b"{}")
    except ValidationError:
        raise DamagedBlob(f"{BUDGETS_KEY} can't be read") from None


_USED_UP = TypeAdapter(dict[str, UsedUp])
