"""Names of resources, and references to prompts: their syntax and how they are parsed.

prompt name      support-tone                       1 to 63 of a-z 0-9 -, starting and ending with a letter or digit
version name     prompts/support-tone/versions/3
job name         tuningJobs/01jd...                 an opaque id
dataset name     datasets/sha256-<64 hex>           content-addressed
reference        support-tone | support-tone@canary | support-tone@7
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from shared.errors import InvalidInput

DEFAULT_ALIAS = "default"
NO_ALIAS = "-"
"""In place of an alias: the new version moves none."""
MAX_REQUEST_ID_CHARS = 128
"""Of the key by which a caller repeats a request."""
CALL_ID = re.compile(r"[A-Za-z0-9._:-]{1,64}")
"""The id of a call in logs, as a caller may choose it."""
NAME_PATTERN = r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?"
NAME_RULE = "must be 1 to 63 characters of a-z, 0-9 and '-', starting and ending with a letter or digit"
_NAME = re.compile(NAME_PATTERN)
_VERSION = re.compile(r"[1-9][0-9]{0,8}")
_VERSION_NAME = re.compile(rf"prompts/({NAME_PATTERN})/versions/([1-9][0-9]{{0,8}})")


def check_name(name: str, field: str) -> str:
    """Return the name, or raise InvalidInput for `field`. A valid name is safe in a path, a URL and a metric label."""
    if not _NAME.fullmatch(name):
        raise InvalidInput.of(field, f"{name[:80]!r} {NAME_RULE}")
    return name


def check_alias(alias: str, field: str) -> str:
    """Return the alias, or raise InvalidInput for `field`. An alias is a name that is not a number."""
    check_name(alias, field)
    if alias.isdigit():
        raise InvalidInput.of(field, f"alias {alias!r} must not be a number: {alias} would mean a version")
    return alias


def version_name(prompt: str, version: int) -> str:
    """Resource name of a version: `prompts/{prompt}/versions/{version}`."""
    return f"prompts/{prompt}/versions/{version}"


def parse_version_name(name: str, field: str) -> tuple[str, int]:
    """(prompt, n) of `prompts/{prompt}/versions/{n}`, short `{prompt}@{n}`. Raises InvalidInput for `field`."""
    if match := _VERSION_NAME.fullmatch(name):
        return match[1], int(match[2])
    reference = PromptReference.parse(name, field)
    if reference.version is None:
        raise InvalidInput.of(
            field, f"{name[:120]!r} must name one version: prompts/PROMPT/versions/NUMBER or PROMPT@NUMBER"
        )
    return reference.prompt, reference.version


@dataclass(frozen=True)
class PromptReference:
    """A parsed reference to a prompt. Exactly one of `alias` and `version` is set."""

    prompt: str
    alias: str | None
    version: int | None

    @classmethod
    def parse(cls, text: str, field: str = "prompt") -> PromptReference:
        """Parse `name` (its default alias), `name@alias` or `name@version`. Raises InvalidInput for `field`."""
        prompt, at, selector = text.partition("@")
        check_name(prompt, field)
        if not at:
            return cls(prompt, DEFAULT_ALIAS, None)
        if _VERSION.fullmatch(selector):
            return cls(prompt, None, int(selector))
        return cls(prompt, check_alias(selector, field), None)

    @classmethod
    def parse_any(cls, text: str, field: str) -> PromptReference:
        """Like `parse`; also takes the resource name of a version."""
        if text.startswith("prompts/"):
            prompt, version = parse_version_name(text, field)
            return cls(prompt, None, version)
        return cls.parse(text, field)

    def __str__(self) -> str:
        return f"{self.prompt}@{self.alias if self.version is None else self.version}"
