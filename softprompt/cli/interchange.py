"""`softprompt prompts export` and `import`: soft prompts to and from other tools."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from softprompt.cli.options import JsonOption, TrainerOption, example, open_client
from softprompt.cli.output import print_json, show
from softprompt.types.common import Template, TemplateFormat


def register(app: typer.Typer) -> None:
    app.command("export", epilog=example("softprompt prompts export support-tone@2 ./support-tone-adapter"))(export)
    app.command("import", epilog=example("softprompt prompts import ./peft-adapter --prompt support-tone --template 'Q: {input}'"))(import_)


def export(
    version: Annotated[str, typer.Argument(metavar="REF", help="NAME (its default alias), NAME@ALIAS or NAME@7.")],
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="Where the adapter goes; made if it isn't there.")],
    base_model: Annotated[
        str, typer.Option(help="Directory or hub id that PEFT's users load the model from; left out: the trainer's id of it.")
    ] = "",
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an adapter that is there.")] = False,
    as_json: JsonOption = False,
    trainer: TrainerOption = None,
) -> None:
    """Write a version as a directory that peft.PeftModel.from_pretrained loads."""
    with open_client(trainer) as client:
        exported = client.export_version(version, directory, base_model=base_model, overwrite=overwrite)
    if as_json:
        print_json({"version": exported.name, "digest": exported.digest, "directory": directory})
    else:
        show(f"{exported.name} is in {directory} ({exported.num_virtual_tokens} virtual tokens, {exported.size_bytes} bytes)")


def import_(
    path: Annotated[
        Path,
        typer.Argument(metavar="PATH", help="A safetensors file, or a directory of PEFT (prompt tuning), TGIS or caikit with one."),
    ],
    prompt: Annotated[str, typer.Option(help="Name of the prompt; its next version is published.")],
    base_model: Annotated[str, typer.Option(help="Id of the trainer's base model that it was trained on.")] = "",
    template: Annotated[str, typer.Option(help="Text with {input} in it, as it was trained with.")] = "",
    format: Annotated[TemplateFormat | None, typer.Option(case_sensitive=False, help="Plain text or chat template.")] = None,
    system: Annotated[str, typer.Option(help="System message, with --format chat.")] = "",
    labels: Annotated[str, typer.Option(help="Label set of a classification, comma-separated.")] = "",
    alias: Annotated[str, typer.Option(help="Alias that is moved to the new version; - for none.")] = "default",
    request_id: Annotated[str, typer.Option(help="Your own unique key: the same again returns the same version.")] = "",
    as_json: JsonOption = False,
    trainer: TrainerOption = None,
) -> None:
    """Publish a soft prompt that was trained elsewhere. Pickle files (.bin, .pt, .pth, .pkl) are refused."""
    with open_client(trainer) as client:
        imported = client.import_version(
            path,
            prompt,
            base_model=base_model,
            template=Template(template, format, system) if template or format or system else None,
            labels=tuple(label.strip() for label in labels.split(",") if label.strip()),
            alias=alias,
            request_id=request_id,
        )
    if as_json:
        print_json(imported)
    else:
        aliases = f", named by {', '.join(imported.aliases)}" if imported.aliases else ""
        show(f"published {imported.name} ({imported.num_virtual_tokens} virtual tokens{aliases})")
