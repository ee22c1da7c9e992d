"""A time limit for each statement of psycopg, enforced by the client.

PostgreSQL's `statement_timeout` works only if the server receives the statement, and TCP time-outs only if the peer
stops acknowledging. A proxy or a frozen server that accepts the bytes and never answers triggers neither.
"""

from __future__ import annotations

import time
from collections.abc import Generator
from typing import Any

from sqlalchemy import Engine, event

_MARGIN_SECONDS = 1.0
"""Added to the server's limit, which should act first because it leaves the connection usable."""


class StatementDeadline:
    """Makes connections of `engine` fail with OperationalError, and closes them, if an answer takes longer than
    `timeout_seconds`.
    """

    def __init__(self, engine: Engine, timeout_seconds: float) -> None:
        self._timeout_seconds: float | None = timeout_seconds + min(_MARGIN_SECONDS, timeout_seconds)
        self._restored = self._timeout_seconds
        event.listen(engine, "do_connect", self._connect)

    def lift(self) -> None:
        """Removes the limit for a migration, before anything else uses the engine."""
        self._timeout_seconds = None

    def restore(self) -> None:
        """Sets the limit again after `lift`."""
        self._timeout_seconds = self._restored

    def _connect(self, dialect: Any, record: Any, arguments: tuple[Any, ...], options: dict[str, Any]) -> Any:
        import psycopg

        deadline = self

        class LimitedConnection(psycopg.Connection[Any]):
            def wait(self, gen: Any, *args: Any, **kwargs: Any) -> Any:
                return super().wait(deadline._limited(gen, self), *args, **kwargs)

        return LimitedConnection.connect(*arguments, **options)

    def _limited(self, answer: Generator[Any, Any, Any], connection: Any) -> Generator[Any, Any, Any]:
        """Wraps psycopg's generator for one exchange with the server, which yields the event that it waits for and
        receives the event that occurred (0: none).
        """
        import psycopg

        begun = time.monotonic()
        try:
            wanted = next(answer)
            while True:
                ready = yield wanted
                if not ready and self._timeout_seconds is not None and time.monotonic() - begun > self._timeout_seconds:
                    connection.pgconn.finish()  # at once: a regular close would wait for the same server
                    raise psycopg.OperationalError("the server did not answer in time")
                wanted = answer.send(ready)
        except StopIteration as end:
            return end.value
