"""The base models of this trainer as the service process sees them: identity and tokenizer, never the weights."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from shared import base_model
from shared.base_model import BaseModelInfo
from shared.errors import InvalidInput, PreconditionFailed, SoftPromptError, Unavailable
from trainer_service.config import BaseModelSource

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class KnownBaseModel:
    """`tokenizer` is a transformers tokenizer; several threads may encode with it. `path` is the model's directory."""

    info: BaseModelInfo
    tokenizer: Any
    path: Path


class BaseModels:
    """What can be trained here, by id; the first is the default. Until `load` is done, nothing is: Unavailable."""

    def __init__(self, sources: Sequence[BaseModelSource]) -> None:
        self._sources = tuple(sources)
        self._models: dict[str, KnownBaseModel] = {}
        self._refused: dict[str, PreconditionFailed] = {}
        self._problems: dict[str, str] = {}

    @property
    def problems(self) -> Mapping[str, str]:
        """Why a model of the settings can't be used at the moment, by its id; without those whose architecture is refused for good."""
        return dict(self._problems)

    def load(self) -> None:
        """Read the models that are not known yet. Call it again for those that may appear later. Blocks: it hashes new weights.

        A model that is missing or broken does not keep the others from being used: `problems` names it, and `get` refuses it.
        Raises Unavailable if no model can be used for now, PreconditionFailed if none has an architecture that takes a soft prompt.
        """
        for source in self._sources:
            if source.id in self._models or source.id in self._refused:
                continue
            try:
                model = _read(source)
            except PreconditionFailed as error:
                log.error("base model %s can't be trained on: %s", source.id, error.message)
                self._refused[source.id] = error
                self._problems = {id: reason for id, reason in self._problems.items() if id != source.id}
            except Exception as error:  # a broken directory fails in as many ways as transformers has parsers
                self._keep_problem(source.id, error)
            else:
                self._problems = {id: reason for id, reason in self._problems.items() if id != source.id}
                found = self._models | {source.id: model}
                self._models = {each.id: found[each.id] for each in self._sources if each.id in found}
                log.info("base model known", extra={"fields": {"base_model": source.id, "fingerprint": model.info.fingerprint}})
        if not self._models:
            if len(self._refused) == len({source.id for source in self._sources}):
                raise next(iter(self._refused.values()))
            raise Unavailable("no base model can be used: " + "; ".join(self._problems.values()))

    def _keep_problem(self, id: str, error: Exception) -> None:
        reason = error.message if isinstance(error, SoftPromptError) else f"base model {id!r} can't be read ({type(error).__name__})"
        if self._problems.get(id) != reason:
            log.error("base model %s is unavailable: %s", id, reason, exc_info=None if isinstance(error, SoftPromptError) else error)
        self._problems = self._problems | {id: reason}

    @property
    def infos(self) -> tuple[BaseModelInfo, ...]:
        return tuple(model.info for model in self._loaded().values())

    def get(self, id: str, field: str = "base_model") -> KnownBaseModel:
        """An empty id means the default one: the first whose architecture fits, even while it is unavailable, so that a job never
        trains on another model than usual. Raises InvalidInput naming `field`, PreconditionFailed with the reason of an unusable one.
        """
        models = self._loaded()
        if id in self._refused:
            raise PreconditionFailed(f"{id} can't be trained on: {self._refused[id].message}", field=field)
        id = id or next(source.id for source in self._sources if source.id not in self._refused)
        if id not in models and (reason := self._problems.get(id)):
            raise PreconditionFailed(f"{id} is unavailable: {reason}", field=field)
        if id not in models:
            raise InvalidInput.of(field, f"{id[:80]!r} is not one of this trainer's base models: {', '.join(models)}")
        return models[id]

    def _loaded(self) -> dict[str, KnownBaseModel]:
        if not self._models:
            raise Unavailable("the trainer is starting: its base models are not read yet")
        return self._models


def _read(source: BaseModelSource) -> KnownBaseModel:
    path = base_model.resolve(source.source)
    info = base_model.inspect(path, id=source.id)
    tokenizer = base_model.load_tokenizer(path)
    tokenizer("a")  # settles its truncation and padding: changing them later, while another thread encodes, would fail
    return KnownBaseModel(info, tokenizer, path)
