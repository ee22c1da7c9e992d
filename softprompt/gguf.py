"""Converts a GGUF file to a model directory (config, tokenizer, bfloat16 safetensors).

Usage: `python -m softprompt.gguf GGUF DIRECTORY`. `softprompt.models` starts it as a separate process, because it needs
torch and a gigabyte of memory for some seconds, and environment variables that silence libraries when they are
imported. Reports each finished part as a line `done total` on stdout.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from shared.model.model_files import first_line

PARTS = 3
_MAX_ARRAY = 1 << 21
"""Elements of an array in the header. Tokenizers have some hundred thousand; the reader makes an object for each."""


def convert(gguf: Path, directory: Path) -> None:
    """Write the model. Raises ValueError for no whole GGUF file, and the errors of transformers for one that it can't
    convert; the caller must remove an incomplete directory.
    """
    check_file(gguf)
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    from shared.model import fingerprint
    from shared.model.base_model import inspect
    from shared.process.threads import set_torch_threads

    set_torch_threads()
    tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    _report(1)
    model = AutoModelForCausalLM.from_pretrained(
        gguf.parent, gguf_file=gguf.name, dtype=torch.bfloat16, quantization_config=GgufConfig(dequantize=True)
    )
    _restore_pre_tokenizer(gguf, tokenizer)
    tokenizer.model_max_length = model.config.max_position_embeddings
    _report(2)
    model.save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    for weights in directory.glob("*.safetensors"):
        # safetensors writes files with mode 0600, but other users of the machine load them, too.
        weights.chmod((directory / "config.json").stat().st_mode)
    _check_plain(directory)
    fingerprint.ship(directory)
    inspect(directory)
    _report(3)


def check_file(gguf: Path) -> None:
    """Raises ValueError for a file that is not a complete GGUF file, or one that can't be converted."""
    from gguf import GGUFReader, GGUFValueType

    class BoundedReader(GGUFReader):  # type: ignore[misc]
        """Refuses arrays that the file does not contain, which GGUFReader reads forever."""

        def _get_field_parts(self, orig_offs: int, raw_type: int) -> Any:
            if raw_type == GGUFValueType.ARRAY:
                kind, count = int(self._get(orig_offs, "uint32")[0]), int(self._get(orig_offs + 4, "uint64")[0])
                scalar = self.gguf_scalar_to_np.get(kind)  # a string has 8 bytes of length, an array 12
                if count > _MAX_ARRAY or count * (scalar().itemsize if scalar else 8) > len(self.data) - orig_offs:
                    raise ValueError(f"an array of {count} elements is more than the file has, or than is read")
            return super()._get_field_parts(orig_offs, raw_type)

    try:
        reader = BoundedReader(gguf)
        parts = reader.fields.get("split.count")
    except Exception as error:  # the reader maps the file and takes its numbers as they are
        raise ValueError(f"it is not a GGUF file, or it is cut short ({first_line(error)})") from error
    if reader.byte_order == "S":
        raise ValueError("its numbers have another byte order than this machine's; fetch the file for this one")
    if parts is not None and parts.contents() > 1:
        raise ValueError(f"it is one of {parts.contents()} parts; join them with `gguf-split --merge`")


def _restore_pre_tokenizer(gguf: Path, tokenizer: Any) -> None:
    """Set the pre-tokenizer that the file names (`tokenizer.ggml.pre`), which transformers ignores. `smollm` splits off
    each digit before the byte-level rule: without it, spaces before numbers become other tokens than in the model's
    training.
    """
    from gguf import GGUFReader
    from tokenizers import pre_tokenizers

    field = GGUFReader(gguf).fields.get("tokenizer.ggml.pre")
    if field is not None and field.contents() == "smollm":
        tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
            [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
        )


def _check_plain(directory: Path) -> None:
    from safetensors import safe_open

    if "quantization_config" in json.loads((directory / "config.json").read_bytes()):
        raise ValueError("the saved config still has a quantization_config")
    for file in directory.glob("*.safetensors"):
        with safe_open(file, framework="pt") as tensors:
            names = tensors.keys()
            types = {tensors.get_slice(name).get_dtype() for name in names}
        if types != {"BF16"}:
            raise ValueError(f"the saved weights are {sorted(types)} and not bfloat16")


def _report(done: int) -> None:
    sys.stdout.write(f"{done} {PARTS}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit("usage: python -m softprompt.gguf GGUF DIRECTORY")
    try:
        convert(Path(sys.argv[1]), Path(sys.argv[2]))
    except Exception as error:
        kind = "" if isinstance(error, ValueError) else f"{type(error).__name__}: "
        sys.exit(f"{sys.argv[1]} can't be converted: {kind}{first_line(error)}")
