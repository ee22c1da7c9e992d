"""The fingerprint of a base model: one digest of weights, config and tokenizer.

It is computed once for each state of the files and cached beside them, or in the user's cache if the folder is
read-only. A state consists of size, modification time, change time and inode of each file. Users can set the
modification time (`cp -p`, `touch`), but only the kernel sets the change time. A file that changed less than
`SETTLE_SECONDS` before it was hashed, or in the future, could change again within one tick of its file system's clock
unnoticed, so it is hashed again the next time (like "racy Git" entries in Git's index).

An image or a volume can contain the fingerprint (`ship`). It is then also valid for copies of the files, whose times
differ, if their sizes are the same. It is trusted at first, so that a start doesn't wait until gigabytes are hashed,
and then verified (`verify`).
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import time
from pathlib import Path
from typing import Any

from pydantic import BaseModel as PydanticModel
from pydantic import ValidationError

from shared.errors import NotFound, PreconditionFailed, Unavailable
from shared.file_digest import sha256_of
from shared.process.user_cache import is_ours, private_folder, user_cache

log = logging.getLogger(__name__)

FILE = ".softprompt-fingerprint.json"
SETTLE_SECONDS = 2.0
"""The resolution of the coarsest file system clock in use, FAT's. A file server's clock may differ by as much."""
_MAX_HASHINGS = 3

Stamps = dict[str, tuple[int, ...]]
"""Size in bytes, modification and change time in ns, and inode of each file, by name."""
_TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer.model",
    "vocab.json",
    "merges.txt",
    "tokenizer_config.json",
    "chat_template.jinja",
    "special_tokens_map.json",
    "additional_chat_templates/default.jinja",
)
_ADDED_TOKENS = "added_tokens.json"
_OTHER_TOKENIZER_FILES = ("*.model", "vocab*", _ADDED_TOKENS, "tekken.json")
"""What a tokenizer is made of if the directory has no tokenizer.json: `spiece.model`, `vocab.txt` and so on."""
_VOLATILE_CONFIG_KEYS = ("transformers_version", "_name_or_path", "dtype", "torch_dtype")


class Fingerprint(PydanticModel):
    """The digests, and the files' `stamps` when hashing began at `hashed_at_ns`; earlier releases: shorter stamps."""

    stamps: Stamps
    hashed_at_ns: int = 0
    fingerprint: str
    tokenizer_digest: str
    shipped: bool = False
    """Whether it was made by `ship`. Until it is verified, only the sizes of files are compared."""

    def is_of(self, stamps: Stamps) -> bool:
        """Whether the fingerprint belongs to these files, judged by their stamps."""
        return self.is_proven_of(stamps) or (self.shipped and _sizes(self.stamps) == _sizes(stamps))

    def is_proven_of(self, stamps: Stamps) -> bool:
        """Whether exactly these files were hashed, and any later change would show in their stamps."""
        settled = self.hashed_at_ns - SETTLE_SECONDS * 1e9
        return self.stamps == stamps and all(stamp[2] <= settled for stamp in stamps.values())


def of(path: Path) -> Fingerprint:
    """The fingerprint of a model directory, from a cache or by hashing.

    Raises NotFound for a directory without weights, Unavailable if its files are being written or its config.json is no
    JSON object.
    """
    if (cached := known(path)) is not None:
        return cached
    fresh = _hashed(path)
    if not _write(path / FILE, fresh):
        _write(_elsewhere(path), fresh, private=True)
    return fresh


def known(path: Path) -> Fingerprint | None:
    """The fingerprint of a model directory if it is cached and its files have not changed since; hashes nothing.

    Raises NotFound for a directory without weights, OSError for one without config.json.
    """
    stamps, elsewhere = _stamps(path), _elsewhere(path)
    for cache in (elsewhere, path / FILE):
        if (found := _read(cache, private=cache == elsewhere)) is not None and found.is_of(stamps):
            return found
    return None


def shipped(path: Path) -> Fingerprint | None:
    """The fingerprint that `ship` has written, if the files have the sizes that it was made of. Raises as `known`."""
    found, stamps = _read(path / FILE, private=False), _stamps(path)
    return found if found is not None and found.shipped and found.is_of(stamps) else None


def ship(path: Path) -> Fingerprint:
    """Hash the files and write the fingerprint, read-only, beside them, to be copied with them. Raises OSError."""
    fresh = _hashed(path).model_copy(update={"shipped": True})
    temporary = path / f"{FILE}.{os.getpid()}"
    temporary.write_text(fresh.model_dump_json(), encoding="utf-8")
    temporary.chmod(0o444)
    temporary.replace(path / FILE)
    return fresh


def verify(path: Path) -> None:
    """Hash the files if their fingerprint was trusted by their sizes. Raises PreconditionFailed if it is wrong."""
    stamps, believed = _stamps(path), of(path)
    if believed.is_proven_of(stamps) or not believed.shipped:
        return
    fresh = _hashed(path)
    if fresh.fingerprint != believed.fingerprint:
        raise PreconditionFailed(
            f"the files of base model {path.name!r} are not those that the fingerprint beside them was made of; "
            "if they are right, run `softprompt models fingerprint` for their directory, and start again",
            expected=believed.fingerprint,
            found=fresh.fingerprint,
        )
    _write(_elsewhere(path), fresh, private=True)


def _stamps(path: Path) -> Stamps:
    return {file.name: _stamp(file.stat()) for file in (path / "config.json", *_tokenizer(path), *_weights(path))}


def _stamp(status: os.stat_result) -> tuple[int, ...]:
    return status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino


def _sizes(stamps: Stamps) -> dict[str, int]:
    return {name: stamp[0] for name, stamp in stamps.items()}


def _hashed(path: Path) -> Fingerprint:
    """The fingerprint by hashing. Raises Unavailable if files keep changing meanwhile."""
    for _ in range(_MAX_HASHINGS):
        begun, stamps = _now_ns(), _stamps(path)
        found = _hash_files(path, stamps, begun)
        if _stamps(path) == stamps:
            return found
    raise Unavailable(f"base model {path.name!r} changes while it is read; try again when its files are complete")


def _now_ns() -> int:
    return time.time_ns()


def _hash_files(path: Path, stamps: Stamps, hashed_at_ns: int) -> Fingerprint:
    try:
        given = json.loads((path / "config.json").read_bytes())
    except (ValueError, RecursionError):
        given = None
    if not isinstance(given, dict):
        raise Unavailable(f"base model {path.name!r} has a config.json that is not a JSON object")
    config = {key: value for key, value in given.items() if key not in _VOLATILE_CONFIG_KEYS}
    tokenizer_digest = _digest_of({file.name: sha256_of(file) for file in _tokenizer(path)})
    weights = {file.name: sha256_of(file) for file in _weights(path)}
    fingerprint = _digest_of({"config": config, "tokenizer": tokenizer_digest, "weights": weights})
    return Fingerprint(
        stamps=stamps, hashed_at_ns=hashed_at_ns, fingerprint=fingerprint, tokenizer_digest=tokenizer_digest
    )


def _weights(path: Path) -> list[Path]:
    found = sorted(file for file in path.glob("*.safetensors") if not file.is_dir())
    if not found:
        raise NotFound("base model", path.name, "the directory has no *.safetensors weights")
    return found


def _tokenizer(path: Path) -> list[Path]:
    found = {path / name for name in _TOKENIZER_FILES}
    if not (path / _TOKENIZER_FILES[0]).is_file():
        found |= {file for name in _OTHER_TOKENIZER_FILES for file in path.glob(name)}
    added = path / _ADDED_TOKENS
    if added.is_file() and not _names_its_added_tokens(path / "tokenizer_config.json"):
        found.add(added)
    return sorted(file for file in found if file.is_file())


def _names_its_added_tokens(config: Path) -> bool:
    """Whether transformers takes the added tokens from a tokenizer_config.json; else, it reads added_tokens.json."""
    try:
        return "added_tokens_decoder" in json.loads(config.read_bytes())
    except (OSError, ValueError, TypeError, RecursionError):
        return False


def _read(cache: Path, *, private: bool) -> Fingerprint | None:
    """A cached fingerprint. `private`: only if no other user could have written it.

    A fingerprint beside the weights is trusted as much as they are.
    """
    try:
        if private and not (is_ours(cache) and is_ours(cache.parent)):
            return None
        return Fingerprint.model_validate_json(cache.read_bytes())
    except (OSError, ValidationError):
        return None


def _write(cache: Path, fresh: Fingerprint, *, private: bool = False) -> bool:
    try:
        if private:
            private_folder(cache.parent)
        temporary = cache.with_name(f"{cache.name}.{os.getpid()}")
        temporary.write_text(fresh.model_dump_json(), encoding="utf-8")
        temporary.replace(cache)
        if private:
            cache.chmod(0o600)  # whatever the umask: see `_read`
    except (OSError, RuntimeError) as error:
        log.info("the fingerprint is not cached in %s: %s", cache.parent, getattr(error, "strerror", None) or error)
        return False
    return True


def _elsewhere(path: Path) -> Path:
    """The cache file for the fingerprint of a read-only directory.

    Its name depends on the directory's path and inode, so that another model mounted at the same path has another file.
    """
    place = f"{path.resolve()}:{path.stat().st_ino}"
    return user_cache() / "fingerprints" / f"{hashlib.sha256(place.encode()).hexdigest()}.json"


def _digest_of(value: dict[str, Any]) -> str:
    return "sha256:" + hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()
