"""Whether a service can listen where its settings say, found out before anything else is done, and in words for its
operator.
"""

from __future__ import annotations

import errno
import socket

_REASONS = {
    errno.EADDRINUSE: "another program uses this port; stop it, or choose another port (0 takes a free one)",
    errno.EADDRNOTAVAIL: "this machine has no such address",
    errno.EACCES: "this user may not use this port; choose one from 1024 on",
}


def check_port(host: str, port: int, name: str = "") -> None:
    """Raises OSError with one sentence. `name`: what the port is for, where a service has several."""
    where = f"{host}:{port}" + (f" ({name})" if name else "")
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host.strip("[]"), port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
    except OSError as error:
        raise OSError(f"cannot listen on {where}: {host!r} is no address of this machine ({error.strerror})") from error
    try:
        with socket.socket(family, kind, protocol) as tried:
            tried.setsockopt(
                socket.SOL_SOCKET, socket.SO_REUSEADDR, 1
            )  # as gRPC does: what a predecessor left does not count
            tried.bind(address)
            tried.listen(1)
    except OSError as error:
        raise OSError(f"cannot listen on {where}: {_REASONS.get(error.errno or 0, error.strerror)}") from error
