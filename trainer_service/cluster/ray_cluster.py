"""Joins and leaves a Ray cluster: an embedded one on this machine that ends with the service, or one at an address.

Without an address, a new cluster is always started, even if the machine runs another one or the environment names one.
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
"""Tasks and results are small; Ray's default is a third of the machine's memory."""

_JOIN_SECONDS = 180.0
"""For a head that connects but never answers. An embedded cluster starts in 4 to 9 seconds on an idle machine."""
_LEAVE_SECONDS = 30.0
_DEAD_HEAD_SECONDS = "10"
"""An embedded head that died does not come back, so this process and Ray's others end after this time, not a minute."""

_ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",  # otherwise each worker makes a separate virtual environment under `uv run`
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",  # an actor's device setting already says whether it uses a GPU
    "GRPC_ENABLE_FORK_SUPPORT": "0",
    # at Ray's default of 15 (and at 5), another busy process slows training tenfold: threads wait for each other
    "RAY_worker_niceness": "0",
    "RAY_DEDUP_LOGS": "0",
    # otherwise an embedded Ray starts one Python process per core at once, most of which never get work
    "RAY_prestart_worker_first_driver": "0",
}


_SOCKET_NAME_BYTES = len("/session_2026-01-01_00-00-00_000000_4194304/sockets/plasma_store")
_MAX_SOCKET_BYTES = 107
"""The longest path of a socket, see unix(7)."""


def short_temporary_folder(environment: Mapping[str, str] = os.environ) -> str | None:
    """A short folder for an embedded Ray's sockets if their paths below RAY_TMPDIR or TMPDIR are too long, or None."""
    chosen = os.path.join(environment.get("RAY_TMPDIR") or environment.get("TMPDIR") or "/tmp", "ray")
    return "/tmp/ray" if len(os.fsencode(chosen)) + _SOCKET_NAME_BYTES > _MAX_SOCKET_BYTES else None


@contextlib.contextmanager
def without_signal_warning() -> Iterator[None]:
    """Suppresses Ray's warning that it can't handle SIGTERM outside the main thread. The service handles SIGTERM."""
    logger = logging.getLogger("ray._private.worker")

    def keep(record: logging.LogRecord) -> bool:
        return "SIGTERM handler is not set" not in record.getMessage()

    logger.addFilter(keep)
    try:
        yield
    finally:
        logger.removeFilter(keep)


class RayCluster:
    """Membership of a Ray cluster; an empty `address` means an embedded one. Call `start` and `close` once each."""

    def __init__(self, address: str = "", num_cpus: int | None = None) -> None:
        """`num_cpus`: processors of an embedded cluster; None: as many as Ray finds."""
        self.address, self._num_cpus = address, num_cpus
        self.resources: Mapping[str, float] = {}
        """The cluster's resources when it was joined (CPU, GPU, ...). Asking Ray may block while its head is down."""
        self._leaving = threading.Event()
        self._member: threading.Thread | None = None
        self._watchdog: Watchdog | None = None
        self._roots: list[psutil.Process] = []
        """The first processes of an embedded Ray; all its other processes are their children."""

    @property
    def is_embedded(self) -> bool:
        """Whether this process starts the cluster."""
        return not self.address

    async def start(self) -> None:
        """Join the cluster. Raises Unavailable if it can't be reached, or rejects this process."""
        self.set_environment()
        joined: Future[Mapping[str, float]] = Future()
        # Not the event loop's thread, where Ray would replace the service's signal handlers, nor a thread that may end
        # early: an embedded cluster's processes die with the thread that started them.
        self._member = threading.Thread(target=self._join, args=(joined,), name="ray-member", daemon=True)
        self._member.start()
        try:
            async with asyncio.timeout(_JOIN_SECONDS):
                self.resources = await asyncio.wrap_future(joined)
        except Exception as error:  # Ray raises a plain Exception if its processes start too slowly
            log.warning("Ray can't be started or joined: %s", error)
            if "version mismatch" in str(error).lower():
                raise Unavailable(
                    f"the Ray cluster runs other versions than this trainer, use one image for both: {error}"
                ) from error
            raise Unavailable("the Ray cluster can't be reached") from error
        log.info("joined Ray", extra={"fields": {"address": self.address or "local", "resources": str(self.resources)}})

    async def close(self) -> None:
        """Leave the cluster; an embedded one ends."""
        self._leaving.set()
        if self._member is not None:
            await close_within(_LEAVE_SECONDS, self._member.join, "membership of the Ray cluster")
        if self._watchdog is not None:
            await close_within(_LEAVE_SECONDS, self._watchdog.close, "watchdog of Ray's processes")

    def set_environment(self) -> None:
        """Set the variables that Ray reads on import. Its ports are open on every interface, so it requires a token."""
        for name, value in _ENVIRONMENT.items():
            os.environ.setdefault(name, value)
        os.environ.setdefault("RAY_AUTH_MODE", "token")
        if self.is_embedded:
            os.environ.setdefault("RAY_gcs_rpc_server_reconnect_timeout_s", _DEAD_HEAD_SECONDS)
            if not os.environ.get("RAY_AUTH_TOKEN_PATH"):
                os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))

    def watch_processes(self) -> None:
        """Register all current processes of an embedded Ray with the watchdog. Blocks for milliseconds."""
        if self._watchdog is None:
            return
        for root in self._roots:
            with contextlib.suppress(psutil.NoSuchProcess):
                self._watchdog.name([root, *root.children(recursive=True)])

    def _join(self, joined: Future[Mapping[str, float]]) -> None:
        """Join the cluster and stay a member until `close`."""
        import ray

        joined.set_running_or_notify_cancel()  # a start that timed out still waits for `_leaving`
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
