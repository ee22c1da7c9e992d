"""`softprompt generate` and `softprompt classify`: use a published prompt."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any

import typer

from shared.values.generation import GenerationEnd, GenerationStart
from shared.values.sampling import Sampling
from softprompt.cli.options import REFERENCE_HELP, InferenceOption, JsonOption, example, open_client, options_under
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
in_file = options_under("A file of inputs")
_COLUMN_CHARS = 32
"""A terminal with fewer characters for each answer shows them one after the other."""


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
        str | None, in_file(help="Answer every row of this file (CSV, TSV, XLSX, Parquet, JSON lines).")
    ] = None,
    out: Annotated[str, in_file(help="File for the rows with their answers; - is stdout.")] = "-",
    input: Annotated[str, in_file(metavar="COLUMN", help="Column of the inputs, if not found by name.")] = "",
    answer_column: Annotated[str, in_file(metavar="COLUMN", help="New column for the answers.")] = "answer",
    encoding: Annotated[str, in_file(help="Encoding of a file that is neither UTF-8 nor UTF-16, such as cp1252.")] = "",
    concurrency: Annotated[int, in_file(min=1, max=1024, help="Rows that are generated at the same time.")] = 8,
    overwrite: Annotated[bool, in_file("--overwrite", help="Replace the output file if it exists.")] = False,
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
        task = FileTask(file, out, targets, sampling, input, encoding, routing_key, truncate, concurrency, overwrite)
        with open_client(inference=inference) as client:
            generate_file(client, task)
        return
    assert text is not None
    options: dict[str, Any] = {"sampling": sampling, "routing_key": routing_key, "truncate": truncate}
    with open_client(inference=inference) as client:
        if others:
            compare_answers(client, read_input(text), {prompt or "base": prompt, **others}, options, as_json=as_json)
            return
        stream = client.stream(read_input(text), prompt=prompt, **options)
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
    text = f"{start.version or 'bare model'}: {end.output_tokens} tokens, {end.finish_reason}"
    if end.first_token_time_seconds is not None:
        text += f", first token after {1000 * end.first_token_time_seconds:.0f} ms"
    stderr().print(text, style="dim", markup=False)


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
        print_json(*({"prompt": title, "generation": answer} for title, answer in answers.items()))
        return
    versions = [answer.start.version.rpartition("/")[2] or "bare model" for answer in answers.values()]
    titles = [f"{title} ({version})" for title, version in zip(answers, versions, strict=True)]
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
