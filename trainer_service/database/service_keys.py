"""Secret keys of the service, kept in the job database: the same for all replicas and after every restart."""

from __future__ import annotations

from sqlalchemy import select
from sqlalchemy.dialects.postgresql import insert as postgresql_insert
from sqlalchemy.dialects.sqlite import insert as sqlite_insert

from shared.security.page_tokens import new_key
from trainer_service.database.database import Database
from trainer_service.database.schema import service_keys

PAGE_TOKENS = "page-tokens"


def page_token_key(database: Database) -> bytes:
    """The key of page tokens, created at the first call. If several replicas create one at once, all use the first.

    Raises Unavailable.
    """
    insert = sqlite_insert if database.is_sqlite else postgresql_insert
    with database.write() as connection:
        connection.execute(insert(service_keys).values(name=PAGE_TOKENS, value=new_key()).on_conflict_do_nothing())
        return bytes(
            connection.execute(select(service_keys.c.value).where(service_keys.c.name == PAGE_TOKENS)).scalar_one()
        )
