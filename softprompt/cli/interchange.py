"""`softprompt prompts export` and `import`: exchange prefixes with other tools."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from shared.values.enums import TemplateFormat
from shared.values.template import Template
from softprompt.cli.data import LabelsOption, label_set
from softprompt.cli.options import REQUEST_ID_HELP, JsonOption, ReferenceArgument, TrainerOption, example, open_client
from softprompt.cli.output import show_or_json, stderr
from softprompt.display.transfer import transfer_display

app = typer.Typer()


@app.command("export", epilog=example("softprompt prompts export support-tone@2 ./support-tone-adapter"))
def export(
    version: ReferenceArgument,
    directory: Annotated[
        Path, typer.Argument(metavar="DIR", help="Directory for the adapter; created if it is missing.")
    ],
    base_model: Annotated[
        str, typer.Option(help="Directory or hub id from which PEFT loads the model. Default: the trainer's id.")
    ] = "",
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an existing adapter.")] = False,
    peft_type: Annotated[
        str, typer.Option(help="For keys and values: PREFIX_TUNING or CARTRIDGE. Default: PREFIX_TUNING.")
    ] = "",
    as_json: JsonOption = False,
    trainer: TrainerOption = None,
) -> None:
    """Write a version as a directory that peft.PeftModel.from_pretrained loads."""
    with open_client(trainer) as client:
        exported = client.export_version(
            version, directory, base_model=base_model, overwrite=overwrite, peft_type=peft_type
        )
    described = {"version": exported.name, "digest": exported.digest, "directory": directory}
    size = f"{exported.num_virtual_tokens} virtual tokens, {exported.size_bytes} bytes"
    show_or_json(described, f"{exported.name} is in {directory} ({size})", as_json)


@app.command(
    "import", epilog=example("softprompt prompts import ./peft-adapter --prompt support-tone --template 'Q: {input}'")
)
def import_(
    path: Annotated[
        Path,
        typer.Argument(
            metavar="PATH",
            help="A safetensors file, or a directory of PEFT (prompt tuning, P-tuning, prefix tuning, cartridge), TGIS "
            "or caikit.",
        ),
    ],
    prompt: Annotated[str, typer.Option(help="Name of the prompt. The import becomes its next version.")],
    base_model: Annotated[
        str, typer.Option(help="Id, on the trainer, of the base model that the prompt was trained on.")
    ] = "",
    template: Annotated[
        str, typer.Option(help="Template text that the prompt was trained with; contains {input}.")
    ] = "",
    format: Annotated[
        TemplateFormat | None,
        typer.Option(case_sensitive=False, help="Whether the template is plain text or the chat template."),
    ] = None,
    system: Annotated[str, typer.Option(help="System message for --format chat.")] = "",
    labels: LabelsOption = None,
    alias: Annotated[str, typer.Option(help="Alias to move to the new version; - for none.")] = "default",
    request_id: Annotated[str, typer.Option(help=f"{REQUEST_ID_HELP} version.")] = "",
    as_json: JsonOption = False,
    trainer: TrainerOption = None,
) -> None:
    """Publish a soft prompt, or keys and values, of another tool. Pickle files (.bin, .pt, .pth, .pkl) are refused."""
    with open_client(trainer) as client, transfer_display(stderr(), f"importing {path}"):
        imported = client.import_version(
            path,
            prompt,
            base_model=base_model,
            template=Template(template, format, system) if template or format or system else None,
            labels=label_set(labels),
            alias=alias,
            request_id=request_id,
        )
    aliases = f", named by {', '.join(imported.aliases)}" if imported.aliases else ""
    text = f"published {imported.name} ({imported.num_virtual_tokens} virtual tokens{aliases})"
    show_or_json(imported, text, as_json)
