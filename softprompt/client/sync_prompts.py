"""The blocking forms of the methods about published prompts. Their docstrings are those of PromptMethods."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from softprompt.client.prompts import PromptMethods
from softprompt.client.sync_methods import SyncMethods, documented_by
from softprompt.client.verdict import VERDICT_SECONDS
from softprompt.types.common import Template
from softprompt.types.prompts import (
    Alias,
    AliasTarget,
    Prompt,
    PromptChange,
    PromptStatus,
    PromptVersion,
    VersionStatus,
)


@documented_by(PromptMethods)
class SyncPromptMethods(SyncMethods):
    """See PromptMethods."""

    def list_prompts(self, *, name_prefix: str = "") -> list[Prompt]:
        return self._loop.run(self._client.list_prompts(name_prefix=name_prefix))

    def get_prompt(self, prompt: str) -> Prompt:
        return self._loop.run(self._client.get_prompt(prompt))

    def list_versions(self, prompt: str) -> list[PromptVersion]:
        return self._loop.run(self._client.list_versions(prompt))

    def get_version(self, version: str) -> PromptVersion:
        return self._loop.run(self._client.get_version(version))

    def set_alias(
        self,
        prompt: str,
        alias: str,
        target: int | Sequence[AliasTarget],
        *,
        expected_version: int | None = None,
        expected_revision: int | None = None,
    ) -> Alias:
        moved = self._client.set_alias(
            prompt, alias, target, expected_version=expected_version, expected_revision=expected_revision
        )
        return self._loop.run(moved)

    def prompt_status(self, prompt: str) -> PromptStatus:
        return self._loop.run(self._client.prompt_status(prompt))

    def wait_until_served_by_all(self, version: str, *, timeout_seconds: float = 60.0) -> VersionStatus:
        return self._loop.run(self._client.wait_until_served_by_all(version, timeout_seconds=timeout_seconds))

    def first_verdict(self, version: str, *, timeout_seconds: float = VERDICT_SECONDS) -> VersionStatus:
        return self._loop.run(self._client.first_verdict(version, timeout_seconds=timeout_seconds))

    def download_version(self, version: str) -> tuple[PromptVersion, bytes]:
        return self._loop.run(self._client.download_version(version))

    def export_version(
        self,
        version: str,
        directory: str | Path,
        *,
        base_model: str = "",
        overwrite: bool = False,
        peft_type: str = "",
    ) -> PromptVersion:
        return self._loop.run(
            self._client.export_version(
                version, directory, base_model=base_model, overwrite=overwrite, peft_type=peft_type
            )
        )

    def import_version(
        self,
        path: str | Path,
        prompt: str,
        *,
        base_model: str = "",
        template: Template | None = None,
        labels: Sequence[str] = (),
        alias: str = "",
        request_id: str = "",
        timeout_seconds: float | None = None,
    ) -> PromptVersion:
        return self._loop.run(
            self._client.import_version(
                path,
                prompt,
                base_model=base_model,
                template=template,
                labels=labels,
                alias=alias,
                request_id=request_id,
                timeout_seconds=timeout_seconds,
            )
        )

    def watch_prompts(
        self,
        *,
        after_revision: int | None = None,
        store_id: str = "",
        name_prefix: str = "",
        reconnect_seconds: float = 120.0,
    ) -> Iterator[PromptChange]:
        changes = self._client.watch_prompts(
            after_revision=after_revision,
            store_id=store_id,
            name_prefix=name_prefix,
            reconnect_seconds=reconnect_seconds,
        )
        return self._loop.iterate(changes)

    def delete_version(self, version: str) -> int:
        return self._loop.run(self._client.delete_version(version))
