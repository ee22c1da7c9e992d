"""The three kinds of store behind one fixture; the object store is a real S3-compatible server on loopback."""

from __future__ import annotations

import logging
import uuid
from collections.abc import Iterator
from pathlib import Path

import boto3
import pytest
from moto.server import ThreadedMotoServer

from shared.store import PromptStore, open_store
from shared.store.base import ObjectBackend
from shared.store.open import open_backend

BUCKET = "prompts"


@pytest.fixture(scope="session")
def s3_endpoint() -> Iterator[str]:
    """The address of a fresh S3-compatible server with one bucket."""
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    server.start()
    host, port = server.get_host_and_port()
    endpoint = f"http://{host}:{port}"
    keys = {"aws_access_key_id": "test", "aws_secret_access_key": "test", "region_name": "us-east-1"}
    boto3.client("s3", endpoint_url=endpoint, **keys).create_bucket(Bucket=BUCKET)
    yield endpoint
    server.stop()


@pytest.fixture
def s3_url(s3_endpoint: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """A new prefix in the bucket, with the environment that points to it."""
    monkeypatch.setenv("AWS_ENDPOINT", s3_endpoint)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test")
    monkeypatch.setenv("AWS_REGION", "us-east-1")
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
