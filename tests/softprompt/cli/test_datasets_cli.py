"""`softprompt datasets` against a real trainer."""

from __future__ import annotations

from pathlib import Path

from softprompt import Client
from tests.softprompt.cli.test_prompts_cli import cli, client, services
from tests.softprompt.cli_runner import CliRunner

__all__ = ["cli", "client", "services"]


def test_datasets_are_listed_shown_and_deleted(cli: CliRunner, client: Client, tmp_path: Path) -> None:
    assert cli("datasets", "list").out == "no datasets\n"
    small = client.upload_dataset([{"input": "a", "output": "b"}]).dataset
    large = client.upload_dataset([{"input": str(number), "label": "xy"[number % 2]} for number in range(9)]).dataset
    listed = cli("datasets", "list")
    assert listed.out.index(large) < listed.out.index(small), "the largest first"
    assert listed.out.splitlines()[-1].startswith("2 datasets, ")
    assert [item["name"] for item in cli("datasets", "list", "--json").json] == [large, small]
    assert [item["name"] for item in cli("datasets", "list", "--json", "--limit", "1").json] == [large], (
        "of all, not of the first page"
    )
    assert cli("datasets", "list", "--limit", "1").out.splitlines()[-1].startswith("the largest 1 of 2 datasets, ")

    (shown,) = cli("datasets", "show", large, "--json").json
    assert (shown["num_examples"], shown["task"], shown["num_labels"], shown["num_jobs"]) == (9, "CLASSIFICATION", 2, 0)
    assert shown["create_time"] <= shown["last_use_time"]
    assert "examples   9" in cli("datasets", "show", large.removeprefix("datasets/")).out

    assert cli("datasets", "delete", small).out == f"{small} is deleted\n"
    again = cli("datasets", "delete", small)
    assert again.code == 3
    assert "does not exist" in again.err
    assert cli("datasets", "show", "nonsense").code == 3
    assert cli("datasets", "delete", large, "--json").json == [{"deleted": large}]
    assert client.list_datasets() == []
