"""Published prompts, their versions and aliases: plain frozen dataclasses without protobuf."""

from __future__ import annotations

from dataclasses import dataclass

from shared.values import prompts as values
from shared.values.prompts import Alias as Alias
from shared.values.prompts import AliasSet as AliasSet
from shared.values.prompts import AliasTarget as AliasTarget
from shared.values.prompts import Deleted as Deleted
from shared.values.prompts import Prompt as Prompt
from shared.values.prompts import PromptChange as PromptChange
from shared.values.prompts import PromptStatus as PromptStatus
from shared.values.prompts import Published as Published
from shared.values.prompts import ReplicaRefusal as ReplicaRefusal
from shared.values.prompts import ReplicaServing as ReplicaServing
from shared.values.prompts import ReplicaStatus as ReplicaStatus
from shared.values.prompts import Snapshot as Snapshot
from shared.values.prompts import VersionStatus as VersionStatus


@dataclass(frozen=True)
class PromptVersion(values.PromptVersion):
    """An immutable version of a prompt, in notebooks shown as a table."""

    def _repr_html_(self) -> str:
        from softprompt.display.html import version_html

        return version_html(self)
