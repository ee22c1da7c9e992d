"""Files of examples on the command line: it shows what was read, and for what it did not understand the command that
mends it.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from prompttuning.v1 import tuning_pb2

from shared.errors import InvalidInput
from shared.values.enums import TaskKind
from softprompt.cli.data import label_set, mending_command
from tests.softprompt.cli_runner import CliRunner
from tests.softprompt.conftest import Services
from tests.softprompt.fakes import DATASET


@pytest.fixture
def table(tmp_path: Path) -> str:
    path = tmp_path / "my reviews.csv"
    path.write_text("id;review;stars\n1;good;5\n2;bad;1\n")
    return str(path)


def test_the_advice_of_a_refusal_is_a_command_that_works(
    cli: CliRunner, here: Services, table: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    refused = cli("tune", table, "--prompt", "stars", "--no-follow")
    assert refused.code == 2
    assert (
        "my reviews.csv: dataset line 2: has 'id', 'review', 'stars': say which is the input and label" in refused.err
    )
    command = f"tune '{table}' --prompt stars --no-follow --input review --label stars --drop-extra"
    assert f"hint: softprompt {command};" in refused.err
    done = cli(
        "tune", table, "--prompt", "stars", "--no-follow", "--input", "review", "--label", "stars", "--drop-extra"
    )
    assert done.code == 0
    assert (
        "my reviews.csv: 2 examples (CSV with semicolons); read as input = review, label = stars; "
        "dropped: id (2 values)" in done.err
    )
    content = here.trainer.uploads[0][1].decode()
    assert [json.loads(line) for line in content.splitlines()] == [
        {"input": "good", "label": "5"},
        {"input": "bad", "label": "1"},
    ]


def test_a_file_is_uploaded_and_its_name_printed(cli: CliRunner, here: Services, table: str) -> None:
    done = cli("datasets", "upload", table, "--input=review", "--output", "stars", "--drop-extra")
    assert (done.code, done.out) == (0, f"{DATASET}\n")
    assert (
        cli("datasets", "upload", table, "--input", "review", "--output", "stars", "--drop-extra", "--json").json[0][
            "task"
        ]
        == TaskKind.GENERATION
    )


def test_labels_may_contain_commas(cli: CliRunner, here: Services, tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text('text,label\na,"Yes, please"\nb,No\n')
    refused = cli("tune", str(path), "--prompt", "x", "--labels", "Yes, please, No")
    assert refused.code == 2
    assert "a label with a comma is put in quotes" in refused.err
    assert cli("tune", str(path), "--prompt", "x", "--labels", '"Yes, please", No', "--no-follow").code == 0
    assert list(here.trainer.specs[0].labels) == ["Yes, please", "No"]
    repeated = cli("tune", str(path), "--prompt", "x", "--labels", "No,No")
    assert (repeated.code, repeated.err) == (2, "error: labels[1]: 'No' is repeated\n")
    assert label_set(["a, b", '"c, d"', '"e\nf"']) == ("a", "b", "c, d", "e\nf")


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        (["a\nb"], r"--labels: 'a\\nb' has a line break: put the label in double quotes$"),
        (['"a', "b"], "--labels: '\"a' is not a line of CSV: unexpected end"),
        (['"a" b'], "is not a line of CSV"),
        (["a", " , "], "--labels: has no label: leave the option out"),
        ([""], "--labels: has no label"),
    ],
    ids=["two lines", "an open quote", "text after a quote", "a comma", "nothing"],
)
def test_labels_that_are_no_list_are_refused(given: list[str], reason: str) -> None:
    with pytest.raises(InvalidInput, match=reason):
        label_set(given)


def test_columns_of_a_validation_file_are_no_options_of_the_training_file(
    cli: CliRunner, table: str, tmp_path: Path
) -> None:
    path = tmp_path / "held-out.csv"
    path.write_text("text,stars\na,1\n")
    refused = cli(
        "tune",
        table,
        "--prompt",
        "x",
        "--input",
        "review",
        "--label",
        "stars",
        "--drop-extra",
        "--validation",
        str(path),
    )
    assert "validation dataset line 2: has 'text', 'stars' and no 'review'" in refused.err
    path.write_text("rating,stars\na,1\n")
    refused = cli("tune", DATASET, "--prompt", "x", "--validation", str(path))
    assert refused.err.endswith("hint: the column options are those of both files: rename the columns of this one\n")


def test_thirty_bad_lines_are_one_message(cli: CliRunner, tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"input": "a", "output": "b"}\n' + '{"input": "a", "output": ""}\n' * 30)
    refused = cli("tune", str(path), "--prompt", "x")
    assert refused.code == 2
    assert refused.err.splitlines() == ["error: a.jsonl: dataset line 2 output: is empty (also lines 3, 4 and 27 more)"]


def test_mistakes_about_files_need_no_service_and_are_one_sentence(cli: CliRunner, tmp_path: Path) -> None:
    for arguments, code in (((str(tmp_path),), 2), ((str(tmp_path / "no.csv"),), 3)):
        for options in ((), ("--validation", str(tmp_path / "no.csv"))):
            refused = cli("tune", *arguments, "--prompt", "x", *options)
            assert refused.code == code
            assert len(refused.err.splitlines()) == 1


def test_standard_input_is_read(here: Services, tmp_path: Path) -> None:
    """In a separate process, because only that has its own standard input."""
    command = [sys.executable, "-m", "softprompt.cli", "tune", "-", "--prompt", "x", "--no-follow"]
    done = subprocess.run(command, input=b"text,label\na,x\nb,y\n", capture_output=True, check=False)
    assert done.returncode == 0, done.stderr
    assert b"standard input: 2 examples (CSV)" in done.stderr
    assert here.trainer.uploads[0][1] == b'{"input": "a", "label": "x"}\n{"input": "b", "label": "y"}\n'


def test_a_command_is_mended_where_it_has_the_options() -> None:
    arguments = ["tune", "a b.csv", "--input", "reviev", "--drop-extra", "--prompt", "x"]
    assert (
        mending_command(arguments, {"--input": "my review"})
        == "softprompt tune 'a b.csv' --drop-extra --prompt x --input 'my review'"
    )
    assert mending_command(["tune", "a.csv", "--input=b"], {"--input": "c"}) == "softprompt tune a.csv --input c"
    assert mending_command(["jobs", "clone", "j"], {"--drop-extra": ""}).startswith(
        "softprompt datasets upload FILE --drop-extra"
    )


def test_what_a_creation_counted_is_printed_without_following(cli: CliRunner, here: Services, table: str) -> None:
    counts = tuning_pb2.DatasetStatistics(num_train=9, num_duplicates=4, num_contradictions=2)
    here.trainer.created_statistics = counts
    done = cli("tune", table, "--prompt", "x", "--input", "review", "--label", "stars", "--drop-extra", "--no-follow")
    assert done.err.splitlines()[1:] == [
        "examples that repeat an earlier one: 4",
        "examples whose input also has another label: 2",
    ]
