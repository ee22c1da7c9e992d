"""Published prompts, their versions and aliases: plain frozen dataclasses without protobuf."""

from __future__ import annotations

from dataclasses import dataclass

from shared.values import prompts as values


@dataclass(frozen=True)
class PromptVersion(values.PromptVersion):
    """An immutable version of a prompt, in notebooks shown as a table."""

    def _repr_html_(self) -> str:
        from softprompt.display.html import version_html

        return version_html(self)
