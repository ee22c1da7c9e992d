"""`softprompt prompts`: list, show, delete versions, move aliases. `fleet`, `interchange`, `promote` add commands."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated

import typer

from softprompt.cli import fleet, interchange, promote
from softprompt.cli.commands import Commands
from softprompt.cli.failures import EXIT_INVALID, Failure
from softprompt.cli.options import JsonOption, PromptArgument, ReferenceArgument, TrainerOption, example, open_client
from softprompt.cli.output import local_time, numbers, print_json, show, show_facts, show_or_json, table
from softprompt.types.plain import as_plain

if TYPE_CHECKING:
    from shared.values.prompts import Alias
    from shared.values.template import Template

app = typer.Typer(no_args_is_help=True)
alias_app = typer.Typer(no_args_is_help=True)
app.add_typer(alias_app, name="alias", help="Aliases: names of versions that can be moved.", cls=Commands)
for module in (fleet, interchange, promote):
    app.add_typer(module.app)


@app.command("list", epilog=example("softprompt prompts list --prefix support-"))
def list_(
    prefix: Annotated[str, typer.Option(help="List only names that begin with this text.")] = "",
    as_json: JsonOption = False,
    trainer: TrainerOption = None,
) -> None:
    """List prompts, sorted by name."""
    with open_client(trainer) as client:
        prompts = client.list_prompts(name_prefix=prefix)
    if as_json:
        print_json(*prompts)
        return
    made = table("PROMPT", "LATEST", "VERSIONS", "ALIASES", "UPDATED")
    for prompt in prompts:
        aliases = ", ".join(_alias_text(alias) for alias in prompt.aliases)
        name = prompt.name.removeprefix("prompts/")
        counts = str(prompt.latest_version), str(prompt.num_versions)
        made.add_row(name, *counts, aliases, local_time(prompt.update_time))
    show(made if prompts else "no prompts; `softprompt tune` creates one")


@app.command("show", epilog=example("softprompt prompts show support-tone@2"))
def show_(reference: ReferenceArgument, as_json: JsonOption = False, trainer: TrainerOption = None) -> None:
    """Show one version: base model, template, metrics and hyperparameters."""
    with open_client(trainer) as client:
        version = client.get_version(reference)
    if as_json:
        print_json(version)
        return
    model, template = version.base_model, version.template
    rows = {
        "version": version.name,
        "digest": version.digest,
        "aliases": ", ".join(version.aliases),
        "published": local_time(version.create_time),
        "job": version.job,
        "parent": version.parent,
        "model": f"{model.id} ({model.fingerprint[:19]}…)" if model else "",
        "template": _template_text(template) if template else "",
        "kind": version.kind.lower(),
        "tokens": f"{version.num_virtual_tokens} virtual, {version.size_bytes} bytes",
        "labels": ", ".join(version.labels),
        "held out": numbers(version.metrics),
        "gate": version.gate,
        "verdict": version.verdict,
        "recipe": json.dumps(as_plain(dict(version.recipe)), ensure_ascii=False) if version.recipe else "",
    }
    show_facts(rows)


@app.command(epilog=example("softprompt prompts versions support-tone"))
def versions(prompt: PromptArgument, as_json: JsonOption = False, trainer: TrainerOption = None) -> None:
    """List the versions of a prompt, newest first."""
    with open_client(trainer) as client:
        found = client.list_versions(prompt)
    if as_json:
        print_json(*found)
        return
    made = table("VERSION", "KIND", "ALIASES", "TOKENS", "PUBLISHED", "PARENT", "HELD OUT")
    for version in found:
        about = version.name.rpartition("/")[2], version.kind.lower(), ", ".join(version.aliases)
        tokens, published = str(version.num_virtual_tokens), local_time(version.create_time)
        made.add_row(*about, tokens, published, version.parent, numbers(version.metrics))
    show(made if found else f"{prompt} has no versions")


@app.command(epilog=example("softprompt prompts delete support-tone@1"))
def delete(
    version: Annotated[
        str, typer.Argument(metavar="PROMPT@VERSION", help="Version to delete. Refused while an alias names it.")
    ],
    as_json: JsonOption = False,
    trainer: TrainerOption = None,
) -> None:
    """Delete a version. This can't be undone, and its number is never used again."""
    with open_client(trainer) as client:
        revision = client.delete_version(version)
    text = f"{version} is deleted (revision {revision})"
    show_or_json({"deleted": version, "revision": revision}, text, as_json)


@alias_app.command("set", epilog=example("softprompt prompts alias set support-tone default 3 --expect 2"))
def set_(
    prompt: PromptArgument,
    alias: Annotated[str, typer.Argument(help="Name of the alias, for example default or canary.")],
    target: Annotated[
        list[str],
        typer.Argument(
            metavar="VERSION[:WEIGHT]...", help="One version (3 or NAME@3), or several with weights: 3:0.9 4:0.1."
        ),
    ],
    expect: Annotated[
        int | None, typer.Option(min=0, help="Move the alias only if it names this version now; 0: only if it is new.")
    ] = None,
    as_json: JsonOption = False,
    trainer: TrainerOption = None,
) -> None:
    """Move an alias to a version, or split its traffic between several."""
    from shared.values.prompts import AliasTarget

    try:
        targets = [
            AliasTarget(int(version.removeprefix(f"{prompt}@")), float(weight or 1))
            for version, _, weight in (text.partition(":") for text in target)
        ]
    except ValueError:
        foreign = next((name for text in target if (name := text.partition("@")[0]) not in (text, prompt)), "")
        raise Failure(
            f"an alias of {prompt} can't name a version of {foreign}"
            if foreign
            else f"{' '.join(target)!r} must be VERSION or VERSION:WEIGHT, for example 3 or 3:0.9 4:0.1",
            EXIT_INVALID,
        ) from None
    with open_client(trainer) as client:
        moved = client.set_alias(prompt, alias, targets, expected_version=expect)
    show_or_json(moved, f"{prompt}: {_alias_text(moved)} (revision {moved.revision})", as_json)


@alias_app.command("remove", epilog=example("softprompt prompts alias remove support-tone canary"))
def remove(
    prompt: PromptArgument,
    alias: Annotated[str, typer.Argument(help="Name of the alias.")],
    expect: Annotated[
        int | None, typer.Option(min=1, help="Remove the alias only if it names this version now.")
    ] = None,
    as_json: JsonOption = False,
    trainer: TrainerOption = None,
) -> None:
    """Remove an alias. Its versions stay."""
    with open_client(trainer) as client:
        removed = client.set_alias(prompt, alias, [], expected_version=expect)
    show_or_json(removed, f"{prompt}: {alias} is removed (revision {removed.revision})", as_json)


def _template_text(template: Template) -> str:
    return json.dumps(template.text, ensure_ascii=False) + (f" {template.format}" if template.format else "")


def _alias_text(alias: Alias) -> str:
    return f"{alias.name} -> {fleet.targets_text(alias)}"
