"""Published prompts, their versions and aliases, asynchronously."""

from __future__ import annotations

from collections.abc import Sequence

from prompttuning.v1 import prompts_pb2

from shared.errors import InvalidInput
from softprompt.client.connection import Connection
from softprompt.client.mirror import read
from softprompt.types.prompts import Alias, AliasTarget, Prompt, PromptVersion

PAGE_SIZE = 200


class PromptMethods:
    """Part of the client; see AsyncClient. A prompt may be given as "name" or "prompts/name"."""

    _connection: Connection

    async def list_prompts(self, *, name_prefix: str = "") -> list[Prompt]:
        """All prompts by name."""
        prompts: list[Prompt] = []
        page_token = ""
        while True:
            request = prompts_pb2.ListPromptsRequest(page_size=PAGE_SIZE, page_token=page_token, name_prefix=name_prefix)
            response = await self._connection.trainer.call(self._connection.prompts.ListPrompts, request)
            prompts += [read(Prompt, prompt) for prompt in response.prompts]
            page_token = response.next_page_token
            if not page_token:
                return prompts

    async def get_prompt(self, prompt: str) -> Prompt:
        request = prompts_pb2.GetPromptRequest(name=resource_name(prompt))
        return read(Prompt, (await self._connection.trainer.call(self._connection.prompts.GetPrompt, request)).prompt)

    async def list_versions(self, prompt: str) -> list[PromptVersion]:
        """All versions of a prompt, newest first."""
        versions: list[PromptVersion] = []
        page_token = ""
        while True:
            request = prompts_pb2.ListPromptVersionsRequest(parent=resource_name(prompt), page_size=PAGE_SIZE, page_token=page_token)
            response = await self._connection.trainer.call(self._connection.prompts.ListPromptVersions, request)
            versions += [read(PromptVersion, version) for version in response.versions]
            page_token = response.next_page_token
            if not page_token:
                return versions

    async def get_version(self, version: str) -> PromptVersion:
        """By its name "prompts/{prompt}/versions/{n}" or a reference: "name", "name@alias", "name@7"."""
        request = prompts_pb2.GetPromptVersionRequest(name=version)
        return read(PromptVersion, (await self._connection.trainer.call(self._connection.prompts.GetPromptVersion, request)).version)

    async def set_alias(
        self,
        prompt: str,
        alias: str,
        target: int | Sequence[AliasTarget],
        *,
        expected_version: int | None = None,
        expected_revision: int | None = None,
    ) -> Alias:
        """Move an alias to a version, or to several with weights; an empty sequence removes it.

        Conflict, with the current value, if it does not name `expected_version` (0: does not exist) or moved since `expected_revision`.
        """
        targets = [AliasTarget(target)] if isinstance(target, int) else list(target)
        if any(not isinstance(item, AliasTarget) for item in targets):
            raise InvalidInput.of("target", "a version number or AliasTargets are expected")
        request = prompts_pb2.SetPromptAliasRequest(
            prompt=resource_name(prompt),
            alias=alias,
            targets=[prompts_pb2.AliasTarget(version=item.version, weight=item.weight) for item in targets],
            expected_version=expected_version,
            expected_revision=expected_revision,
        )
        return read(Alias, (await self._connection.trainer.call(self._connection.prompts.SetPromptAlias, request)).alias)

    async def delete_version(self, version: str) -> int:
        """Delete a version that no alias names; the store revision of the deletion."""
        request = prompts_pb2.DeletePromptVersionRequest(name=version)
        return (await self._connection.trainer.call(self._connection.prompts.DeletePromptVersion, request)).revision


def resource_name(prompt: str) -> str:
    return prompt if prompt.startswith("prompts/") else f"prompts/{prompt}"
