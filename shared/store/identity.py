"""A store's identity: one that is deleted and created again under a running service has another log."""

from __future__ import annotations

import uuid
from typing import Annotated

from pydantic import BaseModel, Field, ValidationError

from shared.errors import PreconditionFailed, Unavailable
from shared.store.base import ObjectBackend
from shared.store.layout import MAX_SMALL_BYTES, STORE_KEY

STORE_FORMAT = 1


class StoreFile(BaseModel):
    """The content of `store.json`."""

    format: int
    store_id: Annotated[str, Field(max_length=100)]


class StoreIdentity:
    """The id in `store.json`, which the first process that opens the store writes."""

    def __init__(self, backend: ObjectBackend) -> None:
        self._backend = backend
        self.id = ""

    def load(self) -> None:
        """Read the id, or create one. Raises PreconditionFailed for a newer format, or if this is not a store."""
        found = self.read()
        if found is None:
            mine = StoreFile(format=STORE_FORMAT, store_id=uuid.uuid4().hex)
            self._backend.create(STORE_KEY, mine.model_dump_json().encode())
            found = self.read()
        if found is None:
            raise Unavailable("the prompt store loses data: an object that was just written does not exist")
        self.id = found.store_id

    def is_same(self) -> bool:
        """Whether this is still the store that `load` found."""
        found = self.read()
        return found is not None and found.store_id == self.id

    def read(self) -> StoreFile | None:
        """What `store.json` says now; None if it is missing. Raises as `load`."""
        data = self._backend.get(STORE_KEY, MAX_SMALL_BYTES)
        if data is None:
            return None
        try:
            found = StoreFile.model_validate_json(data)
        except ValidationError as error:
            raise PreconditionFailed(
                "the URL of the prompt store leads to something else: its store.json can't be read"
            ) from error
        if found.format > STORE_FORMAT:
            raise PreconditionFailed(
                f"the prompt store has format {found.format}; this build reads up to {STORE_FORMAT}: update it"
            )
        return found
