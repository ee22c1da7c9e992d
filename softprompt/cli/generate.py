"""`softprompt generate` and `softprompt classify`: use a published prompt."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any

import typer

from shared.values.generation import GenerationEnd, GenerationStart
from shared.values.sampling import Sampling
from softprompt.cli.options import InferenceOption, JsonOption, example, open_client
from softprompt.cli.output import print_json, show, stderr, stdout, table, write
from softprompt.cli.sampling import with_sampling_options
from softprompt.cli.text_input import read_input

if TYPE_CHECKING:
    from softprompt.client.sync_client import Client

app = typer.Typer()
TextArgument = Annotated[str, typer.Argument(metavar="TEXT", help="The input; - reads standard input.")]
RoutingOption = Annotated[
    str,
    typer.Option(metavar="KEY", help="If an alias names several versions, the same key always gets the same version."),
]
FILE = "A file of inputs"
_COLUMN_CHARS = 32
"""A terminal with fewer characters for each answer shows them one after the other."""
REFERENCE_HELP = "NAME (its default alias), NAME@ALIAS or NAME@7"


@app.command(
    epilog=example('softprompt generate --prompt product-descriptions "wireless mouse, 2.4 GHz, 18 months battery"')
)
@with_sampling_options
def generate(
    text: Annotated[
        str | None, typer.Argument(metavar="TEXT", help="The input; - reads standard input. Not with --file.")
    ] = None,
    *,
    sampling: Sampling,
    prompt: Annotated[str, typer.Option(help=f"{REFERENCE_HELP}. Default: the bare model.")] = "",
    routing_key: RoutingOption = "",
    truncate: Annotated[
        bool, typer.Option("--truncate", help="Truncate an input that is too long, from the left.")
    ] = False,
    compare: Annotated[
        list[str] | None,
        typer.Option(
            metavar="OTHER",
            help="Also ask this prompt or version and show the answers beside each other; `base` is the bare model. "
            "May be repeated.",
        ),
    ] = None,
    file: Annotated[
        str | None,
        typer.Option(help="Answer every row of this file (CSV, TSV, XLSX, Parquet, JSON lines).", rich_help_panel=FILE),
    ] = None,
    out: Annotated[
        str, typer.Option(help="File for the rows with their answers; - is stdout.", rich_help_panel=FILE)
    ] = "-",
    input: Annotated[
        str,
        typer.Option(
            "--input", metavar="COLUMN", help="Column of the inputs, if not found by name.", rich_help_panel=FILE
        ),
    ] = "",
    answer_column: Annotated[
        str, typer.Option(metavar="COLUMN", help="New column for the answers.", rich_help_panel=FILE)
    ] = "answer",
    encoding: Annotated[
        str, typer.Option(help="Encoding of a file that is neither UTF-8 nor UTF-16: cp1252.", rich_help_panel=FILE)
    ] = "",
    concurrency: Annotated[
        int, typer.Option(min=1, max=1024, help="Rows that are asked for at once.", rich_help_panel=FILE)
    ] = 8,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace the output file if it exists.", rich_help_panel=FILE)
    ] = False,
    as_json: JsonOption = False,
    inference: InferenceOption = None,
) -> None:
    """Stream an answer, compare prompts, or answer all rows of a file. Ctrl-C also stops the service's work."""
    if (text is None) == (file is None):
        raise typer.BadParameter("give either a TEXT or --file")
    others = {name: "" if name == "base" else name for name in compare or ()}
    if file is not None:
        from softprompt.cli.generate_file import FileTask, generate_file

        targets = {answer_column: prompt} | {f"{answer_column} {name}": other for name, other in others.items()}
        with open_client(inference=inference) as client:
            task = FileTask(
                file, out, targets, sampling, input, encoding, routing_key, truncate, concurrency, overwrite
            )
            generate_file(client, task)
        return
    assert text is not None
    if others:
        with open_client(inference=inference) as client:
            options = {"sampling": sampling, "routing_key": routing_key, "truncate": truncate}
            compare_answers(client, read_input(text), {prompt or "base": prompt, **others}, options, as_json=as_json)
        return
    with open_client(inference=inference) as client:
        stream = client.stream(
            read_input(text), prompt=prompt, sampling=sampling, routing_key=routing_key, truncate=truncate
        )
        start = stream.started()
        if as_json:
            print_json({"start": start})
        texts = dict.fromkeys(range(sampling.n or 1), "")
        for delta in stream:
            texts[delta.index] += delta.text
            if as_json:
                print_json({"delta": delta})
            elif len(texts) == 1:
                write(delta.text)
        ends = stream.ends
    for index, text in texts.items():
        if not text.strip() and index in ends:
            stderr().print(ends[index].why_empty, markup=False)
        if as_json:
            print_json({"end": ends.get(index)})
            continue
        if len(texts) > 1:
            write(text)
        show("")
        if index in ends and stderr().is_terminal:
            _show_statistics(start, ends[index])


def _show_statistics(start: GenerationStart, end: GenerationEnd) -> None:
    first = (
        ""
        if end.first_token_time_seconds is None
        else f", first token after {1000 * end.first_token_time_seconds:.0f} ms"
    )
    stderr().print(
        f"{start.version or 'bare model'}: {end.output_tokens} tokens, {end.finish_reason}{first}",
        style="dim",
        markup=False,
    )


@app.command(epilog=example('softprompt classify --prompt review-sentiment "It broke after a day."'))
def classify(
    text: TextArgument,
    prompt: Annotated[str, typer.Option(help=f"{REFERENCE_HELP}.")],
    label: Annotated[
        list[str] | None, typer.Option(help="Candidate label; may be repeated. Default: the labels of the prompt.")
    ] = None,
    routing_key: RoutingOption = "",
    as_json: JsonOption = False,
    inference: InferenceOption = None,
) -> None:
    """Print the labels with their probabilities, most probable first."""
    with open_client(inference=inference) as client:
        scores = client.score(read_input(text), prompt=prompt, candidates=label or (), routing_key=routing_key)
    if as_json:
        print_json(scores)
        return
    made = table("LABEL", "PROBABILITY")
    for score in sorted(scores.scores, key=lambda score: -score.probability):
        made.add_row(score.candidate, f"{score.probability:.4f}")
    show(made)


def compare_answers(
    client: Client, question: str, references: Mapping[str, str], options: Mapping[str, Any], *, as_json: bool
) -> None:
    """Ask each reference, given by its title, and show all answers."""
    answers = {title: client.generate(question, prompt=reference, **options) for title, reference in references.items()}
    if as_json:
        for title, answer in answers.items():
            print_json({"prompt": title, "generation": answer})
        return
    titles = [
        f"{title} ({answer.start.version.rpartition('/')[2] or 'bare model'})" for title, answer in answers.items()
    ]
    texts = [answer.text.strip() or answer.why_empty for answer in answers.values()]
    console = stdout()
    if console.is_terminal and console.width >= _COLUMN_CHARS * len(texts):
        beside = table(*titles)
        beside.padding = (0, 2)
        beside.add_row(*texts)
        show(beside)
        return
    for heading, text in zip(titles, texts, strict=True):
        show(f"--- {heading}\n{text}")
