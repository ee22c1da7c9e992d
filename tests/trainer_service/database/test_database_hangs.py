"""A PostgreSQL behind a proxy that freezes: it accepts statements and answers none."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from contextlib import suppress

import pytest
from sqlalchemy import text

from shared.errors import Unavailable
from tests.tcp_proxy import TcpProxy, tcp_proxy
from tests.trainer_service.postgres import Postgres
from tests.waiting import wait_until
from trainer_service.database import statement_deadline
from trainer_service.database.database import Database
from trainer_service.jobs.store.job_store import JobStore


@pytest.fixture
def proxy(postgres: Postgres) -> Iterator[TcpProxy]:
    with tcp_proxy(postgres.directory / ".s.PGSQL.5432") as running:
        yield running


def url_through(proxy: TcpProxy, postgres: Postgres) -> str:
    name = f"hangs_{secrets.token_hex(4)}"
    postgres.create_database(name)
    return f"postgresql://softprompt@127.0.0.1:{proxy.port}/{name}"


def opened(url: str) -> JobStore:
    """With a short time limit, which may pass while it connects on a slow machine."""
    while True:
        with suppress(Unavailable):
            return JobStore.open(url, timeout_seconds=0.5)


def answers(store: JobStore) -> bool:
    """Whether it does in time, as at last also on a slow machine."""
    try:
        return store.counts() is not None
    except Unavailable:
        return False


def test_a_statement_without_an_answer_ends_in_time_and_the_next_one_works_again(
    proxy: TcpProxy, postgres: Postgres
) -> None:
    store = opened(url_through(proxy, postgres))
    wait_until(lambda: answers(store))
    proxy.hang()
    for _ in range(2):  # on the connection that was open, and on a new one
        with pytest.raises(Unavailable, match="the job database"):
            store.counts()
    proxy.resume()
    wait_until(lambda: answers(store))
    store.close()


def test_opening_a_database_that_never_answers_ends_in_time(proxy: TcpProxy, postgres: Postgres) -> None:
    url = url_through(proxy, postgres)
    proxy.hang()
    with pytest.raises(Unavailable):
        JobStore.open(url, timeout_seconds=0.3)


def test_the_server_ends_a_statement_that_takes_too_long_and_keeps_the_connection(
    postgres: Postgres, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(statement_deadline, "_MARGIN_SECONDS", 600.0)  # the client leaves it to the server
    database = Database(postgres.create_database(f"slow_{secrets.token_hex(4)}"), timeout_seconds=2)
    with database.read() as connection:
        process = connection.scalar(text("SELECT pg_backend_pid()"))
    with pytest.raises(Unavailable), database.read() as connection:
        connection.execute(text("SELECT pg_sleep(30)"))
    with database.read() as connection:
        assert connection.scalar(text("SELECT pg_backend_pid()")) == process
    database.close()
