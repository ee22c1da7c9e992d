"""The base models of this trainer as the service process sees them: identity and tokenizer, never the weights."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from shared.errors import InvalidInput, NotFound, PreconditionFailed, SoftPromptError, Unavailable
from shared.model import base_model, fingerprint
from shared.model.base_model import BaseModelInfo, default_id
from shared.process.user_cache import expanded

log = logging.getLogger(__name__)
_ID_CHARACTERS = frozenset("abcdefghijklmnopqrstuvwxyz0123456789-._")


@dataclass(frozen=True)
class BaseModelSource:
    """Where a base model is, and the id that callers know it by."""

    id: str
    source: str

    @classmethod
    def parse(cls, text: str) -> BaseModelSource:
        """`id=directory-or-hub-id`, or without an id: then it is called after the last part."""
        id, separator, source = text.partition("=")
        found = cls(id, source) if separator else cls(default_id(text), text)
        if not found.source or not found.id or not _ID_CHARACTERS.issuperset(found.id):
            raise ValueError(
                f"{text!r} must be a model directory, a hub id or ID=one of these; an id has characters of a-z 0-9 - . _"
            )
        directory = expanded(found.source)
        return (
            replace(found, source=str(directory.absolute())) if directory.is_dir() else found
        )  # workers have other directories


@dataclass(frozen=True)
class KnownBaseModel:
    """`tokenizer` is a transformers tokenizer; several threads may encode with it. `path` is the model's directory."""

    info: BaseModelInfo
    tokenizer: Any
    path: Path


class BaseModels:
    """What can be trained here, by id; the first configured one is the default. Look-ups raise Unavailable until `load`
    has finished.

    A model whose directory is missing or broken, or whose hub does not answer, is unavailable: jobs for it are refused
    with the reason until `load` finds it. A model whose architecture can't take a soft prompt is refused for good. Both
    leave the others alone.
    """

    def __init__(self, sources: Sequence[BaseModelSource]) -> None:
        self._sources = tuple(sources)
        self._models: dict[str, KnownBaseModel] = {}
        self._refused: dict[str, PreconditionFailed] = {}
        self._unavailable: dict[str, str] = {source.id: "it has not been looked at yet" for source in self._sources}
        self._is_loaded = False

    def load(self) -> None:
        """Look at the models that are not known yet. Blocks: hashes weights that have not been hashed before. Safe to
        repeat.

        Raises PreconditionFailed if every model is refused for good.
        """
        for source in self._sources:
            if source.id in self._unavailable:
                self._look_at(source)
        self._is_loaded = True
        if self._sources and len(self._refused) == len(self._sources):
            raise next(iter(self._refused.values()))

    def _look_at(self, source: BaseModelSource) -> None:
        try:
            path = base_model.resolve(source.source)
            info = base_model.inspect(path, id=source.id)
            tokenizer = base_model.load_tokenizer(path)
            tokenizer(
                "a"
            )  # settles its truncation and padding: changing them later, while another thread encodes, would fail
        except PreconditionFailed as error:
            log.error("base model %s can't be trained on: %s", source.id, error.message)
            self._refused[source.id] = error
        except Exception as error:  # whatever transformers raises over a damaged directory
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
            self._models[source.id] = KnownBaseModel(info, tokenizer, path)
            log.info("base model known", extra={"fields": {"base_model": info.id, "fingerprint": info.fingerprint}})
        del self._unavailable[source.id]

    def verify(self) -> None:
        """Hash the models whose shipped fingerprint was believed by the sizes of their files. Blocks.

        A model of other bytes is refused for good.
        """
        for id, model in list(self._models.items()):
            try:
                fingerprint.verify(model.path)
            except PreconditionFailed as error:
                log.error("base model %s can't be trained on any more: %s", id, error.message)
                del self._models[id]
                self._refused[id] = error
            except (OSError, SoftPromptError) as error:
                log.warning("base model %s can't be verified now: %s", id, error)

    @property
    def infos(self) -> tuple[BaseModelInfo, ...]:
        """In the order of the configuration."""
        return tuple(self._models[source.id].info for source in self._sources if source.id in self._models)

    @property
    def unavailable(self) -> dict[str, str]:
        """Why, by id; of models that may become available."""
        return dict(self._unavailable)

    def states(self) -> dict[str, str]:
        """available, unavailable or refused, by id."""
        known = {**dict.fromkeys(self._models, "available"), **dict.fromkeys(self._refused, "refused")}
        return {source.id: known.get(source.id, "unavailable") for source in self._sources}

    def get(self, id: str, field: str = "base_model") -> KnownBaseModel:
        """An empty id means the default one.

        Raises InvalidInput naming `field` for an unknown id, PreconditionFailed with the reason for a model that can't
        be used.
        """
        if not self._is_loaded:
            raise Unavailable("the trainer is starting: its base models are not read yet")
        wanted = id or next(source.id for source in self._sources if source.id not in self._refused)
        if (model := self._models.get(wanted)) is not None:
            return model
        if wanted in self._refused:
            raise PreconditionFailed(f"{wanted} can't be trained on: {self._refused[wanted].message}", field=field)
        if wanted in self._unavailable:
            raise PreconditionFailed(
                f"base model {wanted} is not available now: {self._unavailable[wanted]}", field=field
            )
        raise InvalidInput.of(field, f"{id[:80]!r} is not one of this trainer's base models: {', '.join(self._models)}")


def _reason(error: Exception, source: BaseModelSource) -> str:
    """For callers: without paths, and without texts of libraries, which quote some."""
    if isinstance(error, NotFound):
        return error.hint or "it does not exist"
    if isinstance(error, SoftPromptError):
        return error.message.replace(source.source, source.id)
    return f"its files can't be read ({type(error).__name__})"
