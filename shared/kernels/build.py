"""Compiles `csrc/` into one shared library: when a wheel is built, and at run time in a checkout.

Imports only the standard library, because wheels are built where torch is not installed. The C uses OpenMP under the
name that gcc asks for; torch has already loaded that library, so both share one team of threads. There is one library
for each instruction set: a wheel has all of its kind of processor, a checkout compiles the one that it loads.
"""

from __future__ import annotations

import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Any

SYSTEM = "Linux"
_AVX512 = ("-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl", "-mfma", "-mf16c")
INSTRUCTION_SETS: dict[str, dict[str, tuple[str, ...]]] = {
    "x86_64": {
        "avx512_amx": (*_AVX512, "-mavx512vnni", "-mavx512bf16", "-mamx-tile", "-mamx-bf16"),
        "avx512_vnni": (*_AVX512, "-mavx512vnni"),
        "avx512": _AVX512,
        "avx2": ("-mavx2", "-mfma", "-mf16c"),
    },
    "aarch64": {"neon": ()},
}
"""Of each kind of processor: the instruction sets that the kernels are compiled for, with the compiler's options."""
COMPILER = "gcc"
FLAGS = ("-O3", "-fno-math-errno", "-ffp-contract=fast", "-fopenmp", "-shared", "-fPIC")
SOURCES = Path(__file__).with_name("csrc")
_TIMEOUT_SECONDS = 600  # it takes ten seconds, and minutes on a busy machine


def fits_platform() -> bool:
    """Whether the kernels can be compiled for, and run on, this operating system and kind of processor."""
    return platform.system() == SYSTEM and platform.machine() in INSTRUCTION_SETS


def compile_into(folder: Path, instruction_set: str) -> Path:
    """Compiles all sources into `folder`, in a few seconds, and returns the library's path.

    `instruction_set` is one of this machine's `INSTRUCTION_SETS`. Processes that compile at the same time produce the
    same file. Raises RuntimeError with the compiler's reason, OSError or subprocess.SubprocessError.
    """
    version = compiler_version()
    if version is None:
        raise RuntimeError(f"no {COMPILER} is installed")
    sources, target = sorted(map(str, SOURCES.glob("*.c"))), folder / library_name(version, instruction_set)
    options = INSTRUCTION_SETS[platform.machine()][instruction_set]
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        made = Path(scratch) / "made.so"
        command = [COMPILER, *FLAGS, *options, *sources, "-o", str(made), "-lm"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=_TIMEOUT_SECONDS)
        if done.returncode != 0:
            raise RuntimeError(f"{COMPILER} failed: {done.stderr.strip()[-500:]}")
        made.chmod(0o755)  # independent of the umask: the loader refuses a file that others can write to
        os.replace(made, target)
    return target


def add_to_wheel(build_data: dict[str, Any]) -> bool:
    """Compiles beside these sources and marks the wheel as one for this platform, in hatchling's `build_data`.

    False, with nothing changed, on another platform or without a compiler: such a wheel is pure Python and uses the
    PyTorch path. Raises like `compile_into`.
    """
    if not fits_platform() or compiler_version() is None:
        return False
    for instruction_set in INSTRUCTION_SETS[platform.machine()]:
        compile_into(SOURCES.parent, instruction_set)
    build_data["pure_python"], build_data["tag"] = False, f"py3-none-{SYSTEM.lower()}_{platform.machine()}"
    return True


def library_name(version: str | None, instruction_set: str) -> str:
    """The file name for a compiler's version; None gives a glob pattern that matches every version.

    The name contains a digest of all sources and headers with the flags, and one of the compiler's version, so a
    library made from anything else is never loaded.
    """
    compiler = "*" if version is None else hashlib.sha256(version.encode()).hexdigest()[:8]
    return f"kernels-{instruction_set}-{_source_digest()}-{compiler}.so"


def compiler_version() -> str | None:
    """The first line of the compiler's `--version`; None if there is no compiler. Raises OSError or SubprocessError."""
    if shutil.which(COMPILER) is None:
        return None
    done = subprocess.run([COMPILER, "--version"], capture_output=True, text=True, timeout=_TIMEOUT_SECONDS, check=True)
    return done.stdout.partition("\n")[0]


def _source_digest() -> str:
    digest = hashlib.sha256(repr((FLAGS, INSTRUCTION_SETS)).encode())
    for path in sorted(SOURCES.iterdir()):
        if path.suffix in (".c", ".h"):
            content = path.read_bytes()
            digest.update(f"{path.name} {len(content)}\n".encode() + content)
    return digest.hexdigest()[:16]
