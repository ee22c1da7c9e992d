"""Did-you-mean for files, prompts, versions, aliases, and what the trainer lists. Asks the services, briefly."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from shared.close_names import nearest
from shared.errors import InvalidInput, NotFound, SoftPromptError
from softprompt.cli.job_options import PREFIX
from softprompt.cli.options import last_addresses

if TYPE_CHECKING:
    from softprompt.client.sync_client import Client

_SECONDS = 3.0
_MODEL_FIELDS = ("base_model", "spec.base_model")


def suggestion(error: Exception) -> str:
    """A sentence that names what is probably meant; empty if nothing is close, or the services can't be asked."""
    wanted = _wanted(error)
    if wanted is None:
        return ""
    kind, name = wanted
    if kind.endswith("file"):
        return _sentence(_file(Path(name)))
    if (addresses := last_addresses()) is None:
        return ""
    from softprompt.cli.security import chosen_security
    from softprompt.client.sync_client import Client

    with (
        suppress(SoftPromptError, OSError, TimeoutError),
        Client(*addresses, timeout_seconds=_SECONDS, security=chosen_security()) as client,
    ):
        if (known := _LISTED.get(kind)) is not None:
            return _sentence(nearest(name, known(client)))
        if kind in ("prompt", "version", "alias"):
            return _sentence(_reference(client, name))
    return ""


def _wanted(error: Exception) -> tuple[str, str] | None:
    """Kind and name of what does not exist."""
    if isinstance(error, NotFound):
        return error.kind, error.name
    if isinstance(error, InvalidInput):
        for violation in error.violations:
            if violation.field in _MODEL_FIELDS and "'" in violation.description:
                return "base model", violation.description.split("'")[1]
    return None


def _sentence(found: str) -> str:
    return f"do you mean {found!r}?" if found else ""


def _reference(client: Client, name: str) -> str:
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
        prompts = client.list_prompts()
        return {one.name.removeprefix("prompts/"): [alias.name for alias in one.aliases] for one in prompts}
    found: dict[str, list[str]] = {}
    for loaded in client.loaded_prompts().prompts:
        found.setdefault(loaded.version.split("/")[1], []).extend(loaded.aliases)
    return found


def _file(path: Path) -> str:
    """The nearest file of the same directory."""
    with suppress(OSError):
        near = nearest(path.name, os.listdir(path.parent))
        return str(path.with_name(near)) if near else ""
    return ""


_LISTED: Mapping[str, Callable[[Client], list[str]]] = {
    "base model": lambda client: [model.id for model in client.service_info().base_models],
    "dataset": lambda client: [dataset.name for dataset in client.list_datasets()],
    "tuning job": lambda client: [job.name.removeprefix(PREFIX) for job in client.list_jobs(limit=1000)],
    "webhook": lambda client: [webhook.name for webhook in client.list_webhooks()],
}
"""Names that the trainer lists, by their kind."""
