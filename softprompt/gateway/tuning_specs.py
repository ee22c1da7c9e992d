"""A request for fine-tuning as a tuning job's specification."""

from __future__ import annotations

import hashlib
import re
import uuid
from dataclasses import fields
from typing import Annotated, Any, Literal

from pydantic import Field
from starlette.requests import Request

from shared.errors import InvalidInput, NotFound
from shared.names import check_name
from shared.values.enums import InitMethod
from shared.values.hyperparameters import Hyperparameters, Init
from shared.values.spec import PublishPolicy, TuningSpec
from softprompt.gateway.backend import Backend
from softprompt.gateway.errors import ApiError, bad_value, no_such_model
from softprompt.gateway.fields import Fields, ModelName, else_saying
from softprompt.gateway.files import dataset_of

SERVED_SECONDS = 60.0
"""Longest time that a trained job waits until the replicas serve its version, so that its model works at once."""
_NAME_OF_OWN = re.compile(r"ft-[0-9a-f]{12}")
_KEY = re.compile(r"[\x21-\x7e]{1,128}")

Count = Annotated[
    Literal["auto"] | Annotated[int, Field(ge=1)], else_saying("must be 'auto' or a whole number above 0")
]
Multiplier = Annotated[
    Literal["auto"] | Annotated[float, Field(gt=0)], else_saying("must be 'auto' or a number above 0")
]
_RATES = next(item.metadata["bounds"] for item in fields(Hyperparameters) if item.name == "learning_rate")


class TuningHyperparameters(Fields):
    """`auto`, or left out: the recipe chooses."""

    n_epochs: Count | None = None
    batch_size: Count | None = None
    learning_rate_multiplier: Multiplier | None = None


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
    def place(self) -> str:
        """The parameter that has the hyperparameters."""
        return "method.supervised.hyperparameters" if self.hyperparameters is None else "hyperparameters"

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
        learning_rate=_learning_rate(body, await backend.recipe_rate()),
        seed=body.seed,
        init=Init(InitMethod.FROM_PROMPT, source=source) if source else None,
    )
    return TuningSpec(
        prompt=_prompt(body, source, key),
        base_model=base_model,
        dataset=_dataset(body.training_file, "training_file"),
        validation_dataset=None if body.validation_file is None else _dataset(body.validation_file, "validation_file"),
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
    if body.suffix is not None:
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


def _learning_rate(body: TuningRequest, recipe: float | None) -> float | None:
    multiplier, param = _given(body.chosen.learning_rate_multiplier), f"{body.place}.learning_rate_multiplier"
    if multiplier is None:
        return None
    if recipe is None:
        raise bad_value(param, "this trainer doesn't report the rate to multiply; leave it out")
    rate = float(multiplier * recipe)
    if not _RATES.contains(rate):
        raise bad_value(param, f"makes the learning rate {rate:g}; it must be {_RATES}")
    return rate
