"""`softprompt store`: copy and check a prompt store. These commands use the storage's own credentials, no service."""

from __future__ import annotations

from typing import Annotated

import typer

from softprompt.cli.failures import EXIT_FAILED, require
from softprompt.cli.options import JsonOption, example
from softprompt.cli.output import print_json, show, show_facts, stderr, table
from softprompt.display.transfer import transfer_display

app = typer.Typer(no_args_is_help=True)
_URL = "a directory, s3://BUCKET/PREFIX, gs://..., az://..."


@app.command(epilog=example("softprompt store copy ./prompts s3://prompts/staging"))
def copy(
    source: Annotated[str, typer.Argument(metavar="SRC", help=f"URL of the store to read: {_URL}")],
    target: Annotated[str, typer.Argument(metavar="DST", help="URL of the store to write; created if it is missing.")],
    prune: Annotated[
        bool, typer.Option("--prune", help="Also remove versions and aliases from DST that SRC does not have.")
    ] = False,
    check: Annotated[
        bool, typer.Option("--check", help="Read every blob of DST and replace damaged ones, not only missing ones.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Copy all versions and aliases to another store, with their numbers and digests. Aliases move last.

    Repeat it after an interruption: it continues. Refused if DST has other versions under the same numbers.
    """
    require("service")
    from dataclasses import asdict

    from shared.store.copy import copy_store
    from shared.store.open import open_existing, open_store

    with transfer_display(stderr(), "copying versions") as progress:
        report = copy_store(
            open_existing(source),
            open_store(target),
            prune=prune,
            check=check,
            progress=lambda done, total: progress("copying versions", done, total),
        )
    if as_json:
        print_json(asdict(report))
        return
    counts = {
        "copied": f"{report.versions_copied} versions, {report.bytes_copied} bytes",
        "there": f"{report.versions_present} versions",
        "skipped": f"{report.versions_skipped} versions that were deleted there" if report.versions_skipped else "",
        "repaired": f"{report.blobs_repaired} blobs" if report.blobs_repaired else "",
        "aliases": f"{report.aliases_moved} moved",
        "pruned": f"{report.versions_pruned} versions, {report.aliases_pruned} aliases" if prune else "",
    }
    show_facts(counts, 10)


@app.command(epilog=example("softprompt store verify s3://prompts/production"))
def verify(
    store: Annotated[str, typer.Argument(metavar="STORE", help=f"URL of the store: {_URL}")],
    repair: Annotated[
        bool,
        typer.Option(
            "--repair", help="Remove old blobs that no version names, and replace snapshots that can't be read."
        ),
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Read the whole store and check every digest, manifest, log entry, snapshot and alias. Exit code 1 if a problem
    remains. A damaged blob comes back with `softprompt store copy OTHER STORE --check`.
    """
    require("service")
    from dataclasses import asdict

    from shared.store.open import existing_backend
    from shared.store.verify import verify_store

    with transfer_display(stderr(), "reading versions") as progress:
        found = verify_store(
            existing_backend(store, or_damaged=True),
            repair=repair,
            progress=lambda done, total: progress("reading versions", done, total),
        )
    if as_json:
        print_json({**asdict(found), "sound": found.is_sound})
    else:
        if found.findings:
            made = table("", "WHAT", "OF", "FINDING")
            for finding in found.findings:
                state = "note" if finding.is_note else "PROBLEM"
                made.add_row("repaired" if finding.repaired else state, finding.kind, finding.subject, finding.text)
            show(made)
        counted = f"{found.versions} versions, {found.aliases} aliases, {found.blobs} blobs, revision {found.revision}"
        problems = sum(finding.is_problem for finding in found.findings)
        show(f"{counted}: " + (f"{problems} problems" if problems else "no problems"))
    if not found.is_sound:
        raise typer.Exit(EXIT_FAILED)
