"""Answers to all rows of a file: bounded concurrency, the rows' order and columns kept, and continued after a stop.

Finished answers go to `OUT.progress.jsonl` at once. The same command reads them there and asks only for the rest. OUT
appears when every row has an answer or the reason why it has none.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from softprompt.cli.data import source_of
from softprompt.cli.failures import EXIT_INTERRUPTED, EXIT_INVALID, Failure
from softprompt.cli.output import stderr
from softprompt.data.files import file_rows
from softprompt.data.inputs import input_columns, input_of
from softprompt.data.layout import Layout
from softprompt.data.problems import Unusable
from softprompt.data.writing import STANDARD_OUTPUT, check_output, format_of, write_rows
from softprompt.display.transfer import transfer_display
from softprompt.errors import NotFound, PermissionDenied, Unauthenticated, Unavailable, Unimplemented
from softprompt.types.data import Data
from softprompt.types.generation import Input
from softprompt.types.plain import as_plain

if TYPE_CHECKING:
    from shared.values.sampling import Sampling
    from softprompt.client.sync_client import Client

_FATAL = (NotFound, PermissionDenied, Unauthenticated, Unavailable, Unimplemented)
"""Errors that every row would have."""


@dataclass(frozen=True)
class FileTask:
    """What to ask for each row, and where."""

    file: str
    out: str
    targets: Mapping[str, str]
    """References of prompts by the column of their answers; the bare model's is empty."""
    sampling: Sampling
    input: str = ""
    encoding: str = ""
    routing_key: str = ""
    truncate: bool = False
    concurrency: int = 8
    overwrite: bool = False

    def settings(self) -> str:
        """What two runs must have in common so that one can continue the other."""
        settings = [dict(self.targets), as_plain(self.sampling), self.input, self.routing_key, self.truncate]
        return json.dumps(settings, sort_keys=True, default=str)


class _Journal:
    """The finished answers of this and earlier runs: one line for each."""

    def __init__(self, task: FileTask) -> None:
        self.path = Path(f"{task.out}.progress.jsonl") if task.out != STANDARD_OUTPUT else None
        self._settings = task.settings()
        self.answers: dict[tuple[int, str, str], str] = {}
        """By row, column and digest of the input."""
        self.was_there = self.path is not None and self.path.exists()
        self._file: IO[str] | None = None
        self._whole = 0
        """Bytes of the whole lines that were there. A line after them was cut off when the run was killed."""

    def read(self) -> None:
        """Load the answers that the file has already. Raises Failure for the journal of another command."""
        if self.was_there:
            self._whole = self._read()

    def add(self, row: int, column: str, digest: str, text: str) -> None:
        """Keep an answer."""
        self.begin()
        self._write({"row": row, "column": column, "digest": digest, "text": text})
        self.answers[row, column, digest] = text

    def close(self, *, remove: bool) -> None:
        """`remove` it once nothing is left to do."""
        if self._file is not None:
            with suppress(OSError):  # what could not be written has been reported
                self._file.close()
        if remove and self.path is not None:
            self.path.unlink(missing_ok=True)

    def _read(self) -> int:
        """The bytes of the whole lines."""
        assert self.path is not None
        size = 0
        with self.path.open("rb") as lines:
            for number, line in enumerate(lines):
                try:
                    found = json.loads(line)
                except ValueError:
                    break
                if not line.endswith(b"\n"):
                    break
                if number == 0 and not (isinstance(found, dict) and found.get("settings") == self._settings):
                    reason = f"{self.path} belongs to a run with other options"
                    raise Failure(reason, EXIT_INVALID, "repeat that command, or remove the file to begin anew")
                if number:
                    try:
                        self.answers[found["row"], found["column"], found["digest"]] = found["text"]
                    except (KeyError, TypeError):  # not written here
                        break
                size += len(line)
        return size

    def begin(self) -> None:
        """Make the file, with the first answer or with an OUT whose rows failed: a run that did nothing leaves none."""
        if self.path is None or self._file is not None:
            return
        with self._named_errors():
            self._file = self.path.open("r+" if self.was_there else "w", encoding="utf-8")
            self._file.seek(self._whole)
            self._file.truncate()
        if not self._whole:
            self._write({"settings": self._settings})

    def _write(self, value: Mapping[str, Any]) -> None:
        if self._file is not None:
            with self._named_errors():
                self._file.write(json.dumps(value) + "\n")
                self._file.flush()

    @contextmanager
    def _named_errors(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise Failure(f"{self.path}: {error.strerror or error}", hint=_continuing(self)) from error


def generate_file(client: Client, task: FileTask) -> None:
    """Raises Failure if rows have no answer, with exit code 1, or at once for an error that every row would have."""
    journal = _Journal(task)
    check_output(task.out, task.overwrite or journal.was_there)
    format = format_of(task.out)
    rows = file_rows(source_of(task.file), Data(task.file, encoding=task.encoding), "file")
    with closing(rows.items):
        read = [(str(rows.place(row.number)), row.fields) for row in rows.items]
    if rows.undecodable:
        line, byte = rows.undecodable[0]
        hint = f"--encoding {rows.likely_encoding} reads it" if rows.likely_encoding else rows.encoding_advice
        raise Failure(f"{rows.name} line {line} is not {rows.encoding_name}: byte {byte}", EXIT_INVALID, hint)
    columns = list(dict.fromkeys(name for _, fields in read if not isinstance(fields, Unusable) for name in fields))
    inputs = _inputs(task, read, columns, rows.name)
    answers: list[dict[str, Any]] = [{} if isinstance(fields, Unusable) else dict(fields) for _, fields in read]
    added = [name for column in task.targets for name in (column, f"{column}_error")]
    if taken := [name for name in added if name in columns]:
        raise Failure(f"{rows.name} already has the column {taken[0]!r}: choose another --answer-column", EXIT_INVALID)
    journal.read()
    is_done = False
    try:
        num_failed = sum(
            _answer_all(client, task, column, reference, inputs, answers, journal)
            for column, reference in task.targets.items()
        )
        write_rows(task.out, format, [*columns, *added], answers, overwrite=task.overwrite or journal.was_there)
        if num_failed:
            journal.begin()
        is_done = not num_failed
    except KeyboardInterrupt:
        raise Failure("interrupted", EXIT_INTERRUPTED, _continuing(journal)) from None
    except (*_FATAL, OSError) as error:
        if hint := _continuing(journal):
            stderr().print(hint, markup=False, soft_wrap=True)
        raise error
    finally:
        journal.close(remove=is_done)
    if num_failed:
        again = "; the same command asks for these again" if journal.path else ""
        hint = f"the column that ends with _error says why{again}"
        raise Failure(f"{num_failed} of {len(inputs) * len(task.targets)} answers are missing", hint=hint)


def _inputs(
    task: FileTask, read: Sequence[tuple[str, Mapping[str, Any] | Unusable]], columns: Sequence[str], name: str
) -> list[Input | Unusable]:
    if not read:
        raise Failure(f"{name} has no rows", EXIT_INVALID)
    try:
        chosen = input_columns(columns, task.input) if columns else Layout()
    except Unusable as error:
        hint = f"--input names the column, for example --input {json.dumps(columns[0])}"
        raise Failure(f"{name} {error.reason}", EXIT_INVALID, hint) from None
    found: list[Input | Unusable] = []
    for place, fields in read:
        try:
            if isinstance(fields, Unusable):
                raise fields
            found.append(input_of(fields, chosen))
        except Unusable as error:
            found.append(Unusable(f"{place} {error.part}".rstrip() + f": {error.reason}"))
    return found


def _answer_all(
    client: Client,
    task: FileTask,
    column: str,
    reference: str,
    inputs: Sequence[Input | Unusable],
    answers: Sequence[dict[str, Any]],
    journal: _Journal,
) -> int:
    """Fill one column of `answers`. Returns the number of rows without an answer."""
    digests = [_digest(item) for item in inputs]
    waiting: list[int] = []
    num_failed = 0
    for index, item in enumerate(inputs):
        if (known := journal.answers.get((index, column, digests[index]))) is not None:
            answers[index][column] = known
        elif isinstance(item, Unusable):
            answers[index][f"{column}_error"] = item.reason
            num_failed += 1
        else:
            waiting.append(index)

    def asked() -> Iterator[Any]:
        for index in waiting:
            yield inputs[index]

    outcomes = client.generate_many(
        asked(),
        prompt=reference,
        sampling=task.sampling,
        routing_key=task.routing_key,
        truncate=task.truncate,
        concurrency=task.concurrency,
    )
    num_known = len(inputs) - len(waiting)
    with transfer_display(stderr(), "asking for answers") as show_progress:
        for index, outcome in zip(waiting, outcomes, strict=False):
            if isinstance(outcome.error, _FATAL):
                raise outcome.error
            if outcome.error is not None:
                answers[index][f"{column}_error"] = str(outcome.error)
                num_failed += 1
            else:
                answers[index][column] = outcome.text
                journal.add(index, column, digests[index], outcome.text)
            show_progress("answered rows", num_known + outcome.index + 1, len(inputs))
    return num_failed


def _digest(item: Input | Unusable) -> str:
    return hashlib.sha256(json.dumps(as_plain(item), default=str).encode(errors="replace")).hexdigest()[:32]


def _continuing(journal: _Journal) -> str:
    if journal.path is None or not journal.answers:
        return ""
    return f"{len(journal.answers)} answers are in {journal.path}; the same command continues there"
