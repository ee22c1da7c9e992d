"""A JSON file that an operator writes: its content as a pydantic model, or an error that names the keys."""

from __future__ import annotations

from typing import TypeVar

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
        return cls.model_validate_json(file.read())
    except OSError as error:
        raise ConfigError(f"{file.path}: {error.strerror}") from error
    except ValidationError as error:
        problems = [
            f"{'.'.join(map(str, detail['loc'])) or 'file'}: {plain_message(detail['msg'])}"
            for detail in error.errors(include_input=False)
        ]
        raise ConfigError(f"{file.path}: {'; '.join(problems[:_SHOWN])}") from None  # pydantic's text shows values
