"""`softprompt prompts promote`: publish a version at another trainer service, after a look at what changes there."""

from __future__ import annotations

import itertools
import json
import sys
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated

import typer

from softprompt.cli.failures import EXIT_INVALID, EXIT_REFUSED, Failure
from softprompt.cli.fleet import targets_text
from softprompt.cli.options import JsonOption, TrainerOption, YesOption, example, open_client
from softprompt.cli.output import agreed, print_json, show, table
from softprompt.types.plain import as_plain

if TYPE_CHECKING:
    from softprompt.client.sync_client import Client
    from softprompt.promotion import Plan

app = typer.Typer()

_CELL_CHARS = 60
_LONG = ("recipe.", "template.", "sampling.")
"""Facts that are shown only where they differ from those of a version."""


@app.command(epilog=example("softprompt prompts promote support-tone@3 --to trainer.production:50051"))
def promote(
    reference: Annotated[str, typer.Argument(metavar="REF", help="NAME@3, NAME@ALIAS or NAME (its default alias).")],
    to: Annotated[str, typer.Option(metavar="HOST:PORT", help="Address of the target's trainer service.")],
    alias: Annotated[str, typer.Option(help="Alias of the target to move to the version; - for none.")] = "default",
    to_token_file: Annotated[
        str | None, typer.Option(metavar="FILE", help="Token for the target, if it is not that of the source.")
    ] = None,
    to_tls_ca_file: Annotated[
        str | None, typer.Option(metavar="PEM", help="Certificate authorities of the target, if they differ.")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show the difference and change nothing.")] = False,
    yes: YesOption = False,
    as_json: JsonOption = False,
    trainer: TrainerOption = None,
) -> None:
    """Copy a version with its manifest from this trainer service to another one, and move an alias there.

    First shows how it differs from what the alias names there. The target requires the role publisher and its own copy
    of the base model. Repeating a promotion publishes nothing again.
    """
    if "://" in to or to.startswith(("/", ".")):
        why = "it checks the role publisher, gives the version its number and audits the promotion"
        reason = f"--to {to!r} is a store; name the trainer service that serves it: {why}"
        raise Failure(reason, EXIT_INVALID, "`softprompt store copy` copies whole stores")
    from softprompt.promotion import plan_promotion
    from softprompt.promotion import promote as apply

    moved = "" if alias == "-" else alias
    with _target(to, to_token_file, to_tls_ca_file) as target:
        with open_client(trainer) as source:
            plan = plan_promotion(source, target, reference, moved)
        if not as_json:
            _show(plan, to)
        if dry_run:
            if as_json:
                print_json(_described(plan))
            return
        if not yes:
            _ask(to)
        done = apply(target, plan)
    if as_json:
        print_json({**_described(plan), "version": done.version, "published": done.published, "alias": done.alias})
        return
    named = f", {plan.prompt}@{plan.alias} names it" if plan.alias else ""
    show(f"{'published' if done.published else 'there already:'} {done.version.name} at {to}{named}")


def _target(address: str, token_file: str | None, ca_file: str | None) -> Client:
    from softprompt.cli.security import chosen_security
    from softprompt.client.sync_client import Client

    security = chosen_security()
    if token_file is not None:
        security = replace(security, token="", token_file=token_file)
    if ca_file is not None:
        security = replace(security, ca_file=ca_file)
    return Client(address, security=security)


def _ask(to: str) -> None:
    if not sys.stdin.isatty():
        raise Failure("there is no terminal to ask: add --yes, or --dry-run to see only the difference", EXIT_INVALID)
    if not agreed(f"Publish this at {to}?"):
        raise Failure("nothing was published", EXIT_REFUSED)


def _show(plan: Plan, to: str) -> None:
    served = "nothing yet" if plan.served is None else plan.served.name
    if plan.current is not None and len(plan.current.targets) > 1:
        served += f", and others ({targets_text(plan.current)})"
        served += ": the move ends this division" if plan.alias else ""
    show(f"{plan.version.name} ({plan.version.digest[:19]}…) to {to}")
    show(f"served there by {plan.prompt}@{plan.alias or 'default'}: {served}")
    if plan.present is not None:
        show(f"the target has these bytes already: {plan.present.name}")
    if plan.served is not None and not plan.differences:
        show("no difference")
        return
    made = table("", "SERVED THERE", "PROMOTED")
    for one in plan.differences:
        if plan.served is None and one.what.startswith(_LONG) and one.what != "recipe.dataset":
            continue  # there is nothing to compare them with
        made.add_row(_text(one.what), *_cells(_text(one.served), _text(one.promoted)))
    show(made)


def _text(value: object) -> str:
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, str) and value.isprintable():
        return value
    return json.dumps(as_plain(value), ensure_ascii=False)


def _cells(served: str, promoted: str) -> tuple[str, str]:
    """Long texts are cut, so that the first place where they differ is seen."""
    same = sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], zip(served, promoted, strict=False)))
    start = max(0, same - _CELL_CHARS // 2)
    return _cut(served, start), _cut(promoted, start)


def _cut(text: str, start: int) -> str:
    text = text if len(text) <= _CELL_CHARS or not start else f"…{text[start + 1 :]}"
    return text if len(text) <= _CELL_CHARS else f"{text[: _CELL_CHARS - 1]}…"


def _described(plan: Plan) -> dict[str, object]:
    return {
        "source": plan.version.name,
        "digest": plan.version.digest,
        "served": None if plan.served is None else plan.served.name,
        "differences": plan.differences,
    }
