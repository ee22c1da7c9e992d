"""Compiles this folder's C once and loads it. Everything here has a slower stand-in in a library: where there is no compiler, or another
processor, nothing but speed is missing.

An image is built with the kernels beside their source (`python -m inference_service.engine.native_kernels`); elsewhere they lie in the
user's cache. Plain C with OpenMP: torch has loaded the OpenMP library already, under the name that the compiler asks for, so both share one
team of threads.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import logging
import os
import platform
import shutil
import stat
import subprocess
import tempfile
from pathlib import Path

import torch

from shared.user_cache import user_cache

log = logging.getLogger(__name__)

SOURCE = Path(__file__).with_name("native_kernels.c")
MACHINE = "x86_64"
COMPILER = "gcc"
FLAGS = ("-O3", "-fno-math-errno", "-fopenmp", "-shared", "-fPIC")
_COMPILE_SECONDS = 120


@functools.cache
def load() -> ctypes.CDLL | None:
    """The kernels, compiled if need be (some seconds); None where they can't be had, for a reason that is logged."""
    if platform.machine() != MACHINE or torch.backends.cpu.get_cpu_capability() != "AVX512":
        return None
    try:
        kernels = ctypes.CDLL(str(_find() or compile_into(user_cache() / "kernels")))
    except (OSError, RuntimeError, subprocess.SubprocessError) as error:
        log.warning("compiled kernels are missing, tokens take longer: %s", error)
        return None
    kernels.linear.argtypes = [ctypes.c_void_p] * 4 + [ctypes.c_int64] * 3 + [ctypes.c_int]
    kernels.linear.restype = ctypes.c_int
    kernels.rms_norm.argtypes = [ctypes.c_void_p] * 3 + [ctypes.c_int64] * 2 + [ctypes.c_float]
    kernels.rms_norm.restype = None
    kernels.attention.argtypes = [ctypes.c_void_p] * 8 + [ctypes.c_int64] * 9 + [ctypes.c_float, ctypes.c_int]
    kernels.attention.restype = ctypes.c_int
    return kernels


def compile_into(folder: Path) -> Path:
    """Returns the library. Raises RuntimeError with the reason, OSError, or SubprocessError."""
    compiler = shutil.which(COMPILER)
    if compiler is None:
        raise RuntimeError(f"no {COMPILER} is installed")
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    with tempfile.TemporaryDirectory(dir=folder) as scratch:  # whoever compiles at the same time makes the same file
        made = Path(scratch) / "made.so"
        done = subprocess.run([compiler, *FLAGS, SOURCE, "-o", made], capture_output=True, text=True, timeout=_COMPILE_SECONDS)
        if done.returncode != 0:
            raise RuntimeError(f"{COMPILER} refused {SOURCE.name}: {done.stderr.strip()[-500:]}")
        made.chmod(0o755)  # whatever the umask: see `_is_ours`
        os.replace(made, folder / _file_name())
    return folder / _file_name()


def _find() -> Path | None:
    beside, cached = SOURCE.parent / _file_name(), user_cache() / "kernels" / _file_name()
    if beside.is_file():
        return beside
    return cached if cached.is_file() and _is_ours(cached) and _is_ours(cached.parent) else None


def _is_ours(path: Path) -> bool:
    """Nobody else could have put code there for us to run: a cache may lie in a folder that everybody writes to."""
    status = path.stat()
    return status.st_uid in (0, os.getuid()) and not status.st_mode & (stat.S_IWGRP | stat.S_IWOTH)


def _file_name() -> str:
    """Names the source that it was made of, so that another version's is never loaded."""
    return f"kernels-{hashlib.sha256(SOURCE.read_bytes() + repr(FLAGS).encode()).hexdigest()[:16]}.so"


if __name__ == "__main__":
    print(compile_into(SOURCE.parent) if platform.machine() == MACHINE else f"no kernels for {platform.machine()}")
