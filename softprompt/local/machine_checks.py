"""Checks of this machine for `softprompt doctor`. They raise nothing and need only the light install."""

from __future__ import annotations

import os
import platform
import re
import shutil
import socket
import sys
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from importlib import import_module
from importlib.metadata import version
from pathlib import Path

from shared.kernels import build
from shared.package_names import package_name
from shared.process.container_limits import memory_left_bytes, usable_cpus
from shared.process.user_cache import expanded
from softprompt.extras import missing_packages

GIB = 1 << 30
_OTHER_DIRECTORY = "choose another directory, or change its owner"
MIN_MEMORY_BYTES, MIN_DISK_BYTES, MIN_SHARED_MEMORY_BYTES = 2 * GIB, 2 * GIB, 512 << 20
"""For both services with the smallest catalogued model. Ray keeps its objects in /dev/shm."""


@dataclass(frozen=True)
class Finding:
    """One line: what was looked at, what was found and, for a problem, how to fix it."""

    subject: str
    text: str
    is_problem: bool = False
    fix: str = ""


def installation() -> Iterator[Finding]:
    """Versions, and what is installed besides the client."""
    yield Finding("softprompt", f"{version('softprompt')}, Python {platform.python_version()}, {platform.platform()}")
    missing = missing_packages("trainer", "inference")
    if missing:
        fix = "pip install 'softprompt[all]' if services shall run here"
        yield Finding("packages", f"the client alone; services need {len(missing)} more packages", fix=fix)
    else:
        yield Finding("packages", "client and services")


def has_services() -> bool:
    """Whether services can run here."""
    return sys.platform != "win32" and not missing_packages("trainer", "inference")


def settings() -> Iterator[Finding]:
    """Variables that would stop the start of a process: unknown names and impossible values."""
    from shared.config import ConfigError, load_settings  # needs what services need

    modules = {name: f"{package_name(f'{name}_service')}.config" for name in ("trainer", "inference")}
    modules |= {name: f"softprompt.{name}.settings" for name in ("gateway", "router")}
    variables = {variable.upper() for variable in os.environ}
    for name, module in modules.items():
        prefix = f"SOFTPROMPT_{name.upper()}_"
        if not any(variable.startswith(prefix) for variable in variables):
            continue  # the defaults are sound, and importing a service takes seconds
        try:
            load_settings(getattr(import_module(module), f"{name.title()}Settings"))
        except ConfigError as error:
            for line in str(error).splitlines():
                if re.split("[=: ]", line)[0] in variables:  # `softprompt up` sets what has no default
                    yield Finding("setting", line, True, f"unset or change it; docs/settings.md describes {prefix}...")


def memory() -> Iterator[Finding]:
    """Free memory and processors, within the limits of the container and of the shell."""
    if sys.platform != "win32":
        from resource import RLIM_INFINITY, RLIMIT_AS, getrlimit

        if (limit := getrlimit(RLIMIT_AS)[0]) != RLIM_INFINITY:
            text = f"ulimit -v limits each process to {limit / GIB:.1f} GiB of address space"
            fix = "ulimit -v unlimited, in the shell that starts the services"
            yield Finding("address space", f"{text}; torch and Ray reserve a lot", True, fix)
    available = _available_bytes()
    if available is None:
        return
    text = f"{available / GIB:.1f} GiB free, {usable_cpus()} processors"
    if available < MIN_MEMORY_BYTES:
        fix = f"both services need {MIN_MEMORY_BYTES // GIB} GiB: end other programs, or raise the container's limit"
        yield Finding("memory", text, True, fix)
    else:
        yield Finding("memory", text)


def disk(data: Path, models: Path) -> Iterator[Finding]:
    """Room in the directories that services write to."""
    places = {"disk (data)": data, "disk (models)": models, "disk (temporary)": Path(tempfile.gettempdir())}
    for name, path in places.items():
        existing = _existing(path)
        free = shutil.disk_usage(existing).free
        text = f"{free / GIB:.1f} GiB free for {path}"
        if reason := _not_writable(path):
            yield Finding(name, reason, True, _OTHER_DIRECTORY)
        elif free < MIN_DISK_BYTES:
            yield Finding(name, text, True, f"free {MIN_DISK_BYTES // GIB} GiB, or choose another directory")
        else:
            yield Finding(name, text)
    shared = Path("/dev/shm")
    if shared.is_dir() and (free := shutil.disk_usage(shared).free) < MIN_SHARED_MEMORY_BYTES:
        fix = "in Docker: --shm-size=1g; otherwise Ray uses the slower disk"
        yield Finding("shared memory", f"{free >> 20} MiB free in {shared}", True, fix)


def compiler() -> Iterator[Finding]:
    """Whether the kernels for this processor can be compiled, or are compiled in the installed wheel."""
    if not build.fits_platform():
        yield Finding("kernels", "PyTorch's own on this platform")
        return
    if any(build.SOURCES.parent.glob("*.so")):
        yield Finding("kernels", "compiled in the installed package")
    elif found := build.compiler_version():
        yield Finding("kernels", found.splitlines()[0])
    else:
        fix = "apt-get install gcc (training and serving are slower without it)"
        yield Finding("kernels", f"no {build.COMPILER}: the slower PyTorch path is used", True, fix)
    with suppress(OSError):
        if not {"avx2", "asimd"} & set(Path("/proc/cpuinfo").read_text().split()):
            yield Finding("processor", "neither AVX2 nor NEON: PyTorch's own kernels are used")


def model(name: str, models: Path) -> Iterator[Finding]:
    """Whether the default base model is here."""
    directory = models / name
    if not (directory / "config.json").is_file():
        fix = f"softprompt models pull {name} (`softprompt up` does it, too)"
        yield Finding("model", f"{name} is not in {models}", fix=fix)
    elif not any(directory.glob("*.safetensors")):
        fix = f"remove {directory}, then softprompt models pull {name}"
        yield Finding("model", f"{directory} has no weights", True, fix)
    else:
        yield Finding("model", str(directory))


def store(url: str) -> Iterator[Finding]:
    """The prompt store: a directory that can be written, or the package that an object store needs."""
    from shared.store.open import OBJECT_SCHEMES, RULE  # needs what services need

    scheme, separator, _ = url.partition("://")
    if separator and scheme not in {"file", "memory", *OBJECT_SCHEMES}:
        yield Finding("store", f"{url[:200]!r} has an unknown scheme", True, f"the store {RULE}")
        return
    if separator and scheme in OBJECT_SCHEMES:
        missing = missing_packages("object-store")
        fix = "pip install 'softprompt[object-store]'"
        found = f"{scheme}://... needs {', '.join(missing)}" if missing else f"{scheme}://..., asked by the services"
        yield Finding("store", found, bool(missing), fix if missing else "")
        return
    path = expanded(url.removeprefix("file://"))
    if reason := _not_writable(path):
        yield Finding("store", reason, True, _OTHER_DIRECTORY)
    else:
        yield Finding("store", str(path) if path.exists() else f"{path} will be created")


def port(name: str, address: str) -> Iterator[Finding]:
    """Whether a service that does not answer could be started at its port on this machine."""
    host, _, number = address.rpartition(":")
    if host.strip("[]") not in ("127.0.0.1", "localhost", "::1") or not number.isdecimal():
        return
    with suppress(OSError), socket.create_connection((host.strip("[]"), int(number)), timeout=1):
        fix = f"end it (ss -ltnp 'sport = :{number}' names it), or choose another port: softprompt up --{name}-port"
        yield Finding(f"port {number}", "in use by another program, or by a service that hangs", True, fix)
        return
    yield Finding(f"port {number}", "free")


def _available_bytes() -> int | None:
    """Free memory of this machine (Linux) and its control group; None if unknown."""
    with suppress(OSError, ValueError, IndexError):
        lines = Path("/proc/meminfo").read_text().splitlines()
        available = next(int(line.split()[1]) << 10 for line in lines if line.startswith("MemAvailable"))
        left = memory_left_bytes()
        return available if left is None else min(available, left)
    return None


def _not_writable(path: Path) -> str:
    """Why files can't be written there; empty if they can, also where the directory must be created first."""
    existing = _existing(path)
    try:
        with tempfile.TemporaryFile(dir=existing):  # root passes os.access on any file system
            return ""
    except OSError as error:
        return f"can't write to {existing}: {error.strerror}"


def _existing(path: Path) -> Path:
    """The path, or its nearest parent that exists."""
    path = path.absolute()
    while not path.exists():
        path = path.parent
    return path
