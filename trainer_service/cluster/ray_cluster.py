"""Joining a Ray cluster, and leaving it: one inside this machine that ends with the service, or an existing one by
address.

Nobody else's cluster is ever joined by accident: without an address Ray is always started anew, whatever runs on this
machine or is named in the environment.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import secrets
import threading
from collections.abc import Iterator, Mapping
from concurrent.futures import Future
from typing import Any

import psutil

from shared.errors import Unavailable
from shared.process.daemon_thread import close_within
from trainer_service.cluster.watchdog import Watchdog

log = logging.getLogger(__name__)

_OBJECT_STORE_BYTES = 128 << 20
"""Tasks and results are small; Ray's default is a third of the machine."""

_JOIN_SECONDS = 180.0
"""A head that accepts the connection and never answers is away. Starting an embedded cluster takes 4 to 9 seconds on an
idle machine.
"""
_LEAVE_SECONDS = 30.0
_DEAD_HEAD_SECONDS = "10"
"""An embedded head that is gone does not come back: this process, and whatever Ray leaves behind, ends after that, not
after a minute.
"""

_ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",  # else each worker makes a virtual environment of its own under `uv run`
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",  # an actor without a GPU is told so by its device setting
    "GRPC_ENABLE_FORK_SUPPORT": "0",
    # at Ray's own 15 (and at 5) one busy neighbour slows training tenfold: its threads wait for each other
    "RAY_worker_niceness": "0",
    "RAY_DEDUP_LOGS": "0",
}


_SOCKET_NAME_BYTES = len("/session_2026-01-01_00-00-00_000000_4194304/sockets/plasma_store")
_MAX_SOCKET_BYTES = 107
"""unix(7): the path of a socket."""


def short_temporary_folder(environment: Mapping[str, str] = os.environ) -> str | None:
    """Where an embedded Ray puts its sockets if its own choice, below RAY_TMPDIR or TMPDIR, is too long for them; None:
    it is not.
    """
    chosen = os.path.join(environment.get("RAY_TMPDIR") or environment.get("TMPDIR") or "/tmp", "ray")
    return "/tmp/ray" if len(os.fsencode(chosen)) + _SOCKET_NAME_BYTES > _MAX_SOCKET_BYTES else None


@contextlib.contextmanager
def without_signal_warning() -> Iterator[None]:
    """Ray warns that it handles no SIGTERM outside the main thread. It should not: the service itself handles SIGTERM."""
    logger = logging.getLogger("ray._private.worker")

    def keep(record: logging.LogRecord) -> bool:
        return "SIGTERM handler is not set" not in record.getMessage()

    logger.addFilter(keep)
    try:
        yield
    finally:
        logger.removeFilter(keep)


class RayCluster:
    """`address` empty: embedded. `start` and `close` once each."""

    def __init__(self, address: str = "", num_cpus: int | None = None) -> None:
        """`num_cpus` of an embedded one; None: the processors that Ray finds."""
        self.address, self._num_cpus = address, num_cpus
        self.resources: Mapping[str, float] = {}
        """What the cluster had when it was joined, by name: CPU, GPU, ... Asking Ray again may block for as long as its
        head is away.
        """
        self._leaving = threading.Event()
        self._member: threading.Thread | None = None
        self._watchdog: Watchdog | None = None
        self._roots: list[psutil.Process] = []
        """Processes that an embedded Ray was started with; all its others are their children."""

    @property
    def is_embedded(self) -> bool:
        return not self.address

    async def start(self) -> None:
        """Raises Unavailable if the cluster can't be reached, or doesn't let us in."""
        self._set_environment()
        joined: Future[Mapping[str, float]] = Future()
        # Not the event loop's own thread: there Ray would replace the service's signal handlers. And not one that may
        # end early: an embedded cluster's processes die with the very thread that started them.
        self._member = threading.Thread(target=self._join, args=(joined,), name="ray-member", daemon=True)
        self._member.start()
        try:
            async with asyncio.timeout(_JOIN_SECONDS):
                self.resources = await asyncio.wrap_future(joined)
        except (ConnectionError, RuntimeError, ValueError, TimeoutError) as error:
            log.warning("Ray can't be started or joined: %s", error)
            if "version mismatch" in str(error).lower():
                raise Unavailable(
                    f"the Ray cluster runs other versions than this trainer, use one image for both: {error}"
                ) from error
            raise Unavailable("the Ray cluster can't be reached") from error
        log.info("joined Ray", extra={"fields": {"address": self.address or "local", "resources": str(self.resources)}})

    async def close(self) -> None:
        """Leave; an embedded cluster ends."""
        self._leaving.set()
        if self._member is not None:
            await close_within(_LEAVE_SECONDS, self._member.join, "membership of the Ray cluster")
        if self._watchdog is not None:
            await close_within(_LEAVE_SECONDS, self._watchdog.close, "watchdog of Ray's processes")

    def watch_processes(self) -> None:
        """Have every process that an embedded Ray runs now ended with this one, whatever kills it. Blocks for
        milliseconds.
        """
        if self._watchdog is None:
            return
        for root in self._roots:
            with contextlib.suppress(psutil.NoSuchProcess):
                self._watchdog.name([root, *root.children(recursive=True)])

    def _join(self, joined: Future[Mapping[str, float]]) -> None:
        """Be a member until told to leave."""
        import ray

        joined.set_running_or_notify_cancel()  # a start that is given up half-way still ends in `_leaving`
        options: dict[str, Any] = {"address": self.address}
        if self.is_embedded:
            options = {"address": "local", "include_dashboard": False, "object_store_memory": _OBJECT_STORE_BYTES}
            if self._num_cpus is not None:
                options["num_cpus"] = self._num_cpus
            if (folder := short_temporary_folder()) is not None:
                options["_temp_dir"] = folder
        if self.is_embedded:
            self._watchdog = Watchdog()
        before = set(psutil.Process().children())
        try:
            with without_signal_warning():
                ray.init(log_to_driver=False, configure_logging=False, **options)
            if self.is_embedded:
                self._roots = [process for process in psutil.Process().children() if process not in before]
                self.watch_processes()
            joined.set_result(ray.cluster_resources())
        except BaseException as error:
            joined.set_exception(error)
            return
        self._leaving.wait()
        ray.shutdown()

    def _set_environment(self) -> None:
        """Ray reads these when it is imported. Its ports are open on every interface, so it asks for a token."""
        for name, value in _ENVIRONMENT.items():
            os.environ.setdefault(name, value)
        os.environ.setdefault("RAY_AUTH_MODE", "token")
        if self.is_embedded:
            os.environ.setdefault("RAY_gcs_rpc_server_reconnect_timeout_s", _DEAD_HEAD_SECONDS)
            if not os.environ.get("RAY_AUTH_TOKEN_PATH"):
                os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
