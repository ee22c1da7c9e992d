"""Downloads a model from the Hugging Face hub into a directory."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from shared.errors import NotFound, PermissionDenied, PreconditionFailed, SoftPromptError, Unauthenticated, Unavailable
from shared.model import hub
from shared.model.hub import HUB_TIMEOUT_SECONDS

Progress = Callable[[str, int, int], None]
"""Called with (stage, done, total): `wait`, `download` in bytes, `convert` in parts. May be called from another thread.
"""

HUB_FILES = ["*.json", "*.safetensors", "*.model", "*.txt", "*.jinja"]


def download(hub_id: str, revision: str, made: Path, progress: Progress, token: str = "") -> str:
    """Download the model's files into `made`; returns the commit, the newest if `revision` is empty. `token` empty:
    HF_TOKEN, or the one that the hub's client has stored. Raises Unavailable if the hub does not answer or the download
    fails, NotFound without such a model, revision or safetensors, PermissionDenied for a gated model, Unauthenticated
    for a token that the hub refuses.
    """
    if not hub.answers(hub_id):
        raise Unavailable(f"base model {hub_id!r}: the hub does not answer; try again")
    from huggingface_hub import HfApi, snapshot_download
    from huggingface_hub.utils.tqdm import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

    bars = not are_progress_bars_disabled()
    disable_progress_bars()
    try:
        info: Any = HfApi(token=token or None).model_info(
            hub_id, revision=revision or None, timeout=HUB_TIMEOUT_SECONDS, files_metadata=True
        )
        names = {file.rfilename: file.size or 0 for file in info.siblings if "/" not in file.rfilename}
        total = sum(size for name, size in names.items() if name.endswith(".safetensors"))
        check_space(made, total)
        with watching_size(made, total, progress):
            snapshot_download(
                hub_id,
                revision=info.sha,
                local_dir=made,
                allow_patterns=HUB_FILES,
                ignore_patterns=["*/*", ".*"],  # a mark of completion must be ours
                token=token or None,
            )
    # The hub's client passes on the errors of its HTTP library, which differs between releases.
    except Exception as error:
        if isinstance(error, SoftPromptError) or getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise _explained(error, hub_id, revision, token) from error
    finally:
        if bars:
            enable_progress_bars()
    shutil.rmtree(made / ".cache", ignore_errors=True)
    if not ((made / "config.json").is_file() and any(made.glob("*.safetensors"))):
        raise NotFound("base model", hub_id, "it has no config.json or no *.safetensors weights")
    return str(info.sha)


def _explained(error: Exception, hub_id: str, revision: str, token: str) -> SoftPromptError:
    """The error of a download in our words, with what to do."""
    from huggingface_hub import constants, get_token
    from huggingface_hub.errors import GatedRepoError, HFValidationError, RepositoryNotFoundError, RevisionNotFoundError

    status = getattr(getattr(error, "response", None), "status_code", None)
    has_token = bool(token or get_token())
    give = "give a token in HF_TOKEN or --token-file"
    if isinstance(error, GatedRepoError):
        accept = f"accept its terms at {constants.ENDPOINT}/{hub_id}"
        whose = "as the token's account, and let the token read gated models" if has_token else f"and {give}"
        return PermissionDenied(f"base model {hub_id!r} is gated ({status}): {accept} {whose}", source="hub")
    if isinstance(error, RepositoryNotFoundError | RevisionNotFoundError | HFValidationError):
        where = f" at revision {revision}" if revision else ""
        private = "" if has_token else f"; if it is private, {give}"
        return NotFound("base model", hub_id, f"the hub has none{where} that you may read{private}")
    if status == 401:
        new = f"make a new one at {constants.ENDPOINT}/settings/tokens"
        return Unauthenticated(f"base model {hub_id!r}: the hub refuses the token (401); {new}", source="hub")
    if status == 403:
        what = "the token may not read it" if has_token else give
        return PermissionDenied(f"base model {hub_id!r}: the hub forbids the download (403): {what}", source="hub")
    reason = f"{type(error).__name__}: {str(error)[:300]}"
    return Unavailable(f"base model {hub_id!r} can't be downloaded from the hub: {reason}")


def check_space(folder: Path, total: int) -> None:
    """Raises PreconditionFailed if `total` bytes do not fit on the disk of the folder, which need not exist."""
    free = shutil.disk_usage(folder.parent).free
    if total > free:
        raise PreconditionFailed(f"the download has {total} bytes, and the disk of {folder.parent} has {free} free")


@contextlib.contextmanager
def watching_size(folder: Path, total: int, progress: Progress) -> Iterator[None]:
    """Report the size of `folder` in bytes four times per second inside the `with` block."""
    stop = threading.Event()

    def watch() -> None:
        while not stop.wait(0.25):
            progress("download", min(_size(folder), total), total)

    progress("download", 0, total)
    thread = threading.Thread(target=watch, name="download-progress", daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
    progress("download", total, total)


def _size(folder: Path) -> int:
    size = 0
    for parent, _, files in os.walk(folder):
        for file in files:
            with contextlib.suppress(FileNotFoundError):  # moved since the list was read
                size += os.stat(os.path.join(parent, file)).st_size
    return size
