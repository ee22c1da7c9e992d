"""A JSON file that an operator writes: its content as a pydantic model, or an error that names the keys; and the newest
valid content of such a file while the process runs.
"""

from __future__ import annotations

import json
import logging
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Generic, TypeVar

from pydantic import BaseModel, ValidationError

from shared.config import ConfigError
from shared.json_keys import RepeatedKey, unique_keys
from shared.security.watched_file import WatchedFile
from shared.text.parsing_message import plain_message

Content = TypeVar("Content", bound=BaseModel)
Value = TypeVar("Value")

log = logging.getLogger(__name__)

_SHOWN = 5
_LOOK_SECONDS = 1.0


def read_json(file: WatchedFile, cls: type[Content]) -> Content:
    """The content. Raises ConfigError with the path and the first bad keys, without values: they may be secrets."""
    try:
        data = file.read()
        content = cls.model_validate_json(data)
        json.loads(data, object_pairs_hook=unique_keys)
        return content
    except OSError as error:
        raise ConfigError(f"{file.path}: {error.strerror}") from error
    except ValidationError as error:
        problems = [
            f"{'.'.join(map(str, detail['loc'])) or 'file'}: {plain_message(detail['msg'])}"
            for detail in error.errors(include_input=False)
        ]
        raise ConfigError(f"{file.path}: {'; '.join(problems[:_SHOWN])}") from None  # pydantic's text shows values
    except RepeatedKey as error:
        raise ConfigError(f"{file.path}: {error}") from None


class NewestContent(Generic[Value]):
    """What the newest valid content of a file says. Thread-safe.

    If the file becomes invalid or is deleted, the previous content stays in force and the error is logged.
    """

    def __init__(
        self, path: Path | str, names: str, read: Callable[[WatchedFile], Value], size: Callable[[Value], int]
    ) -> None:
        """`names` says for the log what the file lists, and `size` how many of them. `read` raises ConfigError if the
        file is invalid; so does this.
        """
        self._file, self._names, self._read, self._size = WatchedFile(path), names, read, size
        self._lock = threading.Lock()
        self._looked = time.monotonic()
        self._is_broken = False
        self._value = read(self._file)

    @property
    def value(self) -> Value:
        """The current value; once a second, the file is read again if it has changed."""
        with self._lock:
            now = time.monotonic()
            if now - self._looked >= _LOOK_SECONDS:
                self._looked = now
                if self._file.changed():
                    self._reload()
        return self._value

    def is_current(self) -> bool:
        """Whether `value` matches the file; False while the file is invalid or missing."""
        _ = self.value
        return not self._is_broken and self._file.path.exists()

    def _reload(self) -> None:
        self._is_broken = True
        try:
            self._value = self._read(self._file)
        except ConfigError as error:
            log.error("the %s file is invalid; keeping the previous one: %s", self._names, error)
            return
        self._is_broken = False
        log.info("%s file reloaded", self._names, extra={"fields": {self._names: self._size(self._value)}})
