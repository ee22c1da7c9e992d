"""Base models on a file server: any web server that serves model directories, each with a manifest.

    URL/NAME/softprompt-manifest.json     the files with their sizes and SHA-256 digests, written by `models manifest`
    URL/NAME/config.json ...              the files

A manifest says where the model comes from and what its fingerprint is, so a pull can require a commit or a fingerprint.
"""

from __future__ import annotations

import http.client
import os
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import quote, urlsplit

from pydantic import BaseModel as PydanticModel
from pydantic import ConfigDict, Field, StringConstraints, ValidationError, field_validator

from shared.errors import DamagedBlob, InvalidInput, NotFound, PermissionDenied, Unauthenticated, Unavailable
from shared.file_digest import sha256_of
from shared.loopback import is_loopback
from shared.model import fingerprint
from shared.text.parsing_message import plain_message
from softprompt.hub_download import HUB_FILES, Progress, check_space, watching_size

MANIFEST = "softprompt-manifest.json"
_MAX_MANIFEST_BYTES = 1 << 20
_TIMEOUT_SECONDS = 30.0
_MANIFEST_SECONDS = 60.0
_ATTEMPTS = 5
"""Connections for one file. Each continues where the last one broke."""
_CHUNK_BYTES = 1 << 20
_NAME = r"^[^./\\\x00-\x1f][^/\\\x00-\x1f]*\.(json|safetensors|model|txt|jinja)$"


class _Frozen(PydanticModel):
    model_config = ConfigDict(frozen=True, extra="ignore")


class ListedFile(_Frozen):
    """A file of the model. Its name has no folder."""

    name: Annotated[str, StringConstraints(pattern=_NAME)]
    size: int = Field(ge=0)
    sha256: Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]


class ModelManifest(_Frozen):
    """The files of a model, where it comes from, and its fingerprint."""

    format: Literal[1] = 1
    fingerprint: Annotated[str, StringConstraints(pattern=r"^sha256:[0-9a-f]{64}$")]
    hub_id: str = ""
    """Empty: not from a hub."""
    commit: str = ""
    files: tuple[ListedFile, ...] = Field(min_length=1, max_length=10_000)

    @field_validator("files")
    @classmethod
    def _names_differ(cls, value: tuple[ListedFile, ...]) -> tuple[ListedFile, ...]:
        if len({file.name.lower() for file in value}) < len(value):  # some file systems ignore case
            raise ValueError("two files have the same name")
        return value


def write_manifest(directory: Path, hub_id: str, commit: str) -> ModelManifest:
    """Hash a model directory and write its manifest into it. Raises NotFound without weights, OSError."""
    found = sorted({path for pattern in HUB_FILES for path in directory.glob(pattern) if path.is_file()})
    paths = [path for path in found if not path.name.startswith(".") and path.name != MANIFEST]
    files = tuple(ListedFile(name=path.name, size=path.stat().st_size, sha256=sha256_of(path)) for path in paths)
    made = ModelManifest(fingerprint=fingerprint.of(directory).fingerprint, hub_id=hub_id, commit=commit, files=files)
    temporary = directory / f"{MANIFEST}.{os.getpid()}"
    temporary.write_text(made.model_dump_json(indent=2) + "\n", encoding="utf-8")
    temporary.replace(directory / MANIFEST)
    return made


def check_server(url: str, token: str) -> None:
    """Raises InvalidInput if `url` is not the URL of a file server, or the token would travel in plain text."""
    try:
        parts = urlsplit(url)
        is_right = parts.scheme in ("http", "https") and parts.port != 0
    except ValueError:
        raise InvalidInput.of("from", "is not a URL: its host or port can't be read") from None
    if parts.username is not None or parts.password is not None:  # not quoted: it may be a secret
        raise InvalidInput.of("from", "must have no user and password; give a token with --token-file")
    if not is_right or not parts.hostname:
        raise InvalidInput.of("from", f"{url!r} must be the http:// or https:// URL of a file server's directory")
    if token and parts.scheme == "http" and not is_loopback(parts.hostname):
        raise InvalidInput.of("from", f"{url!r} has no TLS: a token is sent only to https://")


def download_from(server: str, directory: str, made: Path, progress: Progress, token: str) -> ModelManifest:
    """Download a model into `made` and check every file's digest. `token` is never sent to redirects. Raises NotFound
    if the server has no such model, Unauthenticated, PermissionDenied, Unavailable, DamagedBlob.
    """
    check_server(server, token)
    base = f"{server.rstrip('/')}/{quote(directory)}"
    try:
        with _opened(f"{base}/{MANIFEST}", token) as answer:
            text = _read_within(answer, _MAX_MANIFEST_BYTES + 1, _MANIFEST_SECONDS)
    except NotFound as error:
        reason = f"{base}/{MANIFEST} is missing: `softprompt models manifest`"
        raise NotFound("base model", directory, reason) from error
    try:
        manifest = ModelManifest.model_validate_json(text)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(map(str, first["loc"])) or "the file"
        why = plain_message(first["msg"])
        raise DamagedBlob(f"{base}/{MANIFEST} is not a manifest of a model: {where}: {why}") from error
    total = sum(file.size for file in manifest.files)
    check_space(made, total)
    made.mkdir()
    with watching_size(made, total, progress):
        for file in manifest.files:
            _fetch(f"{base}/{quote(file.name)}", file, made / file.name, token)
    if not ((made / "config.json").is_file() and any(made.glob("*.safetensors"))):
        raise DamagedBlob(f"{base}/{MANIFEST} lists no config.json or no *.safetensors")
    return manifest


def _read_within(answer: Any, most_bytes: int, seconds: float) -> bytes:
    """The body, or its first `most_bytes`. The time limit of a connection holds for each packet alone."""
    text, deadline = b"", time.monotonic() + seconds
    while len(text) < most_bytes and (part := answer.read1(most_bytes - len(text))):
        text += part
        if time.monotonic() > deadline:
            raise TimeoutError(f"it is not complete after {seconds:g} s")
    return text


def _fetch(url: str, file: ListedFile, path: Path, token: str) -> None:
    """Download one file, continuing after broken connections. Raises DamagedBlob if it has another size or digest."""
    for attempt in range(1, _ATTEMPTS + 1):
        try:
            _continue(url, file, path, token)
            break
        except (Unavailable, http.client.HTTPException, ConnectionError, TimeoutError) as error:
            if attempt == _ATTEMPTS:
                raise Unavailable(f"{url} can't be downloaded: {error}") from error
            time.sleep(0.2 * attempt)
    size = path.stat().st_size
    if size != file.size:
        raise DamagedBlob(f"{url} has {size} bytes, its manifest says {file.size}")
    if (found := sha256_of(path)) != file.sha256:
        raise DamagedBlob(f"{url} has SHA-256 {found}, its manifest says {file.sha256}")


def _continue(url: str, file: ListedFile, path: Path, token: str) -> None:
    """Append what is missing of the file. A server without ranges sends it from the start."""
    path.touch()
    offset = path.stat().st_size
    if offset >= file.size:
        return
    with _opened(url, token, offset) as answer, path.open("r+b") as out:
        out.seek(offset if answer.status == http.client.PARTIAL_CONTENT else 0)
        out.truncate()
        while out.tell() <= file.size and (chunk := answer.read(_CHUNK_BYTES)):
            out.write(chunk)
    if path.stat().st_size < file.size:
        raise Unavailable("the connection ended early")


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Follows no redirect to another protocol, and none from https:// to http://."""

    def redirect_request(self, req: Any, fp: Any, code: int, msg: str, headers: Any, newurl: str) -> Any:
        if urlsplit(newurl).scheme not in ("https", req.type):
            raise urllib.error.URLError(f"a redirect to another protocol is refused: {newurl[:200]}")
        return super().redirect_request(req, fp, code, msg, headers, newurl)


_OPENER = urllib.request.build_opener(_Redirects)


@contextmanager
def _opened(url: str, token: str, offset: int = 0) -> Iterator[Any]:
    """The answer of the server. Errors are in our words."""
    request = urllib.request.Request(url, headers={"Range": f"bytes={offset}-"} if offset else {})
    if token:
        request.add_unredirected_header("Authorization", f"Bearer {token}")
    try:
        with _OPENER.open(request, timeout=_TIMEOUT_SECONDS) as answer:
            yield answer
    except urllib.error.HTTPError as error:
        error.close()
        match error.code:
            case 404 | 410:
                raise NotFound("file", url) from error
            case 401:
                text = "the token is not accepted" if token else "it requires a token: give one with --token-file"
                raise Unauthenticated(f"{url}: {text} (401)", source="server") from error
            case 403:
                raise PermissionDenied(f"{url}: the server forbids the download (403)", source="server") from error
        reason = " ".join(str(error.reason).split())[:200]
        raise Unavailable(f"{url}: the server answers {error.code} {reason}") from error
    except urllib.error.URLError as error:
        raise Unavailable(f"{url}: the server does not answer: {error.reason}") from error
    except (http.client.HTTPException, ConnectionError, TimeoutError) as error:
        raise Unavailable(f"{url}: the server's answer broke off: {error}") from error
