"""The webhooks file: what it refuses, and that its secrets appear nowhere."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest

from shared.config import ConfigError
from tests.trainer_service.webhooks.receiver import SECRET
from trainer_service.webhooks.endpoints import Endpoints


def write(path: Path, **changes: Any) -> Path:
    entry = {"name": "ci", "url": "https://ci.example/hook", "secrets": [SECRET], **changes}
    path.write_text(json.dumps({"endpoints": [entry]}))
    return path


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"url": "http://ci.example/hook"}, "url"),
        ({"url": "file:///etc/passwd"}, "url"),
        ({"url": "https://user:hunter2@ci.example/"}, "url"),
        ({"url": "https://ci.example:port/"}, "url"),
        ({"url": "https:///hook"}, "url"),
        ({"url": "https://ci.example/\r\nhost: other"}, "url"),
        ({"secrets": []}, "secrets"),
        ({"secrets": [SECRET[6:]]}, "secrets"),
        ({"secrets": ["whsec_c2hvcnQ="]}, "secrets"),
        ({"secrets": ["whsec_not base64, but long enough to be one"]}, "secrets"),
        ({"events": ["job.begun"]}, "events"),
        ({"events": []}, "events"),
        ({"prompts": ["UPPER"]}, "prompts"),
        ({"name": "a b"}, "name"),
        ({"nmae": "ci"}, "nmae"),
    ],
)
def test_a_bad_entry_is_refused_with_its_field_and_without_its_secrets(
    tmp_path: Path, changes: dict[str, Any], field: str
) -> None:
    with pytest.raises(ConfigError) as error:
        Endpoints(write(tmp_path / "webhooks.json", **changes))
    assert f"endpoints.0.{field}" in str(error.value)
    assert all(secret not in str(error.value) for secret in ["hunter2", *(changes.get("secrets") or [SECRET])])


def test_two_endpoints_with_one_name_and_a_missing_file_are_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "webhooks.json")
    content = json.loads(path.read_text())
    path.write_text(json.dumps({"endpoints": content["endpoints"] * 2}))
    with pytest.raises(ConfigError, match="same name"):
        Endpoints(path)
    with pytest.raises(ConfigError, match="No such file"):
        Endpoints(tmp_path / "missing.json")


def test_a_changed_file_is_read_again_and_a_broken_one_is_not(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    endpoints = Endpoints(write(tmp_path / "webhooks.json", url="http://127.0.0.1:1/x"))
    write(tmp_path / "webhooks.json", url="http://ci.example/x", plaintext=True)
    endpoints.look()
    assert endpoints.current[0].origin == "http://ci.example"
    with caplog.at_level(logging.ERROR):
        write(tmp_path / "webhooks.json", url="ftp://ci.example/x")
        endpoints.look()
    assert endpoints.current[0].origin == "http://ci.example"
    assert "webhooks file is invalid" in caplog.text
    assert SECRET not in caplog.text + repr(endpoints.current)
