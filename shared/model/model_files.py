"""Checks the files of a model directory without reading the weights."""

from __future__ import annotations

import json
from pathlib import Path

from shared.errors import NotFound, PreconditionFailed, Unavailable
from shared.model.safetensors_file import complaint_about

INDEX = "model.safetensors.index.json"
_SINGLE = "model.safetensors"
_ADAPTER = "adapter_config.json"
_DESCRIPTIONS = (
    "config.json",
    "generation_config.json",
    "tokenizer_config.json",
    "tokenizer.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
)
"""Files that hold a JSON object."""


def check_files(path: Path, name: str) -> int:
    """Check that every shard exists and that sizes agree with the headers, without reading the data.

    Returns the number of tensors in the files that are read. Raises NotFound for pickled weights, PreconditionFailed
    for an adapter, Unavailable for files that are missing or can't be read.
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
    if special := [file.name for file in files if not file.is_file()]:  # reading a pipe would wait for its writer
        raise Unavailable(
            f"base model {name!r} has weights that can't be read: {special[0]} is not a regular file; copy it again"
        )
    check_no_adapter(path, name)
    shards, found = _shards(path, name), {file.name for file in files}
    if files and not shards and _SINGLE not in found:
        raise Unavailable(
            f"base model {name!r} is incomplete: neither {_SINGLE} nor {INDEX} is there beside {files[0].name}; "
            f"if that file is the whole model, call it {_SINGLE}"
        )
    if missing := shards - found:
        raise Unavailable(
            f"base model {name!r} is incomplete: {len(missing)} weight files are missing, the first is {min(missing)}"
        )
    num_tensors, read = 0, weight_files(path)
    for file in files:
        try:
            with safe_open(file, "numpy") as tensors:
                num_tensors += len(tensors.keys()) if file in read else 0
        except (SafetensorError, OSError) as error:
            raise Unavailable(
                f"base model {name!r} has weights that can't be read: {file.name}: "
                f"{complaint_about(file) or first_line(error)}"
            ) from error
    return num_tensors


def weight_files(path: Path) -> list[Path]:
    """The files whose weights transformers reads: the single one, even beside an index, else those of the index.

    Raises Unavailable for an index that can't be read.
    """
    single = path / _SINGLE
    return [single] if single.is_file() else sorted(path / name for name in _shards(path, path.name))


def check_no_adapter(path: Path, name: str) -> None:
    """Raises PreconditionFailed for a PEFT adapter. transformers would load its model, wherever that is."""
    if (path / _ADAPTER).is_file():
        raise PreconditionFailed(
            f"base model {name!r} has an {_ADAPTER}, so it is an adapter: merge it into its model (PEFT's "
            "merge_and_unload and save_pretrained), or remove that file if the weights beside it are a whole model's"
        )


def _shards(path: Path, name: str) -> set[str]:
    """The files in the index of a sharded model; empty for a single file."""
    index = path / INDEX
    if not index.is_file():
        return set()
    try:
        content = json.loads(index.read_bytes())
        shards = set(map(str, content["weight_map"].values()))
        if not shards or not isinstance(content["metadata"], dict):  # transformers needs both
            raise ValueError("it names no weights")
        if outside := sorted(shard for shard in shards if shard == ".." or shard != Path(shard).name):
            raise ValueError(f"it names {outside[0]!r}, which is not a file beside it")
        return shards
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise Unavailable(f"base model {name!r} has a {INDEX} that can't be read: {first_line(error)}") from error


def damaged_json(path: Path) -> str:
    """Names a file of a model directory that should be a JSON object and is not, with the reason; else empty."""
    for file in filter(Path.exists, (path / name for name in _DESCRIPTIONS)):
        try:
            if not isinstance(json.loads(file.read_text(encoding="utf-8")), dict):
                return f"{file.name} is not a JSON object"
        except (OSError, ValueError, RecursionError) as error:
            return f"{file.name} is not valid JSON ({first_line(error)})"
    return ""


def first_line(error: Exception) -> str:
    """The first line of an error's text, with the next if it ends in a colon, shortened; the type if it has no text."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    return " ".join(lines[: 2 if lines[0].endswith(":") else 1])[:200]
