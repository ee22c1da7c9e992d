"""The base models of this trainer as the service process sees them: identity and tokenizer, never the weights."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from shared import base_model
from shared.base_model import BaseModelInfo
from shared.errors import InvalidInput
from trainer_service.config import BaseModelSource

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class KnownBaseModel:
    """`path` is its local directory; `tokenizer` a transformers tokenizer, safe to use from several threads."""

    info: BaseModelInfo
    path: str
    tokenizer: Any


class BaseModels:
    """What can be trained here, by id; the first is the default."""

    def __init__(self, models: Sequence[KnownBaseModel]) -> None:
        self._models = {model.info.id: model for model in models}

    @classmethod
    def load(cls, sources: Sequence[BaseModelSource]) -> BaseModels:
        """Blocks: hashes weights that have not been hashed before. Raises NotFound or PreconditionFailed for one that can't be used."""
        models = []
        for source in sources:
            path = base_model.resolve(source.source)
            info = base_model.inspect(path, id=source.id)
            models.append(KnownBaseModel(info, str(path), base_model.load_tokenizer(path)))
            log.info("base model known", extra={"fields": {"base_model": info.id, "fingerprint": info.fingerprint}})
        return cls(models)

    @property
    def infos(self) -> tuple[BaseModelInfo, ...]:
        return tuple(model.info for model in self._models.values())

    @property
    def paths(self) -> dict[str, str]:
        """Directories by id."""
        return {id: model.path for id, model in self._models.items()}

    def get(self, id: str, field: str = "base_model") -> KnownBaseModel:
        """An empty id means the default one. Raises InvalidInput naming `field`."""
        if not id:
            return next(iter(self._models.values()))
        if id not in self._models:
            raise InvalidInput.of(field, f"{id[:80]!r} is not one of this trainer's base models: {', '.join(self._models)}")
        return self._models[id]
