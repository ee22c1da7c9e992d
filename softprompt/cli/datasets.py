"""`softprompt datasets`: store examples on the trainer, list them, show them and delete them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from shared.text.counted import counted
from softprompt.cli.data import LabelsOption, label_set, read_examples, with_data_options
from softprompt.cli.options import JsonOption, TrainerOption, example, open_client
from softprompt.cli.output import local_time, print_json, show, show_facts, show_or_json, stderr, table
from softprompt.display.transfer import upload_display
from softprompt.types.data import Data

if TYPE_CHECKING:
    from shared.values.datasets import StoredDataset

app = typer.Typer(no_args_is_help=True)
DatasetArgument = Annotated[
    str, typer.Argument(metavar="DATASET", help="Name of the dataset: datasets/sha256-<hex>, or sha256-<hex>.")
]


@app.command(epilog=example("softprompt datasets upload train.csv --input question --output answer"))
@with_data_options
def upload(
    file: Annotated[
        str, typer.Argument(help="CSV, TSV, XLSX, Parquet, JSON or JSON lines; may be compressed with gzip.")
    ],
    *,
    how: Data,
    labels: LabelsOption = None,
    as_json: JsonOption = False,
    trainer: TrainerOption = None,
) -> None:
    """Store a file of examples on the trainer and print the name of the dataset."""
    allowed = label_set(labels)
    prepared = read_examples(file, how, allowed)
    with open_client(trainer) as client, upload_display(stderr(), "storing the examples") as on_progress:
        uploaded = client.upload_dataset(prepared, labels=allowed, on_progress=on_progress)
    show_or_json(uploaded, uploaded.dataset, as_json)


@app.command("list", epilog=example("softprompt datasets list --json"))
def list_(
    limit: Annotated[int | None, typer.Option(min=1, help="Largest number of datasets to list. Default: all.")] = None,
    as_json: JsonOption = False,
    trainer: TrainerOption = None,
) -> None:
    """List the datasets of your tenant, largest first. All of them count against its quota."""
    with open_client(trainer) as client:
        stored = sorted(client.list_datasets(), key=lambda dataset: -dataset.size_bytes)
    found = stored[:limit]
    if as_json:
        print_json(*found)
        return
    made = table("DATASET", "BYTES", "EXAMPLES", "TASK", "JOBS", "CREATED", "LAST USED")
    for dataset in found:
        counts = str(dataset.size_bytes), _examples(dataset), dataset.task or "", str(dataset.num_jobs)
        made.add_row(dataset.name, *counts, local_time(dataset.create_time), local_time(dataset.last_use_time))
    show(made if found else "no datasets")
    if found:
        shown = f"the largest {len(found)} of " if len(found) < len(stored) else ""
        together = sum(dataset.size_bytes for dataset in stored)
        show(f"{shown}{counted(len(stored), 'dataset')}, {together} bytes together")


@app.command("show", epilog=example(f"softprompt datasets show sha256-{'ab' * 32}"))
def show_(dataset: DatasetArgument, as_json: JsonOption = False, trainer: TrainerOption = None) -> None:
    """Show one dataset: size, task, number of jobs, and time of its last use."""
    with open_client(trainer) as client:
        found = client.get_dataset(_name(dataset))
    if as_json:
        print_json(found)
        return
    rows = {
        "dataset": found.name,
        "bytes": str(found.size_bytes),
        "examples": _examples(found),
        "task": found.task or "",
        "labels": str(found.num_labels) if found.num_labels else "",
        "jobs": str(found.num_jobs),
        "created": local_time(found.create_time),
        "last used": local_time(found.last_use_time),
    }
    show_facts(rows)


@app.command(epilog=example(f"softprompt datasets delete sha256-{'ab' * 32}"))
def delete(dataset: DatasetArgument, as_json: JsonOption = False, trainer: TrainerOption = None) -> None:
    """Delete a dataset. Refused while a job that has not ended needs it. Prompts trained on it stay."""
    with open_client(trainer) as client:
        client.delete_dataset(_name(dataset))
    show_or_json({"deleted": _name(dataset)}, f"{_name(dataset)} is deleted", as_json)


def _name(text: str) -> str:
    return text if text.startswith("datasets/") else f"datasets/{text}"


def _examples(dataset: StoredDataset) -> str:
    return str(dataset.num_examples) if dataset.num_examples else "not counted yet"
