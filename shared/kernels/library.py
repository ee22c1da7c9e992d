"""The compiled library: where it is found, and its structures and signatures, which `csrc/kernels.h` declares.

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
import re
import subprocess
from pathlib import Path
from typing import Any

import torch

from shared.kernels import build
from shared.process.user_cache import is_ours, private_folder, user_cache

log = logging.getLogger(__name__)

PACKAGE = Path(__file__).parent
_NUMBERS = {"int64_t": ctypes.c_int64, "int": ctypes.c_int, "float": ctypes.c_float, "double": ctypes.c_double}
_NOT_CODE = re.compile(r"/\*.*?\*/|^#[^\n]*", re.DOTALL | re.MULTILINE)
_STRUCTURE = re.compile(r"typedef struct \{(.*?)\} (\w+);", re.DOTALL)
_FUNCTION = re.compile(r"(\w+) (\w+)\((.*?)\);", re.DOTALL)
_DECLARED = re.compile(r"(?:const )?(\w+) (\*?\w+(?:, \*?\w+)*)")
Signature = tuple[Any, tuple[Any, ...]]
"""A function's result, a status or None, and its arguments."""


def declarations(header: str) -> tuple[dict[str, type[ctypes.Structure]], dict[str, Signature]]:
    """The structures and the functions that a header declares in the form of `kernels.h`, by name. Raises ValueError or
    KeyError for another form.
    """
    code, structures = _NOT_CODE.sub("", header), dict[str, type[ctypes.Structure]]()

    def declared(text: str) -> list[tuple[str, Any]]:
        """Names and types of `const T *a, b`: pointers to our structures are typed, other pointers are not."""
        match = _DECLARED.fullmatch(" ".join(text.split()))
        if match is None or not (match[1] in _NUMBERS or match[1] in structures or "*" in text):
            raise ValueError(f"can't read {text.strip()!r} in kernels.h")
        kind, found = match[1], []
        for name in match[2].split(", "):
            pointer = ctypes.POINTER(structures[kind]) if kind in structures else ctypes.c_void_p
            found.append((name.strip("*"), pointer if name.startswith("*") else structures.get(kind) or _NUMBERS[kind]))
        return found

    for body, name in _STRUCTURE.findall(code):
        fields = [field for line in body.split(";") if line.strip() for field in declared(line)]
        structures[name] = type(name, (ctypes.Structure,), {"_fields_": fields})
    functions: dict[str, Signature] = {}
    for result, name, arguments in _FUNCTION.findall(_STRUCTURE.sub("", code)):
        kinds = tuple(kind for argument in arguments.split(",") for _, kind in declared(argument))
        functions[name] = (None if result == "void" else _NUMBERS[result], kinds)
    return structures, functions


STRUCTURES, SIGNATURES = declarations((build.SOURCES / "kernels.h").read_text(encoding="utf-8"))


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
