"""Options before the command: whom to trust and who one is. Each has a variable, which is where secrets belong."""

from __future__ import annotations

from collections.abc import Mapping
from contextvars import ContextVar
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Any

import typer

from softprompt.cli.options import VersionOption

if TYPE_CHECKING:
    from softprompt.client.security import ClientSecurity


_said: ContextVar[Mapping[str, bool | str | None]] = ContextVar("softprompt_security_options", default={})  # noqa: B039 - never mutated


def options(
    tls: Annotated[
        bool | None,
        typer.Option(
            "--tls/--plaintext", help="Speak TLS or not (SOFTPROMPT_TLS=on|off) [not with this machine, else yes].", show_default=False
        ),
    ] = None,
    tls_ca_file: Annotated[
        str | None, typer.Option(metavar="PEM", help="Authorities to trust instead of the system's (SOFTPROMPT_TLS_CA_FILE).")
    ] = None,
    tls_certificate_file: Annotated[
        str | None, typer.Option(metavar="PEM", help="Own certificate, for services that ask for one (SOFTPROMPT_TLS_CERTIFICATE_FILE).")
    ] = None,
    tls_key_file: Annotated[str | None, typer.Option(metavar="PEM", help="Its key (SOFTPROMPT_TLS_KEY_FILE).")] = None,
    tls_server_name: Annotated[
        str | None, typer.Option(metavar="NAME", help="Name in the services' certificates (SOFTPROMPT_TLS_SERVER_NAME).")
    ] = None,
    token_file: Annotated[
        str | None, typer.Option(metavar="FILE", help="File with the bearer token (SOFTPROMPT_TOKEN_FILE; or SOFTPROMPT_TOKEN itself).")
    ] = None,
    version: VersionOption = False,
) -> None:
    said = {
        "tls": tls,
        "ca_file": tls_ca_file,
        "certificate_file": tls_certificate_file,
        "key_file": tls_key_file,
        "server_name": tls_server_name,
        "token_file": token_file,
    }
    _said.set(said)


def chosen_security() -> ClientSecurity:
    """The environment's, and over it what was said before the command. Raises InvalidInput."""
    from softprompt.client.security import ClientSecurity

    said: dict[str, Any] = {name: value for name, value in _said.get().items() if value is not None}
    return replace(ClientSecurity.from_environment(), **said)
