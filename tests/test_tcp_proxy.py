"""The proxy with which tests cut and freeze connections."""

from __future__ import annotations

import socket
import struct

from tests.tcp_proxy import tcp_proxy
from tests.waiting import wait_until


def test_a_proxy_ends_although_a_client_reset_its_connection_while_nothing_flowed() -> None:
    """Its socket on that side is gone by then."""
    with socket.create_server(("127.0.0.1", 0)) as server, tcp_proxy(server.getsockname()[1]) as proxy:
        client = socket.create_connection(("127.0.0.1", proxy.port))
        far, _ = server.accept()
        proxy.hang()
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        client.close()
        wait_until(proxy.is_closing)
        far.close()
