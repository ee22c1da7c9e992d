"""Which bytes a base model is made of: one digest over weights, config and tokenizer.

It is computed once for each state of the files and kept: beside them, or in the user's cache where the folder is read-only. An image or a
volume can *ship* it (`ship`): then it holds for copies of the files too, whose times differ, as long as their sizes are the same. Such a
fingerprint is believed at first, so that a start does not wait for gigabytes to be hashed, and then verified (`verify`).
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
from pathlib import Path
from typing import Any

from pydantic import BaseModel as PydanticModel
from pydantic import ValidationError

from shared.errors import NotFound, PreconditionFailed
from shared.user_cache import user_cache

log = logging.getLogger(__name__)

FILE = ".softprompt-fingerprint.json"
_TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer.model",
    "vocab.json",
    "merges.txt",
    "tokenizer_config.json",
    "chat_template.jinja",
    "special_tokens_map.json",
)
_VOLATILE_CONFIG_KEYS = ("transformers_version", "_name_or_path", "dtype", "torch_dtype")


class Fingerprint(PydanticModel):
    """`stamps`: size in bytes and modification time in ns of each file, by name, when they were hashed."""

    stamps: dict[str, tuple[int, int]]
    fingerprint: str
    tokenizer_digest: str
    shipped: bool = False
    """It was made to travel with the files: sizes alone tell whether it is theirs, until it is verified."""

    def is_of(self, stamps: dict[str, tuple[int, int]]) -> bool:
        if self.stamps == stamps:
            return True
        return self.shipped and _sizes(self.stamps) == _sizes(stamps)


def of(path: Path) -> Fingerprint:
    """The fingerprint of a model directory, hashed only if it isn't known. Raises NotFound for one without weights."""
    stamps = _stamps(path)
    for cache in (_elsewhere(path), path / FILE):
        if (known := _read(cache)) is not None and known.is_of(stamps):
            return known
    fresh = _hashed(path, stamps)
    for cache in (path / FILE, _elsewhere(path)):
        if _write(cache, fresh):
            break
    return fresh


def ship(path: Path) -> Fingerprint:
    """Hash the files and write the fingerprint beside them, to be copied with them. Raises OSError where that can't be written."""
    fresh = _hashed(path, _stamps(path)).model_copy(update={"shipped": True})
    temporary = path / f"{FILE}.{os.getpid()}"
    temporary.write_text(fresh.model_dump_json(), encoding="utf-8")
    temporary.replace(path / FILE)
    return fresh


def verify(path: Path) -> None:
    """Hash the files if their fingerprint was believed by their sizes. Raises PreconditionFailed if it is another model's."""
    stamps, believed = _stamps(path), of(path)
    if believed.stamps == stamps:
        return
    fresh = _hashed(path, stamps)
    if fresh.fingerprint != believed.fingerprint:
        raise PreconditionFailed(
            f"the files of base model {path.name!r} are not those that the fingerprint beside them was made of; if they are right, "
            "run `softprompt models fingerprint` for their directory, and start again",
            expected=believed.fingerprint,
            found=fresh.fingerprint,
        )
    _write(_elsewhere(path), fresh)


def _stamps(path: Path) -> dict[str, tuple[int, int]]:
    files = (path / "config.json", *_tokenizer(path), *_weights(path))
    return {file.name: (file.stat().st_size, file.stat().st_mtime_ns) for file in files}


def _sizes(stamps: dict[str, tuple[int, int]]) -> dict[str, int]:
    return {name: size for name, (size, _) in stamps.items()}


def _hashed(path: Path, stamps: dict[str, tuple[int, int]]) -> Fingerprint:
    config = {key: value for key, value in json.loads((path / "config.json").read_bytes()).items() if key not in _VOLATILE_CONFIG_KEYS}
    tokenizer_digest = _digest_of({file.name: _hash_file(file) for file in _tokenizer(path)})
    weights = {file.name: _hash_file(file) for file in _weights(path)}
    fingerprint = _digest_of({"config": config, "tokenizer": tokenizer_digest, "weights": weights})
    return Fingerprint(stamps=stamps, fingerprint=fingerprint, tokenizer_digest=tokenizer_digest)


def _weights(path: Path) -> list[Path]:
    found = sorted(path.glob("*.safetensors"))
    if not found:
        raise NotFound("base model", path.name, "the directory has no *.safetensors weights")
    return found


def _tokenizer(path: Path) -> list[Path]:
    return [path / name for name in _TOKENIZER_FILES if (path / name).is_file()]


def _read(cache: Path) -> Fingerprint | None:
    try:
        return Fingerprint.model_validate_json(cache.read_bytes())
    except (OSError, ValidationError):
        return None


def _write(cache: Path, fresh: Fingerprint) -> bool:
    try:
        cache.parent.mkdir(parents=True, exist_ok=True)
        temporary = cache.with_name(f"{cache.name}.{os.getpid()}")
        temporary.write_text(fresh.model_dump_json(), encoding="utf-8")
        temporary.replace(cache)
    except OSError as error:
        log.info("the fingerprint is not cached in %s: %s", cache.parent, error.strerror)
        return False
    return True


def _elsewhere(path: Path) -> Path:
    """Where the fingerprint of a read-only directory is cached: named after the directory's path and its inode, so that another model
    mounted at the same path has a cache of its own."""
    place = f"{path.resolve()}:{path.stat().st_ino}"
    return user_cache() / "fingerprints" / f"{hashlib.sha256(place.encode()).hexdigest()}.json"


def _hash_file(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _digest_of(value: dict[str, Any]) -> str:
    return "sha256:" + hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()
