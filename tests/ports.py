"""Ports for servers that must know their port before they listen, or that come back to it. Others listen on port 0."""

from __future__ import annotations

import random
import socket
from contextlib import suppress
from pathlib import Path

_FIRST_PORT = 10_000
_EPHEMERAL = Path("/proc/sys/net/ipv4/ip_local_port_range")


def free_port() -> int:
    """A free port that the system gives to no other process: below those for port 0 and for connections."""
    end = int(_EPHEMERAL.read_text().split()[0]) if _EPHEMERAL.exists() else 0
    while True:
        number = random.randrange(_FIRST_PORT, end) if end > _FIRST_PORT else 0  # 0: no ports are left out
        with suppress(OSError), socket.create_server(("127.0.0.1", number)) as server:
            return int(server.getsockname()[1])
