"""What the groups of blocking methods have in common."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from softprompt.client.async_client import AsyncClient
from softprompt.client.examples import EXAMPLES
from softprompt.client.loop_thread import LoopThread

C = TypeVar("C", bound=type)


class SyncMethods:
    """An asynchronous client and the thread whose event loop runs it."""

    _client: AsyncClient
    _loop: LoopThread


def documented_by(interface: type) -> Callable[[C], C]:
    """Give each method the docstring of its counterpart in `interface`, with an example if there is one."""

    def document(methods: C) -> C:
        for name, member in vars(methods).items():
            function = member.fget if isinstance(member, property) else member
            if callable(function) and not function.__doc__ and hasattr(interface, name):
                function.__doc__ = f"{getattr(interface, name).__doc__}{EXAMPLES.get(name, '')}"
        return methods

    return document
