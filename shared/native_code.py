"""C that is compiled once and loaded. Whatever is written so has a slower stand-in in a library: where there is no compiler, or another
processor, nothing but speed is missing.

An image brings the libraries beside their sources (`python -m shared.native_code SOURCE ...`); elsewhere they lie in the user's cache.
Plain C with OpenMP: torch has loaded the OpenMP library already, under the name that the compiler asks for, so both share one team of
threads.
"""

from __future__ import annotations

import ctypes
import hashlib
import logging
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import torch

from shared.process.user_cache import is_ours, private_folder, user_cache

log = logging.getLogger(__name__)

MACHINE = "x86_64"
COMPILER = "gcc"
HEADER = Path(__file__).with_name("avx512.h")
FLAGS = ("-O3", "-fno-math-errno", "-fopenmp", "-shared", "-fPIC")
_COMPILE_SECONDS = 120


def load(source: Path) -> ctypes.CDLL | None:
    """`source`, compiled if need be (some seconds); None on another processor, or where it can't be compiled, which is logged."""
    if platform.machine() != MACHINE or torch.backends.cpu.get_cpu_capability() != "AVX512":
        return None
    try:
        return ctypes.CDLL(str(_find(source) or compile_into(source, private_folder(user_cache() / "kernels"))))
    except (OSError, RuntimeError, subprocess.SubprocessError) as error:
        log.warning("compiled kernels are missing, everything takes longer: %s", error)
        return None


def compile_into(source: Path, folder: Path) -> Path:
    """Returns the library. Raises RuntimeError with the reason, OSError, or SubprocessError."""
    compiler = shutil.which(COMPILER)
    if compiler is None:
        raise RuntimeError(f"no {COMPILER} is installed")
    with tempfile.TemporaryDirectory(dir=folder) as scratch:  # whoever compiles at the same time makes the same file
        made = Path(scratch) / "made.so"
        command = [compiler, *FLAGS, "-I", str(HEADER.parent), str(source), "-o", str(made), "-lm"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=_COMPILE_SECONDS)
        if done.returncode != 0:
            raise RuntimeError(f"{COMPILER} refused {source.name}: {done.stderr.strip()[-500:]}")
        made.chmod(0o755)  # whatever the umask: see `is_ours`
        os.replace(made, folder / _file_name(source))
    return folder / _file_name(source)


def _find(source: Path) -> Path | None:
    beside, cached = source.parent / _file_name(source), user_cache() / "kernels" / _file_name(source)
    if beside.is_file():
        return beside
    return cached if cached.is_file() and is_ours(cached) and is_ours(cached.parent) else None


def _file_name(source: Path) -> str:
    """Names what it was made of, so that another version's is never loaded."""
    digest = hashlib.sha256(source.read_bytes() + HEADER.read_bytes() + repr(FLAGS).encode())
    return f"{source.stem}-{digest.hexdigest()[:16]}.so"


if __name__ == "__main__":
    for name in sys.argv[1:]:
        print(compile_into(Path(name), Path(name).parent) if platform.machine() == MACHINE else f"no kernels for {platform.machine()}")
