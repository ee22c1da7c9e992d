"""Object stores: the probe, the address, and a server that goes away."""

from __future__ import annotations

import builtins
import json
from typing import Any

import pytest

from shared.errors import InvalidInput, PreconditionFailed, Unavailable
from shared.store import open_store
from shared.store.object import ObjectStoreBackend
from shared.store.open import open_backend
from tests.shared.store.clouds import cloud


class _Unconditional(ObjectStoreBackend):
    """A server that accepts a conditional write and ignores its condition."""

    def create(self, key: str, data: bytes) -> bool:
        self.put(key, data)
        return True


def test_a_store_that_ignores_conditions_is_refused(s3_url: str) -> None:
    with pytest.raises(PreconditionFailed, match="conditional writes"):
        _Unconditional.open(s3_url)
    assert ObjectStoreBackend.open(s3_url).list("probe/") == []


CLOUDS = {
    "az://container/deep/prefix": (
        "/container/deep/prefix/",
        {"AZURE_STORAGE_ACCOUNT_NAME": "account", "AZURE_STORAGE_ACCOUNT_KEY": "YWJj"},
    ),
    "abfss://container@account.dfs.core.windows.net/prefix": (
        "/container/prefix/",
        {"AZURE_STORAGE_ACCOUNT_KEY": "YWJj"},
    ),
    "gs://bucket/prefix": ("/bucket/prefix/", {}),
}


@pytest.mark.parametrize("honest", [True, False])
@pytest.mark.parametrize("url", CLOUDS)
def test_azure_and_google_by_their_addresses(url: str, honest: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each protocol sends the condition in its own header, and the probe detects a server that ignores it."""
    place, environment = CLOUDS[url]
    with cloud(honest) as (address, objects):
        key = {
            "gcs_base_url": address,
            "disable_oauth": True,
            "client_email": "",
            "private_key": "",
            "private_key_id": "",
        }
        monkeypatch.setenv("GOOGLE_SERVICE_ACCOUNT_KEY", json.dumps(key))
        monkeypatch.setenv("AZURE_STORAGE_ENDPOINT", address)
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        if not honest:
            with pytest.raises(PreconditionFailed, match="conditional writes"):
                open_backend(url)
            return
        backend = open_backend(url)
        assert objects == {}, "the probe leaves nothing"
        assert backend.create("log/1.json", b"first")
        assert not backend.create("log/1.json", b"second")
        backend.put("log/2.json", b"third")
        assert objects == {f"{place}log/1.json": b"first", f"{place}log/2.json": b"third"}
        assert backend.get("log/1.json", 64) == b"first"
        backend.delete("log/1.json")
        assert backend.get("log/1.json", 64) is None


def test_azure_without_an_account_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AZURE_STORAGE_ACCOUNT_NAME", raising=False)
    with pytest.raises(InvalidInput, match="environment variables"):
        open_store("az://container/prefix")


def test_a_missing_bucket_is_said(s3_url: str) -> None:
    with pytest.raises(Unavailable, match="bucket does not exist"):
        open_store("s3://no-such-bucket/prefix")


def test_a_server_that_does_not_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shared.store.object._RETRY", {"max_retries": 0})
    for name, value in {
        "AWS_ENDPOINT": "http://127.0.0.1:1",
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
    }.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(Unavailable) as caught:
        open_store("s3://prompts")
    assert caught.value.message == "the prompt store does not answer"


def test_without_the_extra_the_message_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    importer = builtins.__import__

    def without_obstore(name: str, *args: Any, **kwargs: Any) -> Any:
        if name.startswith("obstore"):
            raise ImportError(name)
        return importer(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without_obstore)
    with pytest.raises(PreconditionFailed, match=r"softprompt\[object-store\]"):
        open_store("s3://prompts/prefix")


@pytest.mark.parametrize("url", ["", "ftp://host/x", "file://host/x", "file://", "s3://", "https://host/x"])
def test_urls_that_name_no_store(url: str) -> None:
    with pytest.raises(InvalidInput, match="store"):
        open_store(url)
