"""Changes of the prompt store as messages: each kind of change is another field."""

from __future__ import annotations

from prompttuning.v1 import prompts_pb2

from shared.values.prompts import Alias, AliasSet, Deleted, Prompt, PromptChange, PromptVersion, Published, Snapshot
from shared.violations import Violations
from shared.wire.mirror import fill, read, reader, writer


@reader(PromptChange)
def read_change(
    message: prompts_pb2.WatchPromptsResponse, path: str = "", violations: Violations | None = None
) -> PromptChange:
    """The change; a plain PromptChange for a kind that this build is too old to know."""
    position = message.revision, message.store_id
    match message.WhichOneof("change"):
        case "snapshot":
            return Snapshot(*position, tuple(read(Prompt, prompt) for prompt in message.snapshot.prompts))
        case "published":
            return Published(*position, read(PromptVersion, message.published))
        case "alias_set":
            return AliasSet(*position, message.alias_set.prompt, read(Alias, message.alias_set.alias))
        case "deleted_version":
            return Deleted(*position, message.deleted_version)
        case _:
            return PromptChange(*position)


@writer(PromptChange)
def write_change(change: PromptChange, message: prompts_pb2.WatchPromptsResponse, path: str = "") -> None:
    """Writes the change."""
    fill(message, path, revision=change.revision, store_id=change.store_id)
    match change:
        case Snapshot(prompts=prompts):
            message.snapshot.SetInParent()
            fill(message.snapshot, path, prompts=prompts)
        case Published(version=version):
            fill(message, path, published=version)
        case AliasSet(prompt=prompt, alias=alias):
            fill(message.alias_set, path, prompt=prompt, alias=alias)
        case Deleted(version=version):
            fill(message, path, deleted_version=version)
