"""Checks the files of a model directory without reading the weights."""

from __future__ import annotations

import json
from pathlib import Path

from shared.errors import NotFound, Unavailable
from shared.model.safetensors_file import complaint_about

INDEX = "model.safetensors.index.json"


def check_files(path: Path, name: str) -> None:
    """Check that every shard exists and that sizes agree with the headers, without reading the data.

    Raises NotFound for pickled weights, Unavailable for files that are missing or can't be read.
    """
    from safetensors import SafetensorError, safe_open  # the light client imports this module, too

    files = sorted(file for file in path.glob("*.safetensors") if not file.is_dir())
    if not files and (pickled := sorted([*path.glob("*.bin"), *path.glob("*.pt"), *path.glob("*.pth")])):
        raise NotFound(
            "base model",
            name,
            f"its weights are pickled ({pickled[0].name}), which can run code when they are read; save them as "
            "safetensors (`AutoModelForCausalLM.from_pretrained(DIR).save_pretrained(NEW_DIR)` "
            "on a machine that may run that code)",
        )
    if broken := sorted(file.name for file in path.iterdir() if file.is_symlink() and not file.exists()):
        raise Unavailable(
            f"base model {name!r} is incomplete: {broken[0]} is a link to a file that is gone; pull the model again"
        )
    missing = _shards(path, name) - {file.name for file in files if file.exists()}
    if missing:
        raise Unavailable(
            f"base model {name!r} is incomplete: {len(missing)} weight files are missing, the first is {min(missing)}"
        )
    for file in files:
        try:
            with safe_open(file, "numpy"):
                pass
        except (SafetensorError, OSError) as error:
            raise Unavailable(
                f"base model {name!r} has weights that can't be read: {file.name}: "
                f"{complaint_about(file) or first_line(error)}"
            ) from error


def _shards(path: Path, name: str) -> set[str]:
    """The files in the index of a sharded model; empty for a single file."""
    index = path / INDEX
    if not index.is_file():
        return set()
    try:
        return set(map(str, json.loads(index.read_text())["weight_map"].values()))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise Unavailable(f"base model {name!r} has a {INDEX} that can't be read: {first_line(error)}") from error


def first_line(error: Exception) -> str:
    """The first line of an error's text, shortened; the error's type if it has no text."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
