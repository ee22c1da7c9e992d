"""The base models of this trainer as the service process sees them: identity and tokenizer, never the weights."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from shared import base_model
from shared.base_model import BaseModelInfo
from shared.errors import InvalidInput, PreconditionFailed, Unavailable
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

    def load(self) -> None:
        """Blocks: hashes weights that have not been hashed before. Raises NotFound for one that is not there.

        An architecture that can't take a soft prompt is refused to each job that names it; PreconditionFailed if there is no other.
        """
        models = {}
        for source in self._sources:
            path = base_model.resolve(source.source)
            try:
                info = base_model.inspect(path, id=source.id)
            except PreconditionFailed as error:
                log.error("base model %s can't be trained on: %s", source.id, error.message)
                self._refused[source.id] = error
                continue
            tokenizer = base_model.load_tokenizer(path)
            tokenizer("a")  # settles its truncation and padding: changing them later, while another thread encodes, would fail
            models[info.id] = KnownBaseModel(info, tokenizer, path)
            log.info("base model known", extra={"fields": {"base_model": info.id, "fingerprint": info.fingerprint}})
        if not models and self._refused:
            raise next(iter(self._refused.values()))
        self._models = models

    @property
    def infos(self) -> tuple[BaseModelInfo, ...]:
        return tuple(model.info for model in self._loaded().values())

    def get(self, id: str, field: str = "base_model") -> KnownBaseModel:
        """An empty id means the default one. Raises InvalidInput naming `field`, PreconditionFailed with the reason of a refused one."""
        models = self._loaded()
        if id in self._refused:
            raise PreconditionFailed(f"{id} can't be trained on: {self._refused[id].message}", field=field)
        if not id:
            return next(iter(models.values()))
        if id not in models:
            raise InvalidInput.of(field, f"{id[:80]!r} is not one of this trainer's base models: {', '.join(models)}")
        return models[id]

    def _loaded(self) -> dict[str, KnownBaseModel]:
        if not self._models:
            raise Unavailable("the trainer is starting: its base models are not read yet")
        return self._models
