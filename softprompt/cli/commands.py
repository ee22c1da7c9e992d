"""A group of commands that knows the words which other tools use for them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from typer.core import TyperGroup

from shared.close_names import did_you_mean

_OTHER_WORDS: Mapping[str, tuple[str, ...]] = {
    "delete": ("remove",),
    "describe": ("show",),
    "fine-tune": ("tune",),
    "finetune": ("tune",),
    "follow": ("watch",),
    "get": ("show",),
    "kill": ("cancel",),
    "list": ("prompts list", "show"),
    "logs": ("watch",),
    "ls": ("list",),
    "move": ("set",),
    "remove": ("delete",),
    "rm": ("delete", "remove"),
    "rollback": ("alias set", "set", "prompts alias set"),
    "run": ("generate",),
    "serve": ("up",),
    "start": ("up", "resume"),
    "stop": ("cancel",),
    "train": ("tune",),
}
"""Commands by another word for them; the first one that a group has is meant."""


class Commands(TyperGroup):
    """Names the command that is probably meant by one that does not exist."""

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """The command, its name and its arguments. Raises UsageError."""
        name = args[0]
        if name not in self.commands:
            meant = [command for command in _OTHER_WORDS.get(name, ()) if command.split()[0] in self.commands]
            guess = f"; do you mean {meant[0]!r}?" if meant else did_you_mean(name, self.commands)
            if not name.startswith("-"):
                ctx.fail(f"there is no command {name!r}{guess}")
        return super().resolve_command(ctx, args)
