"""Settings: valid values are read; an invalid one stops the start with the name of its variable."""

from __future__ import annotations

import traceback
from pathlib import Path

import pytest
from pydantic import Field, SecretStr

from shared.config import (
    ConfigError,
    ServerSettings,
    SettingsPart,
    describe_settings,
    fields_in_order,
    load_settings,
    settings_config,
)
from shared.loopback import is_loopback


class ExampleSettings(ServerSettings):
    model_config = settings_config("SOFTPROMPT_EXAMPLE_")

    store: str
    """Where prompts are kept.

    A directory or a URL.
    """


class Cache(SettingsPart):
    """A part with a field that is no setting of the process."""

    cache_bytes: int = Field(default=10, ge=1)
    """Size of the cache."""


class WholeCache(Cache):
    pause_seconds: float = 0.5


class SettingsWithCache(ExampleSettings, Cache):
    model_config = settings_config("SOFTPROMPT_EXAMPLE_")


def test_a_part_declares_its_settings_and_gets_only_these(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOFTPROMPT_EXAMPLE_STORE", "here")
    monkeypatch.setenv("SOFTPROMPT_EXAMPLE_CACHE_BYTES", "20")
    monkeypatch.setenv("SOFTPROMPT_EXAMPLE_OIDC_GROUPS_CLAIM", "teams")
    settings = load_settings(SettingsWithCache)
    assert WholeCache.of(settings) == WholeCache(cache_bytes=20)
    assert Cache.of(settings).model_dump() == {"cache_bytes": 20}
    assert list(fields_in_order(SettingsWithCache))[:1] == ["store"]
    assert "  SOFTPROMPT_EXAMPLE_CACHE_BYTES  (default 10)\n      Size of the cache." in describe_settings(
        SettingsWithCache
    )
    monkeypatch.setenv("SOFTPROMPT_EXAMPLE_CACHE_BYTES", "0")
    with pytest.raises(ConfigError, match=r"SOFTPROMPT_EXAMPLE_CACHE_BYTES='0': must be at least 1"):
        load_settings(SettingsWithCache)


def test_a_part_reads_no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CACHE_BYTES", "20")
    assert Cache().cache_bytes == 10


def test_values_come_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOFTPROMPT_EXAMPLE_STORE", "here")
    monkeypatch.setenv("SOFTPROMPT_EXAMPLE_PORT", "8080")
    settings = load_settings(ExampleSettings)
    assert (settings.store, settings.port, settings.host) == ("here", 8080, "127.0.0.1")


def test_whitespace_around_a_value_is_no_part_of_it_and_an_empty_path_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    class Settings(ExampleSettings):
        model_config = settings_config("SOFTPROMPT_EXAMPLE_")
        file: Path | None = None
        data_dir: Path = Path("data")

    for name, value in {"STORE": "s3://bucket/prefix\n", "PORT": " 50051", "FILE": "", "DATA_DIR": " \n"}.items():
        monkeypatch.setenv(f"SOFTPROMPT_EXAMPLE_{name}", value)
    settings = load_settings(Settings)
    assert (settings.store, settings.port) == ("s3://bucket/prefix", 50051)
    assert (settings.file, settings.data_dir) == (None, Path("data"))


def test_every_problem_is_named_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOFTPROMPT_EXAMPLE_PORT", "eighty")
    monkeypatch.setenv("SOFTPROMPT_EXAMPLE_STROE", "here")
    with pytest.raises(ConfigError) as caught:
        load_settings(ExampleSettings)
    text = str(caught.value)
    assert "SOFTPROMPT_EXAMPLE_PORT='eighty'" in text
    assert "SOFTPROMPT_EXAMPLE_STORE" in text
    assert "SOFTPROMPT_EXAMPLE_STROE is not a setting; do you mean 'SOFTPROMPT_EXAMPLE_STORE'?" in text


def test_secrets_of_bad_values_are_not_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    class WithSecrets(ExampleSettings):
        database_url: str = Field(default="", pattern="^sqlite")
        api_secret: SecretStr = Field(default=SecretStr(""), max_length=3)

    monkeypatch.setenv("SOFTPROMPT_EXAMPLE_STORE", "here")
    monkeypatch.setenv("SOFTPROMPT_EXAMPLE_DATABASE_URL", "postgresql://me:hunter2@db/x")
    monkeypatch.setenv("SOFTPROMPT_EXAMPLE_API_SECRET", "hunter2")
    monkeypatch.setenv("SOFTPROMPT_EXAMPLE_OTLP_ENDPOINT", "ftp://me:hunter2@collector/x")
    with pytest.raises(ConfigError) as caught:
        load_settings(WithSecrets)
    text = "".join(traceback.format_exception(caught.value))
    assert "hunter2" not in text
    for name in ("DATABASE_URL", "API_SECRET", "OTLP_ENDPOINT"):
        assert f"SOFTPROMPT_EXAMPLE_{name}" in text


def test_the_help_text_names_every_variable() -> None:
    text = describe_settings(ExampleSettings)
    assert "SOFTPROMPT_EXAMPLE_STORE  (required)\n      Where prompts are kept.\n\n      A directory or a URL." in text
    assert all(not line or line.startswith(("  SOFTPROMPT_EXAMPLE_", "      ")) for line in text.splitlines())
    assert "\n\n  SOFTPROMPT_EXAMPLE_" not in text, "no blank line between settings"
    assert "SOFTPROMPT_EXAMPLE_METRICS_PORT" in text


@pytest.mark.parametrize(
    ("host", "loopback"),
    [
        ("127.0.0.1", True),
        ("127.8.9.10", True),
        ("localhost", True),
        ("LOCALHOST", True),
        ("::1", True),
        ("[::1]", True),
        ("127.0.0.1.evil.example", False),
        ("127.evil.example", False),
        ("127.", False),
        ("localhost.evil.example", False),
        ("::1%evil", False),
        ("[::1", False),
        ("0.0.0.0", False),
        ("::", False),
        ("128.0.0.1", False),
        ("unix:/run/socket", False),
        ("", False),
    ],
)
def test_only_addresses_and_localhost_are_this_machine(
    host: str, loopback: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert is_loopback(host) is loopback
    monkeypatch.setenv("SOFTPROMPT_EXAMPLE_STORE", "here")
    monkeypatch.setenv("SOFTPROMPT_EXAMPLE_HOST", host)
    if loopback:
        assert load_settings(ExampleSettings).is_plaintext
    else:
        with pytest.raises(ConfigError, match="other machines could reach"):
            load_settings(ExampleSettings)


@pytest.mark.parametrize(
    ("url", "taken"),
    [
        ("https://issuer.example/keys", True),
        ("http://127.0.0.1:8080/keys", True),
        ("http://[::1]:8080/keys", True),
        ("http://127.0.0.1.evil.example/keys", False),
        ("http://127.0.0.1@evil.example/keys", False),
        ("http://issuer.example/keys", False),
        ("file:///keys", False),
    ],
)
def test_an_issuers_keys_come_by_https_or_from_this_machine(
    url: str, taken: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = {"store": "here", "callers_file": "f", "oidc_issuer": "i", "oidc_audience": "a", "oidc_jwks_url": url}
    for name, value in settings.items():
        monkeypatch.setenv(f"SOFTPROMPT_EXAMPLE_{name.upper()}", value)
    if taken:
        assert load_settings(ExampleSettings).oidc_jwks_url == url
    else:
        with pytest.raises(ConfigError, match="must be an https URL"):
            load_settings(ExampleSettings)
