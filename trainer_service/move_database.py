"""`softprompt-trainer move-database`: from the SQLite file of one trainer to PostgreSQL, with jobs and history.

The trainer is stopped meanwhile. With SQLite, checkpoints are files; with PostgreSQL, they are rows. Datasets stay
where they are, in the data directory.
"""

from __future__ import annotations

import argparse
import os
import sqlite3
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

from sqlalchemy import make_url

from shared.errors import InvalidInput, NotFound, PreconditionFailed, SoftPromptError
from shared.process.standard_streams import ERROR_MARK
from trainer_service.database.database import Database, newest_schema
from trainer_service.database.move import Row, move_database
from trainer_service.jobs.store.files import DirectoryFiles

COMMAND = "move-database"
_TARGET_VARIABLE = "SOFTPROMPT_TRAINER_DATABASE_URL"


def main(arguments: list[str]) -> int:
    """Runs the command; the exit code: 0, 2 for wrong usage, 1 if nothing was moved."""
    parser = argparse.ArgumentParser(f"softprompt-trainer {COMMAND}", description=__doc__)
    parser.add_argument("--data-dir", type=Path, required=True, help="the trainer's data directory")
    parser.add_argument(
        "--to",
        default=os.environ.get(_TARGET_VARIABLE, ""),
        help=f"PostgreSQL URL of an empty database [{_TARGET_VARIABLE}]",
    )
    chosen = parser.parse_args(arguments)
    try:
        _move(chosen.data_dir, chosen.to)
    except SoftPromptError as error:
        sys.stderr.write(f"{ERROR_MARK}{error}\n")
        return 2 if isinstance(error, InvalidInput) else 1
    return 0


def _move(data_dir: Path, target_url: str) -> None:
    if not target_url.startswith(("postgresql://", "postgresql+psycopg://")):
        raise InvalidInput.of("--to", f"must be postgresql://USER@HOST/DATABASE (or {_TARGET_VARIABLE})")
    path = data_dir / "jobs.sqlite3"
    if not path.is_file():
        raise NotFound("job database", str(path))
    source = Database(f"sqlite:///{path}", migrate=False)
    try:
        _check_schema(path)
        target = Database(target_url)
        try:
            files = DirectoryFiles(data_dir / "checkpoints")
            more = {"job_files": lambda: _file_rows(files)}
            tables = move_database(source, target, more, lambda table, rows: _say(f"{table}: {rows} rows"))
        finally:
            target.close()
    finally:
        source.close()
    for moved in tables:
        _say(f"{moved.name:<20}{moved.rows:>10} rows  {moved.digest[:16]}")
    shown = make_url(target_url).render_as_string(hide_password=True)
    _say(f"every table was compared. Start the trainer with {_TARGET_VARIABLE}={shown}; keep {path} as a backup")


def _file_rows(files: DirectoryFiles) -> Iterator[Row]:
    for job_id, kind, attempt, data in files.all():
        yield {"job_id": job_id, "kind": kind.value, "attempt": attempt, "data": data}


def _check_schema(path: Path) -> None:
    """Raises PreconditionFailed unless this build's trainer has migrated the file: the move changes nothing in it."""
    with closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True)) as connection:
        try:
            found = connection.execute("SELECT version_num FROM alembic_version").fetchone()
        except sqlite3.OperationalError:
            found = None
    schema = "none" if found is None else str(found[0])
    if schema != newest_schema():
        raise PreconditionFailed(
            f"{path.name} has schema {schema}, and this build has {newest_schema()}: start and stop this "
            "build's trainer once, which migrates it, or use the build that wrote it"
        )


def _say(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()
