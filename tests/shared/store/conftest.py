"""The three kinds of store behind one fixture; the object store is a real S3-compatible server on loopback."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from shared.store import PromptStore, open_store
from shared.store.base import ObjectBackend
from shared.store.open import open_backend
from tests.s3_server import BUCKET, s3_server


@pytest.fixture(scope="session")
def s3_environment() -> Iterator[dict[str, str]]:
    """The environment variables that point to a fresh S3-compatible server with one bucket."""
    with s3_server() as environment:
        yield environment


@pytest.fixture(scope="session")
def s3_endpoint(s3_environment: dict[str, str]) -> str:
    """The server's address."""
    return s3_environment["AWS_ENDPOINT"]


@pytest.fixture
def s3_url(s3_environment: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> str:
    """A new prefix in the bucket, with the environment that points to it."""
    for name, value in s3_environment.items():
        monkeypatch.setenv(name, value)
    return f"s3://{BUCKET}/{uuid.uuid4().hex}"


@pytest.fixture(params=["memory", "local", "object"])
def backend(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[ObjectBackend]:
    """Each test with this fixture runs on all three kinds of store."""
    urls = {"memory": "memory://", "local": str(tmp_path / "store")}
    url = urls.get(request.param) or str(request.getfixturevalue("s3_url"))
    opened = open_backend(url)
    yield opened
    opened.close()


@pytest.fixture
def store(backend: ObjectBackend) -> PromptStore:
    return PromptStore(backend)


@pytest.fixture
def local_store(tmp_path: Path) -> PromptStore:
    return open_store(str(tmp_path / "store"))
