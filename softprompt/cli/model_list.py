"""`softprompt models list`: base models that can be pulled, that are on this machine, and that the services have."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from softprompt.cli.options import InferenceOption, JsonOption, TrainerOption, open_client
from softprompt.cli.output import print_json, show, stderr, table
from softprompt.errors import SoftPromptError

if TYPE_CHECKING:
    from softprompt.types.common import BaseModelInfo

T = TypeVar("T")
_SERVICE_SECONDS = 5.0


@dataclass(frozen=True)
class ListedModel:
    """One base model in one place."""

    name: str
    where: str
    """catalogue, this machine, trainer or inference."""
    detail: str
    """Path, origin or state."""
    fingerprint: str = ""
    size_bytes: int = 0


def list_(as_json: JsonOption = False, trainer: TrainerOption = None, inference: InferenceOption = None) -> None:
    """List base models that can be pulled, that are pulled, and that the services have. Works without any service."""
    found = [*_catalogue(), *_pulled(), *_served(trainer, inference)]
    if as_json:
        for model in found:
            print_json(model)
        return
    made = table("MODEL", "WHERE", "BYTES", "FINGERPRINT", "DETAIL")
    for model in found:
        size = str(model.size_bytes) if model.size_bytes else ""
        made.add_row(model.name, model.where, size, model.fingerprint[:19], model.detail)
    show(made)
    prints = {model.fingerprint for model in found if model.where in ("trainer", "inference") and model.fingerprint}
    served = {model.fingerprint for model in found if model.where == "inference"}
    if served and prints and not served & {model.fingerprint for model in found if model.where == "trainer"}:
        stderr().print("the trainer has none of the replica's base models: its prompts can't be served", markup=False)


def _catalogue() -> list[ListedModel]:
    from softprompt.models import CATALOGUE

    return [
        ListedModel(name, "catalogue", f"softprompt models pull {name}   ({model.hub_id})")
        for name, model in sorted(CATALOGUE.items())
    ]


def _pulled() -> list[ListedModel]:
    from softprompt.models import ORIGIN_FILE, models_dir

    found = []
    with suppress(OSError):
        for directory in sorted(models_dir().iterdir()):
            if directory.name.startswith(".") or not (directory / "config.json").is_file():
                continue
            origin = ""
            with suppress(OSError, ValueError, KeyError, TypeError):
                read = json.loads((directory / ORIGIN_FILE).read_bytes())
                origin = f", {read['hub_id']}@{read['commit'][:12]}"
            found.append(
                ListedModel(directory.name, "this machine", f"{directory}{origin}", size_bytes=_size(directory))
            )
    return found


def _served(trainer: str | None, inference: str | None) -> list[ListedModel]:
    found: list[ListedModel] = []
    with open_client(trainer, inference, timeout_seconds=_SERVICE_SECONDS) as client:
        if (info := _asked(client.service_info)) is not None:
            found += [_of_service(model, "trainer", client.trainer) for model in info.base_models]
            found += [ListedModel(item.id, "trainer", item.reason) for item in info.unavailable_base_models]
        if (serving := _asked(client.model_info)) is not None and serving.base_model is not None:
            found.append(_of_service(serving.base_model, "inference", client.inference))
    return found


def _asked(question: Callable[[], T]) -> T | None:
    """The answer of a service; None with a line on stderr if it can't be reached or refuses."""
    try:
        return question()
    except SoftPromptError as error:
        stderr().print(str(error), style="dim", markup=False, soft_wrap=True)
        return None


def _of_service(model: BaseModelInfo, where: str, endpoint: str) -> ListedModel:
    return ListedModel(model.id, where, f"{endpoint}, {model.architecture}", model.fingerprint)


def _size(directory: Path) -> int:
    return sum(file.stat().st_size for file in directory.rglob("*") if file.is_file())
