"""Prometheus' own programs, which `make test` fetches: promtool, and a server that scrapes for as long as a test needs
it.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import urllib.parse
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml

from tests.waiting import wait_until

FETCHED = Path(__file__).parents[2] / ".cache" / "prometheus"


def program(name: str) -> str:
    """Where prometheus or promtool is. Skips the test where there is none, and says so."""
    fetched = FETCHED / name
    found = str(fetched) if fetched.is_file() and os.access(fetched, os.X_OK) else shutil.which(name)
    if found is None:
        pytest.skip(f"LOUD: no {name}: run `make tools`. Nothing of alert rules and dashboards was checked with it")
    return found


def promtool(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """Run promtool; what it writes as text. Skips the test where there is none.

    It ends soon, so its garbage is collected less often, which saves a sixth of its processor time.
    """
    command, environment = [program("promtool"), *arguments], os.environ | {"GOGC": "400"}
    return subprocess.run(command, capture_output=True, text=True, env=environment)


class Prometheus:
    """A client of a running server."""

    def __init__(self, url: str) -> None:
        self._url = url

    def get(self, path: str, **parameters: str) -> Any:
        """The `data` of an answer. Raises AssertionError with the server's words for a refusal."""
        try:
            with urllib.request.urlopen(f"{self._url}/{path}?{urllib.parse.urlencode(parameters)}") as response:
                return json.load(response)["data"]
        except urllib.error.HTTPError as error:
            with error:
                raise AssertionError(f"{parameters}: {json.load(error)['error']}") from None

    def query(self, expression: str) -> list[Any]:
        return self.get("api/v1/query", query=expression)["result"]

    def is_up(self) -> bool:
        try:
            with urllib.request.urlopen(f"{self._url}/-/ready", timeout=5) as response:
                return bool(response.status == 200)
        except OSError:
            return False


def _ports(process_id: int) -> list[int]:
    """The ports that a process listens on."""
    try:
        connections = psutil.Process(process_id).net_connections("tcp")
    except psutil.Error:
        return []
    return [one.laddr.port for one in connections if one.status == psutil.CONN_LISTEN]


@contextmanager
def running_prometheus(folder: Path, config: dict[str, Any]) -> Iterator[Prometheus]:
    """Scrape by `config` until the block ends, on a free port."""
    (folder / "prometheus.yml").write_text(yaml.safe_dump(config))
    command = [
        program("prometheus"),
        f"--config.file={folder / 'prometheus.yml'}",
        f"--storage.tsdb.path={folder / 'data'}",
        "--web.listen-address=127.0.0.1:0",
        "--log.level=warn",
    ]
    with (folder / "log").open("w") as log, subprocess.Popen(command, stdout=log, stderr=log) as process:
        try:
            wait_until(lambda: _ports(process.pid) or process.poll() is not None)
            assert process.poll() is None, (folder / "log").read_text()
            server = Prometheus(f"http://127.0.0.1:{_ports(process.pid)[0]}")
            wait_until(server.is_up)
            yield server
        finally:
            process.terminate()
