"""Published prompts, their versions and aliases: plain frozen dataclasses without protobuf."""

from __future__ import annotations

from shared.values.prompts import Alias as Alias
from shared.values.prompts import AliasSet as AliasSet
from shared.values.prompts import AliasTarget as AliasTarget
from shared.values.prompts import Deleted as Deleted
from shared.values.prompts import Prompt as Prompt
from shared.values.prompts import PromptChange as PromptChange
from shared.values.prompts import PromptStatus as PromptStatus
from shared.values.prompts import PromptVersion as PromptVersion
from shared.values.prompts import Published as Published
from shared.values.prompts import ReplicaRefusal as ReplicaRefusal
from shared.values.prompts import ReplicaServing as ReplicaServing
from shared.values.prompts import ReplicaStatus as ReplicaStatus
from shared.values.prompts import Snapshot as Snapshot
from shared.values.prompts import VersionStatus as VersionStatus
