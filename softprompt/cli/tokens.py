"""`softprompt tokens`: create a bearer token, or print the hash of one for a callers file."""

from __future__ import annotations

import typer

from shared.security.tokens import MIN_TOKEN_CHARS, hash_token, is_token, new_token
from softprompt.cli.failures import EXIT_INVALID, Failure
from softprompt.cli.options import JsonOption, example
from softprompt.cli.output import show, show_or_json
from softprompt.cli.text_input import read_input

app = typer.Typer(no_args_is_help=True)


@app.command(epilog=example("softprompt tokens new"))
def new(as_json: JsonOption = False) -> None:
    """Create a token. It is shown only now: a callers file holds just its hash (token_sha256)."""
    token = new_token()
    made = {"token": token, "token_sha256": hash_token(token)}
    show_or_json(made, "\n".join(f"{name:<14}{value}" for name, value in made.items()), as_json)


@app.command(name="hash", epilog=example("softprompt tokens hash < token.txt"))
def hash_() -> None:
    """Print the hash of the token on standard input. An argument would stay in the shell's history."""
    token = read_input("-").strip()
    if not is_token(token):
        raise Failure(
            f"not a token: it needs at least {MIN_TOKEN_CHARS} characters of A-Z a-z 0-9 - . _ ~ + / =",
            EXIT_INVALID,
            "`softprompt tokens new` creates one that can't be guessed",
        )
    show(hash_token(token))
