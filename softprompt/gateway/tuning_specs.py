"""A request for fine-tuning as a tuning job's specification."""

from __future__ import annotations

import hashlib
import re
import uuid
from typing import Annotated, Any, Literal

from pydantic import Field
from starlette.requests import Request

from shared.errors import InvalidInput, NotFound
from shared.names import check_name
from softprompt.gateway.backend import Backend
from softprompt.gateway.errors import ApiError, bad_value, no_such_model
from softprompt.gateway.fields import Fields, ModelName
from softprompt.gateway.files import dataset_of
from softprompt.types.spec import Hyperparameters, Init, InitMethod, PublishPolicy, TuningSpec

SERVED_SECONDS = 60.0
"""Longest time that a trained job waits until the replicas serve its version, so that its model works at once."""
_NAME_OF_OWN = re.compile(r"ft-[0-9a-f]{12}")
_KEY = re.compile(r"[\x21-\x7e]{1,128}")

Auto = Literal["auto"]


class TuningHyperparameters(Fields):
    """`auto`, or left out: the recipe chooses."""

    n_epochs: Auto | Annotated[int, Field(ge=1)] | None = None
    batch_size: Auto | Annotated[int, Field(ge=1)] | None = None
    learning_rate_multiplier: Auto | Annotated[float, Field(gt=0)] | None = None


class Supervised(Fields):
    """Supervised fine-tuning."""

    hyperparameters: TuningHyperparameters | None = None


class Method(Fields):
    """The method; there is only this one."""

    type: Literal["supervised"]
    supervised: Supervised | None = None


class TuningRequest(Fields):
    """What to train. `suffix` is the prompt's name; `model` is the base model, or a prompt to train on from."""

    model: ModelName
    training_file: str
    validation_file: str | None = None
    suffix: str | None = None
    seed: int | None = None
    metadata: dict[str, str] | None = None
    method: Method | None = None
    hyperparameters: TuningHyperparameters | None = None
    integrations: Annotated[list[Any], Field(max_length=0)] | None = None

    @property
    def chosen(self) -> TuningHyperparameters:
        """The hyperparameters, wherever the request has them."""
        inner = self.method.supervised.hyperparameters if self.method and self.method.supervised else None
        if inner is not None and self.hyperparameters is not None:
            raise bad_value("hyperparameters", "is the older place of method.supervised.hyperparameters: set only one")
        return inner or self.hyperparameters or TuningHyperparameters()


def idempotency_key(request: Request) -> str:
    """The header `Idempotency-Key`, empty without one. Raises ApiError for one that can't be kept."""
    key = request.headers.get("idempotency-key", "")
    if key and not _KEY.fullmatch(key):
        raise bad_value("Idempotency-Key", "must have at most 128 visible ASCII characters")
    return key


async def tuning_spec(backend: Backend, body: TuningRequest, key: str) -> TuningSpec:
    """The specification. Raises ApiError naming a parameter, and the services' errors."""
    info = await backend.service_info()
    base_model, source = body.model, ""
    if all(body.model != model.id for model in info.base_models):
        base_model, source = await _source(backend, body.model)
    chosen = body.chosen
    hyperparameters = Hyperparameters(
        num_epochs=_given(chosen.n_epochs),
        batch_size=_given(chosen.batch_size),
        learning_rate=_learning_rate(chosen, await backend.recipe_rate()),
        seed=body.seed,
        init=Init(InitMethod.FROM_PROMPT, source=source) if source else None,
    )
    return TuningSpec(
        prompt=_prompt(body, source, key),
        base_model=base_model,
        dataset=_dataset(body.training_file, "training_file"),
        validation_dataset=_dataset(body.validation_file, "validation_file") if body.validation_file else None,
        hyperparameters=hyperparameters,
        publish=PublishPolicy(wait_until_served_seconds=SERVED_SECONDS),
        annotations=body.metadata or {},
    )


async def _source(backend: Backend, model: str) -> tuple[str, str]:
    """The base model of a prompt, and the exact version that `model` means now."""
    try:
        version = await backend.client.get_version(model)
    except (InvalidInput, NotFound):
        raise no_such_model(model) from None
    return (version.base_model.id if version.base_model else ""), version.name


def _prompt(body: TuningRequest, source: str, key: str) -> str:
    if body.suffix:
        try:
            return check_name(body.suffix, "suffix")
        except InvalidInput as error:
            raise bad_value("suffix", f"{error.violations[0].description}; it becomes the prompt's name") from None
    if source:
        return source.split("/")[1]
    digest = hashlib.sha256(key.encode()).hexdigest() if key else uuid.uuid4().hex
    return f"ft-{digest[:12]}"  # the same for the same key, so that a repeated request is the same job


def suffix_of(prompt: str) -> str | None:
    """The suffix that a prompt's name came from; None if the gateway chose the name."""
    return None if _NAME_OF_OWN.fullmatch(prompt) else prompt


def _dataset(id: str, param: str) -> str:
    try:
        return dataset_of(id)
    except ApiError:
        raise bad_value(param, f"{id[:100]!r} is not the id of a file", "invalid_file") from None


def _given(value: Any) -> Any:
    return None if value == "auto" else value


def _learning_rate(chosen: TuningHyperparameters, recipe: float | None) -> float | None:
    multiplier = _given(chosen.learning_rate_multiplier)
    if multiplier is None:
        return None
    if recipe is None:
        raise bad_value("learning_rate_multiplier", "this trainer does not tell the rate to multiply; leave it out")
    return float(multiplier * recipe)
