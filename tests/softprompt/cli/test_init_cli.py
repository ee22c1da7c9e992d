"""`softprompt init` writes files to start from, and overwrites none."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.softprompt.cli_runner import CliRunner


@pytest.mark.parametrize("task", ["generation", "classification", "chat"])
@pytest.mark.parametrize("suffix", ["jsonl", "csv", "xlsx"])
def test_a_starter_file_can_be_trained_and_is_never_overwritten(
    cli: CliRunner, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, task: str, suffix: str
) -> None:
    monkeypatch.chdir(tmp_path)
    name = f"my examples.{suffix}"
    done = cli("init", name, "--task", task)
    assert done.code == 0
    assert f"  softprompt data check 'my examples.{suffix}'" in done.out
    (report,) = cli("data", "check", name, "--json").json
    assert (report["task"], report["num_problems"]) == (task, 0)
    assert report["repetition"]["num_duplicates"] == report["repetition"]["num_contradictions"] == 0
    page = Path(f"{name}.README.md")
    assert "one example" in page.read_text()
    Path(name).write_text("mine")
    assert cli("init", name).code == 4
    Path(name).rename("elsewhere")
    assert cli("init", name).code == 4, "the page is there"
    assert not Path(name).exists()


def test_a_starter_file_follows_no_link_to_nowhere(cli: CliRunner, tmp_path: Path) -> None:
    for name in ("a.csv", "b.csv.README.md"):
        (tmp_path / name).symlink_to(tmp_path / "elsewhere")
        assert cli("init", str(tmp_path / name.removesuffix(".README.md"))).code == 4
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.csv", "b.csv.README.md"]


def test_a_page_that_appears_meanwhile_is_not_overwritten(
    cli: CliRunner, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = tmp_path / "a.csv.README.md"
    monkeypatch.setattr("softprompt.data.writing.write_rows", lambda *_: page.write_text("mine"))
    assert cli("init", str(tmp_path / "a.csv")).code == 4
    assert page.read_text() == "mine"


def test_a_starter_file_may_have_a_name_that_is_no_utf8(cli: CliRunner, tmp_path: Path) -> None:
    name = os.fsdecode(bytes(tmp_path) + b"/caf\xe9.csv")
    assert cli("init", name).code == 0
    assert sorted(os.listdir(bytes(tmp_path))) == [b"caf\xe9.csv", b"caf\xe9.csv.README.md"]


def test_init_refuses_what_is_no_file(cli: CliRunner, tmp_path: Path) -> None:
    for name, code in (
        (str(tmp_path), 2),
        ("", 2),
        ("/", 2),
        ("-", 2),
        (str(tmp_path / "no/a.jsonl"), 3),
        (str(tmp_path / "a.doc"), 2),
    ):
        assert cli("init", name).code == code
    assert list(tmp_path.iterdir()) == []
