"""`softprompt store` on directories."""

from __future__ import annotations

from pathlib import Path

from shared.store import open_store
from shared.store.layout import blob_key
from tests.shared.prompt.blobs import make_blob
from tests.softprompt.cli_runner import CliRunner


def test_copy_and_verify(cli: CliRunner, tmp_path: Path) -> None:
    source, target = str(tmp_path / "source"), str(tmp_path / "target")
    record = open_store(source).publish("tone", make_blob("tone", 1), job="job-1")
    assert "copied    1 versions" in cli("store", "copy", source, target).out
    assert cli("store", "copy", source, target, "--json").json[0]["versions_present"] == 1
    assert cli("store", "verify", target).out == "1 versions, 1 aliases, 1 blobs, revision 2: no problems\n"

    (tmp_path / "target" / blob_key(record.digest)).write_bytes(b"x" * record.size_bytes)
    broken = cli("store", "verify", target)
    assert broken.code == 1
    assert "PROBLEM" in broken.out
    assert "tone@default" in broken.out
    assert cli("store", "verify", target, "--json").json[0]["sound"] is False
    assert "repaired  1 blobs" in cli("store", "copy", source, target, "--check").out
    assert cli("store", "verify", target).code == 0


def test_errors_name_the_store(cli: CliRunner, tmp_path: Path) -> None:
    nowhere = cli("store", "verify", str(tmp_path / "nowhere"))
    assert (nowhere.code, "nowhere" in nowhere.err) == (3, True)
    assert not (tmp_path / "nowhere").exists()
    source = str(tmp_path / "source")
    open_store(source)
    assert cli("store", "copy", source, source).code == 2
    assert cli("store", "copy", source, "ftp://x").code == 2
