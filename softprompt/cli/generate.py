"""`softprompt generate` and `softprompt classify`: use a published prompt."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from shared.values.sampling import Sampling
from softprompt.cli.options import InferenceOption, JsonOption, example, open_client
from softprompt.cli.output import print_json, show, stderr, table
from softprompt.cli.sampling import with_sampling_options
from softprompt.cli.text_input import read_input
from softprompt.types.generation import GenerationEnd, GenerationStart

TextArgument = Annotated[str, typer.Argument(metavar="TEXT", help="The input; - reads standard input.")]
RoutingOption = Annotated[
    str,
    typer.Option(metavar="KEY", help="If an alias names several versions, the same key always gets the same version."),
]
REFERENCE_HELP = "NAME (its default alias), NAME@ALIAS or NAME@7"


def register(app: typer.Typer) -> None:
    """Add the commands to `app`."""
    app.command(
        epilog=example('softprompt generate --prompt product-descriptions "wireless mouse, 2.4 GHz, 18 months battery"')
    )(generate)
    app.command(epilog=example('softprompt classify --prompt review-sentiment "It broke after a day."'))(classify)


@with_sampling_options
def generate(
    text: TextArgument,
    sampling: Sampling,
    prompt: Annotated[str, typer.Option(help=f"{REFERENCE_HELP}. Default: the bare model.")] = "",
    routing_key: RoutingOption = "",
    truncate: Annotated[
        bool, typer.Option("--truncate", help="Truncate an input that is too long, from the left.")
    ] = False,
    as_json: JsonOption = False,
    inference: InferenceOption = None,
) -> None:
    """Stream an answer. Ctrl-C also stops the generation on the service."""
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
                sys.stdout.write(delta.text)
                sys.stdout.flush()
        ends = stream.ends
    for index, text in texts.items():
        if not text.strip() and index in ends:
            stderr().print(ends[index].why_empty, markup=False)
        if as_json:
            print_json({"end": ends.get(index)})
            continue
        if len(texts) > 1:
            sys.stdout.write(text)
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
