"""Secret keys of the service, kept in the job database: the same for all replicas and after every restart."""

from __future__ import annotations

from sqlalchemy import select

from shared.security.page_tokens import new_key
from trainer_service.database.database import Database
from trainer_service.database.schema import service_keys

PAGE_TOKENS = "page-tokens"


def page_token_key(database: Database) -> bytes:
    """The key of page tokens, created at the first call. If several replicas create one at once, all use the first.
    Raises Unavailable.
    """
    new = database.insert(service_keys).values(name=PAGE_TOKENS, value=new_key())
    query = select(service_keys.c.value).where(service_keys.c.name == PAGE_TOKENS)
    with database.write() as connection:
        connection.execute(new.on_conflict_do_nothing())
        return bytes(connection.execute(query).scalar_one())
