"""The base models of this trainer as the service process sees them: identity and tokenizer, never the weights."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from shared.errors import InvalidInput, NotFound, PreconditionFailed, SoftPromptError, Unavailable
from shared.model import base_model, fingerprint
from shared.model.base_model import default_id
from shared.model.shape import ModelShape
from shared.process.user_cache import expanded
from shared.values.base_model import BaseModelInfo

log = logging.getLogger(__name__)
_ID_CHARACTERS = frozenset("abcdefghijklmnopqrstuvwxyz0123456789-._")


@dataclass(frozen=True)
class BaseModelSource:
    """The id of a base model, which callers use, and where its files are."""

    id: str
    source: str

    @classmethod
    def parse(cls, text: str) -> BaseModelSource:
        """Parses `ID=SOURCE` or `SOURCE`, a directory or hub id; the default id is its last part. Raises ValueError."""
        id, separator, source = text.partition("=")
        found = cls(id, source) if separator else cls(default_id(text), text)
        if not found.source or not found.id or not _ID_CHARACTERS.issuperset(found.id):
            raise ValueError(
                f"{text!r} must be a model directory, a hub id or ID=one of these; ids consist of a-z 0-9 - . _"
            )
        directory = expanded(found.source)
        # Absolute, because workers run in other directories.
        return replace(found, source=str(directory.absolute())) if directory.is_dir() else found


@dataclass(frozen=True)
class KnownBaseModel:
    """An available base model. `tokenizer` is a transformers tokenizer with which several threads may encode; `path` is
    the model's directory.
    """

    info: BaseModelInfo
    tokenizer: Any
    path: Path
    shape: ModelShape | None = None
    """For estimates of memory; None: unknown."""


class BaseModels:
    """The configured base models by id; the first one is the default. Every look-up raises Unavailable until `load` has
    finished.

    A model whose directory is missing or damaged, or whose hub does not answer, is unavailable: jobs for it are refused
    with the reason until `load` finds it. A model whose architecture can't take a soft prompt is refused permanently.
    Neither case affects the other models.
    """

    def __init__(self, sources: Sequence[BaseModelSource]) -> None:
        self._sources = tuple(sources)
        self._models: dict[str, KnownBaseModel] = {}
        self._refused: dict[str, PreconditionFailed] = {}
        self._unavailable: dict[str, str] = {source.id: "it has not been read yet" for source in self._sources}
        self._is_loaded = False

    def load(self) -> None:
        """Reads the models that are not available yet. Safe to repeat. Blocks: hashes weights that were not hashed
        before. Raises PreconditionFailed if every model is refused.
        """
        for source in self._sources:
            if source.id in self._unavailable:
                self._read(source)
        self._is_loaded = True
        if self._sources and len(self._refused) == len(self._sources):
            raise next(iter(self._refused.values()))

    def _read(self, source: BaseModelSource) -> None:
        try:
            path = base_model.resolve(source.source)
            info = base_model.inspect(path, id=source.id)
            tokenizer = base_model.load_tokenizer(path, info.vocab_size)
        except PreconditionFailed as error:
            log.error("base model %s can't be used for training: %s", source.id, error.message)
            self._refused[source.id] = error
        except Exception as error:  # transformers raises various errors for a damaged directory
            reason = _reason(error, source)
            if self._unavailable[source.id] != reason:
                log.error(
                    "base model %s is not available: %s",
                    source.id,
                    reason,
                    exc_info=not isinstance(error, SoftPromptError),
                )
            self._unavailable[source.id] = reason
            return
        else:
            self._models[source.id] = KnownBaseModel(info, tokenizer, path, ModelShape.read(path))
            log.info("base model available", extra={"fields": {"base_model": info.id, "fingerprint": info.fingerprint}})
        del self._unavailable[source.id]

    def verify(self) -> None:
        """Hashes the models whose shipped fingerprint was accepted by file sizes only. Blocks.

        A model with other bytes is refused permanently.
        """
        for id, model in list(self._models.items()):
            try:
                fingerprint.verify(model.path)
            except PreconditionFailed as error:
                log.error("base model %s can no longer be used for training: %s", id, error.message)
                del self._models[id]
                self._refused[id] = error
            except (OSError, SoftPromptError) as error:
                log.warning("base model %s can't be verified now: %s", id, error)

    @property
    def infos(self) -> tuple[BaseModelInfo, ...]:
        """The available models in the order of the configuration."""
        return tuple(self._models[source.id].info for source in self._sources if source.id in self._models)

    @property
    def unavailable(self) -> dict[str, str]:
        """The reasons, by id, of models that are unavailable but not refused."""
        return dict(self._unavailable)

    def states(self) -> dict[str, str]:
        """The state of each model by id: available, unavailable or refused."""
        known = {**dict.fromkeys(self._models, "available"), **dict.fromkeys(self._refused, "refused")}
        return {source.id: known.get(source.id, "unavailable") for source in self._sources}

    def get(self, id: str, field: str = "base_model") -> KnownBaseModel:
        """The model with this id; empty: the default model. Raises InvalidInput naming `field` for an unknown id,
        PreconditionFailed with the reason for a model that can't be used, Unavailable before `load` has finished.
        """
        if not self._is_loaded:
            raise Unavailable("the trainer is starting: its base models are not read yet")
        wanted = id or next(source.id for source in self._sources if source.id not in self._refused)
        if (model := self._models.get(wanted)) is not None:
            return model
        if wanted in self._refused:
            message = f"base model {wanted} can't be used for training: {self._refused[wanted].message}"
            raise PreconditionFailed(message, field=field)
        if wanted in self._unavailable:
            raise PreconditionFailed(
                f"base model {wanted} is not available now: {self._unavailable[wanted]}", field=field
            )
        raise InvalidInput.of(field, f"{id[:80]!r} is not one of this trainer's base models: {', '.join(self._models)}")

    def trained_on(self, name: str, field: str = "base_model") -> KnownBaseModel:
        """The model that another program calls `name`: a hub id, or a directory, of which only the last part counts.
        Raises InvalidInput naming `field` if there is none, else like `get`.
        """
        for source in self._sources:
            if _is_hub_id(name) and _is_hub_id(source.source):
                is_same = name.lower() == source.source.lower()
            else:
                is_same = default_id(name) in (source.id, default_id(source.source))
            if is_same:
                return self.get(source.id, field)
        text = (
            f"the file is of a prompt for {name[:80]!r}, which is not the name of one of this trainer's base models "
            f"({', '.join(source.id for source in self._sources)}): if it is one of them, say which"
        )
        raise InvalidInput.of(field, text)


def _is_hub_id(source: str) -> bool:
    return source.count("/") == 1 and source[0] not in "./~"


def _reason(error: Exception, source: BaseModelSource) -> str:
    """The reason for callers. It contains no paths, and no texts of libraries, because these may contain paths."""
    if isinstance(error, NotFound):
        return error.hint or "it does not exist"
    if isinstance(error, SoftPromptError):
        return error.message.replace(source.source, source.id)
    return f"its files can't be read ({type(error).__name__})"
