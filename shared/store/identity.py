"""Which store this is. A directory that was wiped and made anew under a running service is another store, with another
log.
"""

from __future__ import annotations

import uuid

from pydantic import BaseModel, ValidationError

from shared.errors import PreconditionFailed, Unavailable
from shared.store.base import ObjectBackend
from shared.store.layout import MAX_SMALL_BYTES, STORE_KEY

STORE_FORMAT = 1


class _StoreFile(BaseModel):
    format: int
    store_id: str


class StoreIdentity:
    """The id in `store.json`, written by whoever comes first."""

    def __init__(self, backend: ObjectBackend) -> None:
        self._backend = backend
        self.id = ""

    def load(self) -> None:
        """Read the id, or make one. Raises PreconditionFailed for a store of a newer format, or something that is no
        store.
        """
        found = self._read()
        if found is None:
            mine = _StoreFile(format=STORE_FORMAT, store_id=uuid.uuid4().hex)
            self._backend.create(STORE_KEY, mine.model_dump_json().encode())
            found = self._read()
        if found is None:
            raise Unavailable("the prompt store forgets what is written to it")
        self.id = found.store_id

    def is_same(self) -> bool:
        """Whether the place still holds the store that `load` saw."""
        found = self._read()
        return found is not None and found.store_id == self.id

    def _read(self) -> _StoreFile | None:
        data = self._backend.get(STORE_KEY, MAX_SMALL_BYTES)
        if data is None:
            return None
        try:
            found = _StoreFile.model_validate_json(data)
        except ValidationError as error:
            raise PreconditionFailed(
                "the place given for the prompt store holds something else: its store.json can't be read"
            ) from error
        if found.format > STORE_FORMAT:
            raise PreconditionFailed(
                f"the prompt store is of format {found.format}; this build knows {STORE_FORMAT}: update it"
            )
        return found
