"""The file to send for an import: one safetensors file. Files that could run code when they are read are refused.

Accepted are a safetensors file; a directory of PEFT with adapter_model.safetensors and adapter_config.json, from prompt
tuning, P-tuning, prefix tuning or a cartridge; a directory of TGIS or caikit with decoder.safetensors. The trainer
checks the tensors and does not rely on these checks.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from shared.errors import InvalidInput, NotFound
from shared.model.safetensors_file import complaint_about
from shared.pickles import PICKLE_BEGINNINGS
from shared.process.user_cache import expanded
from softprompt.interchange.adapter import CONFIG_FILE, WEIGHTS_FILE

MAX_BYTES = 256 << 20
_MAX_CONFIG_BYTES = 1 << 20
_DECODER_FILE, _ENCODER_STEM = "decoder.safetensors", "encoder"
_PICKLES = {".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt", ".joblib"}
_SOFT_PROMPTS = ("PROMPT_TUNING", "P_TUNING")
"""PEFT's kinds whose file holds embeddings; for P-tuning (Liu et al. 2021) these are the encoder's outputs."""
_KEY_VALUES = ("PREFIX_TUNING", "CARTRIDGE")
"""PEFT's kinds whose file holds keys and values of each layer, also if a projection made them in training."""
_WHY = "a pickle can run any code when it is read"
_REMEDY = "on a machine that may run its code, convert it with safetensors.torch.save_file(...)"


@dataclass(frozen=True)
class ImportSource:
    """The `file` to send; the other files of its directory are only checked. `kind`: PROMPT or PREFIX if one of
    them names it.
    """

    file: Path
    kind: str = ""
    base_model: str = ""
    """The hub id or directory of the base model that PEFT names; empty if no file names one."""

    @classmethod
    def of(cls, path: str | Path) -> ImportSource:
        """Raises NotFound, or InvalidInput naming the file and the reason."""
        path = expanded(path)
        try:
            if path.is_dir():
                return _of_directory(path)
            if not path.is_file():
                if path.exists() or str(path) == "-":
                    reason = f"{str(path)!r} is neither a file nor a directory; a pipe can't be imported"
                    raise InvalidInput.of("file", reason)
                raise NotFound("file", str(path))
            return cls(_checked(path))
        except OSError as error:
            raise InvalidInput.of("file", f"can't read {str(path)!r}: {error.strerror or error}") from error


def _refused(file: Path, reason: str) -> InvalidInput:
    return InvalidInput.of("file", f"{file} {reason}")


def _of_directory(directory: Path) -> ImportSource:
    names = {entry.name for entry in directory.iterdir() if entry.is_file()}
    if encoders := sorted(name for name in names if Path(name).stem == _ENCODER_STEM):
        raise _refused(directory / encoders[0], "belongs to an encoder-decoder model; only decoder models are served")
    if WEIGHTS_FILE in names:
        file = _checked(directory / WEIGHTS_FILE)
        return ImportSource(file, *_checked_config(directory / CONFIG_FILE, file))
    if _DECODER_FILE in names:
        return ImportSource(_checked(directory / _DECODER_FILE))
    if pickles := sorted(name for name in names if Path(name).suffix in _PICKLES):
        raise _refused(directory / pickles[0], f"is refused: {_WHY}; {_REMEDY}")
    wanted = f"{WEIGHTS_FILE} with {CONFIG_FILE} (PEFT) or {_DECODER_FILE} (TGIS, caikit)"
    raise _refused(directory, f"must contain {wanted}; or give one .safetensors file")


def _checked(file: Path) -> Path:
    if file.suffix.lower() in _PICKLES:
        raise _refused(file, f"is refused: {_WHY}; {_REMEDY}")
    size = file.stat().st_size
    if size > MAX_BYTES:
        raise _refused(file, f"has {size} bytes; a version takes at most {MAX_BYTES}")
    with file.open("rb") as opened:
        if opened.read(8).startswith(PICKLE_BEGINNINGS):
            raise _refused(file, f"is refused: its content is a pickle or an archive of one; {_WHY}")
    if complaint := complaint_about(file):
        raise _refused(file, f"is not a valid safetensors file: {complaint}")
    return file


def _checked_config(file: Path, weights: Path) -> tuple[str, str]:
    """An adapter's kind of prefix and its base model. Raises InvalidInput for no prefix or contradicting files."""
    if not file.is_file():
        raise _refused(file, "is missing, so the kind of adapter is unknown; give the .safetensors file itself")
    if file.stat().st_size > _MAX_CONFIG_BYTES:
        raise _refused(file, f"is not an adapter configuration: it has {file.stat().st_size} bytes")
    try:
        config: Any = json.loads(file.read_bytes())
    except (ValueError, RecursionError) as error:
        raise _refused(file, "can't be read as JSON") from error
    if not isinstance(config, dict):
        raise _refused(file, "is not an adapter configuration")
    if (kind := config.get("peft_type")) not in (*_SOFT_PROMPTS, *_KEY_VALUES):
        expected = ", ".join((*_SOFT_PROMPTS, *_KEY_VALUES))
        raise _refused(file, f"has peft_type {str(kind)[:40]!r}; expected one of {expected}")
    if (task := config.get("task_type")) not in ("CAUSAL_LM", None):
        raise _refused(file, f"has task_type {str(task)[:40]!r}; only CAUSAL_LM is supported")
    if (submodules := config.get("num_transformer_submodules")) not in (1, None):
        raise _refused(file, f"has num_transformer_submodules {str(submodules)[:40]!r}; a decoder model has 1")
    announced, found = config.get("num_virtual_tokens"), _num_rows(weights)
    if type(announced) is int and found is not None and announced != found:
        raise _refused(file, f"has num_virtual_tokens {announced}, but {weights.name} has {found}")
    base_model = config.get("base_model_name_or_path")
    return "PREFIX" if kind in _KEY_VALUES else "PROMPT", base_model if isinstance(base_model, str) else ""


def _num_rows(weights: Path) -> int | None:
    """Rows of PEFT's tensor, from the file's header; None if it can't be read, which the trainer then reports."""
    with weights.open("rb") as opened:
        length = int.from_bytes(opened.read(8), "little")
        header = opened.read(min(length, _MAX_CONFIG_BYTES))
    try:
        rows: Any = json.loads(header)["prompt_embeddings"]["shape"][0]
    except (ValueError, LookupError, TypeError, RecursionError):
        return None
    return rows if type(rows) is int else None
