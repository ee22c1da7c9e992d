"""Options before the command: TLS and the caller's token. Each has an environment variable; secrets belong there."""

from __future__ import annotations

from collections.abc import Mapping
from contextvars import ContextVar
from dataclasses import replace
from functools import partial
from importlib.metadata import version as version_of
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from softprompt.client.security import ClientSecurity


_pem = partial(typer.Option, metavar="PEM")
_given: ContextVar[Mapping[str, bool | str | None]] = ContextVar("softprompt_security_options", default={})  # noqa: B039 - never mutated


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"softprompt {version_of('softprompt')}")
        raise typer.Exit


_VersionOption = Annotated[
    bool,
    typer.Option(
        "--version", help="Print the version and exit.", is_eager=True, callback=_print_version, show_default=False
    ),
]


def options(
    tls: Annotated[
        bool | None,
        typer.Option(
            "--tls/--plaintext",
            help="Use TLS or not (SOFTPROMPT_TLS=on|off) [default: TLS to other machines, plaintext to this one].",
            show_default=False,
        ),
    ] = None,
    tls_ca_file: Annotated[
        str | None, _pem(help="Certificate authorities to trust instead of the system's (SOFTPROMPT_TLS_CA_FILE).")
    ] = None,
    tls_certificate_file: Annotated[
        str | None, _pem(help="Client certificate, for services that require one (SOFTPROMPT_TLS_CERTIFICATE_FILE).")
    ] = None,
    tls_key_file: Annotated[str | None, _pem(help="Key of the client certificate (SOFTPROMPT_TLS_KEY_FILE).")] = None,
    tls_server_name: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="Host name in the certificates, if it differs from the address (SOFTPROMPT_TLS_SERVER_NAME).",
        ),
    ] = None,
    token_file: Annotated[
        str | None,
        typer.Option(
            metavar="FILE",
            help="File that holds the bearer token (SOFTPROMPT_TOKEN_FILE; SOFTPROMPT_TOKEN holds the token itself).",
        ),
    ] = None,
    version: _VersionOption = False,
) -> None:
    """Remember the options for `chosen_security`."""
    files = {"ca_file": tls_ca_file, "certificate_file": tls_certificate_file, "key_file": tls_key_file}
    _given.set({"tls": tls, **files, "server_name": tls_server_name, "token_file": token_file})


def chosen_security() -> ClientSecurity:
    """The settings of the environment, overridden by the options before the command. Raises InvalidInput."""
    from softprompt.client.security import ClientSecurity

    given: dict[str, Any] = {name: value for name, value in _given.get().items() if value is not None}
    return replace(ClientSecurity.from_environment(), **given)
