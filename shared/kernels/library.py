"""The compiled library: where it is found, and the signature of every function, in one table.

ctypes, not `torch.library`: a kernel of a decode step at batch 1 takes microseconds, and a step that is not fused calls
about 210 of them. 210 calls of RMSNorm for one row took 0.99 ms through ctypes, 1.42 ms as operators of
`torch.library.Library` and 1.97 ms as a `torch.library.custom_op` with fake and autograd registrations (`calls` in
`benchmarks/results/avx512/kernels.json`, written by `make bench-kernels`). Shape checks are in
`ops`, gradients in `autograd.Function`s beside what uses them.
"""

from __future__ import annotations

import ctypes
import functools
import logging
import platform
import subprocess
from pathlib import Path
from typing import Any

import torch

from shared.kernels import build
from shared.process.user_cache import is_ours, private_folder, user_cache

log = logging.getLogger(__name__)

PACKAGE = Path(__file__).parent
_POINTER, _SIZE, _INT, _FLOAT = ctypes.c_void_p, ctypes.c_int64, ctypes.c_int, ctypes.c_float


class Heads(ctypes.Structure):
    """`Heads` of packed_attention.c: a view of `[tokens][heads][width]`; strides count numbers."""

    _fields_ = (("data", _POINTER), ("token_stride", _SIZE), ("head_stride", _SIZE))


class PackedAttention(ctypes.Structure):
    """`PackedAttention` of packed_attention.c."""

    _fields_ = (
        *((name, _SIZE) for name in ("heads", "kv_heads", "width", "window", "half", "num_items")),
        *(("items", _POINTER), ("rows", _POINTER), ("scale", _FLOAT), ("threads", _INT)),
    )


class Weights(ctypes.Structure):
    """`Weights` of weights.h: a packed matrix."""

    _fields_ = (("panels", _POINTER), ("bias", _POINTER), ("inputs", _SIZE), ("outputs", _SIZE), ("bits", _SIZE))


class Norm(ctypes.Structure):
    """`Norm` of decoder.c."""

    _fields_ = (("weight", _POINTER), ("epsilon", _FLOAT))


class Layer(ctypes.Structure):
    """`Layer` of decoder.c."""

    _fields_ = (
        *((name, Norm) for name in ("norm", "query_norm", "key_norm", "mlp_norm")),
        *((name, Weights) for name in ("qkv", "out", "gate_up", "down")),
        *(("keys", _POINTER), ("values", _POINTER), ("window", _SIZE), ("scale", _FLOAT)),
    )


class Decoder(ctypes.Structure):
    """`Decoder` of decoder.c."""

    _fields_ = (
        ("layers", ctypes.POINTER(Layer)),
        *((name, _SIZE) for name in ("num_layers", "hidden", "heads", "kv_heads", "width", "inner")),
        *((name, _SIZE) for name in ("row_stride", "head_stride", "max_rows", "max_length")),
        *(("norm", Norm), ("head", Weights)),
    )


class Draw(ctypes.Structure):
    """`Draw` of sampling.c: how one row of logits is sampled."""

    _fields_ = (
        *((name, _POINTER) for name in ("logits", "allowed", "changed", "changes")),
        *((name, _SIZE) for name in ("num_changed", "half", "top_k")),
        *((name, ctypes.c_double) for name in ("top_p", "min_p", "number")),
        ("scale", _FLOAT),
    )


_HEADS, _CALL = ctypes.POINTER(Heads), ctypes.POINTER(PackedAttention)
_MODE = (_INT, _INT)  # is it bfloat16, how many threads
SIGNATURES: dict[str, tuple[Any, tuple[Any, ...]]] = {
    "linear": (_INT, (ctypes.POINTER(Weights), _POINTER, _POINTER, _SIZE, _INT)),
    "expands_blocks": (_INT, (_SIZE,)),
    "find_codes": (_INT, (_POINTER, _SIZE, _INT, *(_POINTER,) * 2, _INT)),
    "cached_attention": (_INT, (*(_POINTER,) * 8, *(_SIZE,) * 9, _FLOAT, _INT)),
    "decoder_step": (_INT, (ctypes.POINTER(Decoder), *(_POINTER,) * 5, _SIZE, _POINTER, _SIZE, _POINTER, _INT)),
    "packed_attention": (_INT, (_CALL, *(_HEADS,) * 4, *(_POINTER,) * 5)),
    "choose_tokens": (_INT, (ctypes.POINTER(Draw), ctypes.POINTER(_SIZE), _SIZE, _SIZE, _INT)),
    "rms_norm": (None, (*(_POINTER,) * 4, _SIZE, _SIZE, _FLOAT, *_MODE)),
    "rms_norm_backward": (None, (*(_POINTER,) * 5, _SIZE, _SIZE, *_MODE)),
    "swiglu": (None, (*(_POINTER,) * 3, *(_SIZE,) * 3, *_MODE)),
    "swiglu_backward": (None, (*(_POINTER,) * 4, _SIZE, *_MODE)),
    "rotate": (None, (_POINTER, _SIZE, _SIZE, *(_POINTER,) * 3, *(_SIZE,) * 3, _INT, *_MODE)),
}
"""Of each function in `csrc/`: its result (a status, or None) and its arguments."""


@functools.cache
def load() -> ctypes.CDLL | None:
    """The library, with all signatures; None, with one log line, if it can't be had here. Compiles in a checkout."""
    name = instruction_set()
    if name is None:
        log.info("compiled kernels need Linux on a processor with AVX2 or NEON; using the slower PyTorch path")
        return None
    try:
        library = ctypes.CDLL(str(find(name)))
    except (OSError, RuntimeError, subprocess.SubprocessError) as error:
        log.warning("compiled kernels unavailable; using the slower PyTorch path: %s", error)
        return None
    for symbol, (result, arguments) in SIGNATURES.items():
        function = getattr(library, symbol)
        function.restype, function.argtypes = result, arguments
    return library


def instruction_set() -> str | None:
    """The best one of `build.INSTRUCTION_SETS` that this processor has; None if there is none.

    torch's own variable ATEN_CPU_CAPABILITY (`default`, `avx2`) lowers it, for torch's kernels and for ours.
    """
    if not build.fits_platform():
        return None
    known = build.INSTRUCTION_SETS[platform.machine()]
    if "neon" in known:  # every processor of that kind has it
        return "neon"
    found, capabilities = torch.backends.cpu.get_cpu_capability().lower(), torch.cpu.get_capabilities()
    if found == "avx512" and capabilities.get("avx512_vnni"):
        has_tiles = capabilities.get("amx_bf16") and capabilities.get("avx512_bf16")
        found = "avx512_amx" if has_tiles else "avx512_vnni"
    return found if found in known and capabilities.get("f16c") else None  # torch doesn't ask for F16C


def find(instruction_set: str) -> Path:
    """The library of exactly these sources: the wheel's, else, in a checkout, the user cache's, compiled if needed.

    Raises RuntimeError, OSError or subprocess.SubprocessError with the reason if there is none.
    """
    packaged = next(PACKAGE.glob(build.library_name(None, instruction_set)), None)
    if packaged is not None:
        return packaged
    if not (PACKAGE.parents[1] / "pyproject.toml").is_file():  # only a checkout compiles at run time
        raise RuntimeError("this installation was built without them, where no compiler was found")
    cache = user_cache() / "kernels"
    if cache.is_dir() and is_ours(cache):
        for cached in cache.glob(build.library_name(build.compiler_version(), instruction_set)):
            if is_ours(cached):
                return cached
    return build.compile_into(private_folder(cache), instruction_set)
