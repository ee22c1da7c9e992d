"""`softprompt models list`: base models that can be pulled, that are on this machine, and that the services have."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from shared.text.counted import counted
from softprompt.cli.options import InferenceOption, JsonOption, TrainerOption, open_client
from softprompt.cli.output import print_json, show, stderr, table
from softprompt.errors import SoftPromptError

if TYPE_CHECKING:
    from shared.values.base_model import BaseModelInfo
    from shared.values.prompts import ReplicaStatus
    from softprompt.client.sync_client import Client

T = TypeVar("T")
_SERVICE_SECONDS = 5.0
CATALOGUE, MACHINE, TRAINER, INFERENCE = "catalogue", "this machine", "trainer", "inference"


@dataclass(frozen=True)
class ListedModel:
    """One base model in one place."""

    name: str
    where: str
    """catalogue, this machine, trainer or inference."""
    detail: str
    """Path, origin or state."""
    fingerprint: str = ""
    """Empty: unknown."""
    size_bytes: int = 0
    agrees: bool | None = None
    """Trainer and replicas: whether the other side has the same files. This machine: whether a service that has a model
    of this name has the same files. None: nothing to compare with.
    """


def list_(as_json: JsonOption = False, trainer: TrainerOption = None, inference: InferenceOption = None) -> None:
    """List base models that can be pulled, that are pulled, and that trainer and replicas have, and whether they agree:
    a prompt is served only by replicas that have the very files that it was tuned on. Works without any service.
    """
    found = _compared([*_catalogue(), *_pulled(), *_served(trainer, inference)])
    if as_json:
        print_json(*found)
        return
    made = table("MODEL", "WHERE", "BYTES", "FINGERPRINT", "AGREES", "DETAIL")
    for model in found:
        size = str(model.size_bytes) if model.size_bytes else ""
        agrees = {True: "yes", False: "no", None: ""}[model.agrees]
        made.add_row(model.name, model.where, size, model.fingerprint[:19], agrees, model.detail)
    show(made)
    for sentence in _disagreements(found):
        stderr().print(sentence, markup=False, soft_wrap=True)


def _compared(found: list[ListedModel]) -> list[ListedModel]:
    """The models with `agrees`, by fingerprint."""
    others = {
        where: {model.fingerprint for model in found if model.where == other} - {""}
        for where, other in ((TRAINER, INFERENCE), (INFERENCE, TRAINER))
    }
    made = []
    for model in found:
        other = others.get(model.where, set())
        if model.where == MACHINE:
            other = {one.fingerprint for one in found if one.where in others and one.name == model.name} - {""}
        agrees = model.fingerprint in other if model.fingerprint and other else None
        made.append(replace(model, agrees=agrees))
    return made


def _disagreements(found: list[ListedModel]) -> Iterator[str]:
    """Sentences on models that can't work together."""
    served = [model for model in found if model.where == INFERENCE and model.agrees is not None]
    if served and not any(model.agrees for model in served):
        yield "the trainer has none of the replicas' base models: its prompts can't be served"
    for model in found:
        if model.where == TRAINER and model.agrees is False and any(one.name == model.name for one in served):
            yield (
                f"{model.name}: trainer and replicas have different files under this name; prompts that are tuned on "
                "one are refused by the other"
            )


def _catalogue() -> list[ListedModel]:
    from softprompt.model_catalogue import CATALOGUE as KNOWN

    return [
        ListedModel(name, CATALOGUE, f"softprompt models pull {name}   ({model.hub_id})")
        for name, model in sorted(KNOWN.items())
    ]


def _pulled() -> list[ListedModel]:
    from softprompt.model_catalogue import models_dir

    found = []
    with suppress(OSError):
        for directory in sorted(models_dir().iterdir()):
            if directory.name.startswith(".") or not (directory / "config.json").is_file():
                continue
            origin = ""
            with suppress(OSError, ValueError, KeyError, TypeError):
                read = json.loads((directory / ".softprompt-origin.json").read_bytes())
                origin = f", {read['hub_id']}@{read['commit'][:12]}".rstrip("@")
            detail, size = f"{directory}{origin}", _size(directory)
            found.append(ListedModel(directory.name, MACHINE, detail, _known_fingerprint(directory), size))
    return found


def _known_fingerprint(directory: Path) -> str:
    """Empty if it is not stored, or if this installation is the client alone. Hashes nothing."""
    with suppress(ImportError, OSError, SoftPromptError):
        from shared.model import fingerprint

        if (known := fingerprint.known(directory)) is not None:
            return known.fingerprint
    return ""


def _served(trainer: str | None, inference: str | None) -> list[ListedModel]:
    found: list[ListedModel] = []
    replicas: list[ReplicaStatus] = []
    with open_client(trainer, inference, timeout_seconds=_SERVICE_SECONDS) as client:
        if (info := _asked(client.service_info)) is not None:
            found += [_of_service(model, TRAINER, client.trainer) for model in info.base_models]
            found += [ListedModel(item.id, TRAINER, item.reason) for item in info.unavailable_base_models]
            replicas = _asked(client.list_replicas) or []
        kinds: dict[tuple[str, str], list[str]] = {}
        for replica in replicas:
            kinds.setdefault((replica.base_model, replica.base_model_fingerprint), []).append(replica.id)
        for (name, print_), ids in sorted(kinds.items()):
            found.append(ListedModel(name, INFERENCE, f"{counted(len(ids), 'replica')}: {', '.join(ids)}", print_))
        for serving in _asked(lambda: _answering(client)) or []:
            if serving.fingerprint not in [print_ for _, print_ in kinds]:
                found.append(_of_service(serving, INFERENCE, client.inference))
    return found


def _answering(client: Client) -> list[BaseModelInfo]:
    """The base model of the replica that answers; those of all base models behind a router."""
    first = client.model_info()
    others = [name for name in first.base_models if first.base_model is None or name != first.base_model.id]
    found = [first, *(client.model_info(name) for name in others)]
    return [info.base_model for info in found if info.base_model is not None]


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
