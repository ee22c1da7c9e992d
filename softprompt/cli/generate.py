"""`softprompt generate` and `softprompt classify`: using what was trained."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from softprompt.cli.options import InferenceOption, JsonOption, example, open_client
from softprompt.cli.output import print_json, show, stderr, table
from softprompt.cli.text_input import read_input
from softprompt.types.common import Sampling

TextArgument = Annotated[str, typer.Argument(metavar="TEXT", help="The input; - reads it from stdin.")]
RoutingOption = Annotated[
    str, typer.Option(metavar="KEY", help="Of an alias that names several versions, the same key always gets the same one.")
]
REFERENCE_HELP = "NAME (its default alias), NAME@ALIAS or NAME@7"


def register(app: typer.Typer) -> None:
    app.command(epilog=example('softprompt generate --prompt product-descriptions "wireless mouse, 2.4 GHz, 18 months battery"'))(generate)
    app.command(epilog=example('softprompt classify --prompt review-sentiment "It broke after a day."'))(classify)


def generate(
    text: TextArgument,
    prompt: Annotated[str, typer.Option(help=f"{REFERENCE_HELP}; left out: the bare model.")] = "",
    max_new_tokens: Annotated[int | None, typer.Option(help="Upper bound of generated tokens.")] = None,
    temperature: Annotated[float | None, typer.Option(help="0 is greedy.")] = None,
    top_k: Annotated[int | None, typer.Option(help="Only the k most probable tokens.")] = None,
    top_p: Annotated[float | None, typer.Option(help="Only the most probable tokens, up to this sum.")] = None,
    min_p: Annotated[float | None, typer.Option(help="Only tokens at least this fraction as probable as the best.")] = None,
    repetition_penalty: Annotated[float | None, typer.Option(help="Above 1: repeat less.")] = None,
    seed: Annotated[int | None, typer.Option(help="The same seed gives the same text.")] = None,
    stop: Annotated[list[str] | None, typer.Option(help="Stop before this text; may be repeated.")] = None,
    routing_key: RoutingOption = "",
    truncate: Annotated[bool, typer.Option("--truncate", help="Cut an input that is too long, from the left.")] = False,
    as_json: JsonOption = False,
    inference: InferenceOption = None,
) -> None:
    """Stream an answer. Ctrl-C stops the generation on the service, too."""
    sampling = Sampling(
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        min_p=min_p,
        repetition_penalty=repetition_penalty,
        seed=seed,
        stop_sequences=tuple(stop or ()),
        max_new_tokens=max_new_tokens,
    )
    with open_client(inference=inference) as client:
        stream = client.stream(read_input(text), prompt=prompt, sampling=sampling, routing_key=routing_key, truncate=truncate)
        start = stream.started()
        if as_json:
            print_json({"start": start})
        for delta in stream:
            if as_json:
                print_json({"delta": delta})
            else:
                sys.stdout.write(delta.text)
                sys.stdout.flush()
        end = stream.end
    if as_json:
        print_json({"end": end})
        return
    show("")
    if end is not None and stderr().is_terminal:
        first = "" if end.first_token_time_seconds is None else f", first token after {1000 * end.first_token_time_seconds:.0f} ms"
        stderr().print(
            f"{start.version or 'bare model'}: {end.output_tokens} tokens, {end.finish_reason}{first}", style="dim", markup=False
        )


def classify(
    text: TextArgument,
    prompt: Annotated[str, typer.Option(help=f"{REFERENCE_HELP}.")],
    label: Annotated[list[str] | None, typer.Option(help="Candidate, may be repeated; left out: the prompt's own labels.")] = None,
    routing_key: RoutingOption = "",
    as_json: JsonOption = False,
    inference: InferenceOption = None,
) -> None:
    """Print the most probable label, and the probability of each."""
    with open_client(inference=inference) as client:
        scores = client.score(read_input(text), prompt=prompt, candidates=label or (), routing_key=routing_key)
    if as_json:
        print_json(scores)
        return
    made = table("LABEL", "PROBABILITY")
    for score in sorted(scores.scores, key=lambda score: -score.probability):
        made.add_row(score.candidate, f"{score.probability:.4f}")
    show(made)
