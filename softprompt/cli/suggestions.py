"""Did-you-mean for names that do not exist: prompts, versions, aliases, base models. Asks the services, briefly."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING

from shared.errors import InvalidInput, NotFound, SoftPromptError
from softprompt.cli.options import last_addresses
from softprompt.close_names import nearest

if TYPE_CHECKING:
    from softprompt.client.sync_client import Client

_SECONDS = 3.0
_MODEL_FIELDS = ("base_model", "spec.base_model")


def suggestion(error: Exception) -> str:
    """A sentence that names what is probably meant; empty if nothing is close, or the services can't be asked."""
    wanted = _wanted(error)
    addresses = last_addresses()
    if wanted is None or addresses is None:
        return ""
    from softprompt.cli.security import chosen_security
    from softprompt.client.sync_client import Client

    kind, name = wanted
    with (
        suppress(SoftPromptError, OSError, TimeoutError),
        Client(*addresses, timeout_seconds=_SECONDS, security=chosen_security()) as client,
    ):
        if kind == "base model":
            return _sentence(nearest(name, _base_models(client)))
        return _sentence(_reference(client, name, kind))
    return ""


def _wanted(error: Exception) -> tuple[str, str] | None:
    """Kind and name of what does not exist."""
    if isinstance(error, NotFound) and error.kind in ("prompt", "version", "alias", "base model"):
        return error.kind, error.name
    if isinstance(error, InvalidInput):
        for violation in error.violations:
            if violation.field in _MODEL_FIELDS and "'" in violation.description:
                return "base model", violation.description.split("'")[1]
    return None


def _sentence(found: str) -> str:
    return f"do you mean {found!r}?" if found else ""


def _reference(client: Client, name: str, kind: str) -> str:
    """The nearest `name`, `name@alias` or `name@version` that exists."""
    known = _aliases(client)
    prompt, _, rest = name.removeprefix("prompts/").partition("/" if "/" in name.removeprefix("prompts/") else "@")
    near = nearest(prompt, known)
    part = rest.rpartition("/")[2]
    if not near or not part:
        return near if near != prompt else ""
    if part.isdecimal():
        return f"{near}@{part}" if near != prompt else ""
    alias = nearest(part, known[near])
    return f"{near}@{alias}" if alias and (near, alias) != (prompt, part) else ""


def _aliases(client: Client) -> dict[str, list[str]]:
    """The aliases of each prompt, from the trainer, else from a replica: a caller may use only one of the two."""
    with suppress(SoftPromptError):
        return {
            prompt.name.removeprefix("prompts/"): [alias.name for alias in prompt.aliases]
            for prompt in client.list_prompts()
        }
    found: dict[str, list[str]] = {}
    for loaded in client.loaded_prompts().prompts:
        found.setdefault(loaded.version.split("/")[1], []).extend(loaded.aliases)
    return found


def _base_models(client: Client) -> list[str]:
    return [model.id for model in client.service_info().base_models]
