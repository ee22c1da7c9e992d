"""A JSON file that an operator writes: its content as a pydantic model, or an error that names the keys."""

from __future__ import annotations

import json
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from shared.config import ConfigError
from shared.security.watched_file import WatchedFile
from shared.text.parsing_message import plain_message

Content = TypeVar("Content", bound=BaseModel)

_SHOWN = 5


def read_json(file: WatchedFile, cls: type[Content]) -> Content:
    """The file's content. Raises ConfigError with the path and the first bad keys, and without values: they may be
    secrets.
    """
    try:
        data = file.read()
        content = cls.model_validate_json(data)
        json.loads(data, object_pairs_hook=_unique)
        return content
    except OSError as error:
        raise ConfigError(f"{file.path}: {error.strerror}") from error
    except ValidationError as error:
        problems = [
            f"{'.'.join(map(str, detail['loc'])) or 'file'}: {plain_message(detail['msg'])}"
            for detail in error.errors(include_input=False)
        ]
        raise ConfigError(f"{file.path}: {'; '.join(problems[:_SHOWN])}") from None  # pydantic's text shows values
    except _RepeatedKey as error:
        raise ConfigError(f"{file.path}: {error}") from None


class _RepeatedKey(ValueError):
    pass


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """JSON allows a key twice and takes the last one, which hides mistakes."""
    found = dict[str, Any]()
    for key, value in pairs:
        if key in found:
            raise _RepeatedKey(f"{key[:80]!r} is twice in one object")
        found[key] = value
    return found
