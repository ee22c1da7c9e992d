"""Reads a model's weights: one file or shards, tied, half precision, quantised, or linked from a hub cache.

Errors say what to do. Missing weights are an error, never replaced by random numbers.
"""

from __future__ import annotations

import json
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

from shared.errors import NotFound, PreconditionFailed, Unavailable
from shared.model.safetensors_file import complaint_about

INDEX = "model.safetensors.index.json"


def check_files(path: Path, name: str) -> None:
    """Check that every shard exists and that sizes agree with the headers, without reading the data.

    Raises NotFound for pickled weights, Unavailable for files that are missing or can't be read.
    """
    from safetensors import SafetensorError, safe_open

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
            with safe_open(file, "pt"):
                pass
        except (SafetensorError, OSError) as error:
            raise Unavailable(
                f"base model {name!r} has weights that can't be read: {file.name}: "
                f"{complaint_about(file) or first_line(error)}"
            ) from error


def load_weights(path: Path, name: str, dtype: torch.dtype, attention: str | None, device_map: Any) -> Any:
    """The model on the CPU, or on the devices given by `device_map` and its quantisation.

    Raises PreconditionFailed, naming the model, if this installation can't load it, Unavailable if the files can't be
    read.
    """
    from transformers import AutoModelForCausalLM
    from transformers.quantizers.auto import AutoHfQuantizer

    quantisation = _quantisation(path)
    quantised = str(quantisation.get("quant_method", "unknown method"))
    is_known = not quantisation
    with suppress(ValueError):  # no method is named
        is_known = is_known or AutoHfQuantizer.supports_quant_method(quantisation)
    if not is_known:
        raise PreconditionFailed(
            f"{name} is quantised ({quantised}) and can't be loaded here: transformers does not know the method"
        )
    options: dict[str, Any] = {
        "dtype": dtype,
        "attn_implementation": attention,
        "device_map": device_map,
        "trust_remote_code": False,
    }
    try:
        model, report = AutoModelForCausalLM.from_pretrained(path, output_loading_info=True, **options)
    except torch.OutOfMemoryError:
        raise
    except OSError as error:
        raise Unavailable(f"base model {name!r} has weights that can't be read: {first_line(error)}") from error
    except Exception as error:
        what = f"{name} is quantised ({quantised}) and" if quantisation else name
        why = f"{type(error).__name__}: {first_line(error)}"
        if "ignore_mismatched_sizes" in why:  # advice that only a program can follow
            why = "its weights have other shapes than its config.json says"
        raise PreconditionFailed(f"{what} can't be loaded here: {why}") from error
    if missing := sorted(report.get("missing_keys") or ()):
        raise PreconditionFailed(
            f"{name} lacks {len(missing)} of the weights that its config.json asks for, the first is {missing[0]}"
        )
    return model


def _shards(path: Path, name: str) -> set[str]:
    """The files in the index of a sharded model; empty for a single file."""
    index = path / INDEX
    if not index.is_file():
        return set()
    try:
        return set(map(str, json.loads(index.read_text())["weight_map"].values()))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise Unavailable(f"base model {name!r} has a {INDEX} that can't be read: {first_line(error)}") from error


def _quantisation(path: Path) -> dict[str, Any]:
    """The quantisation entry of config.json; empty for plain weights."""
    found = json.loads((path / "config.json").read_text()).get("quantization_config")
    return found if isinstance(found, dict) else {}


def first_line(error: Exception) -> str:
    """The first line of an error's text, shortened; the error's type if it has no text."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
