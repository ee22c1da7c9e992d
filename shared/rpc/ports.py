"""Checks early whether a service can listen on its address and port, with an error text for operators."""

from __future__ import annotations

import errno
import socket

_REASONS = {
    errno.EADDRINUSE: "another program uses this port; stop it, or choose another port (0 takes a free one)",
    errno.EADDRNOTAVAIL: "this machine has no such address",
    errno.EACCES: "this user may not use this port; choose one from 1024 on",
}


def check_port(host: str, port: int, name: str = "") -> None:
    """Raises OSError with one sentence if the port can't be used. `name`: the port's purpose if there are several."""
    where = f"{host}:{port}" + (f" ({name})" if name else "")
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host.strip("[]"), port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
    except OSError as error:
        raise OSError(
            f"cannot listen on {where}: {host!r} is not an address of this machine ({error.strerror})"
        ) from error
    try:
        with socket.socket(family, kind, protocol) as tried:
            # As gRPC does, so that connections left by an earlier process don't block the port.
            tried.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            tried.bind(address)
            tried.listen(1)
    except OSError as error:
        raise OSError(f"cannot listen on {where}: {_REASONS.get(error.errno or 0, error.strerror)}") from error
