"""TLS and tokens of the client, from arguments or from the environment."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass

import grpc

from shared.errors import InvalidInput
from shared.loopback import is_loopback
from shared.process.user_cache import expanded
from shared.security.watched_file import WatchedFile

TLS_VARIABLE, CA_VARIABLE = "SOFTPROMPT_TLS", "SOFTPROMPT_TLS_CA_FILE"
CERTIFICATE_VARIABLE, KEY_VARIABLE = "SOFTPROMPT_TLS_CERTIFICATE_FILE", "SOFTPROMPT_TLS_KEY_FILE"
SERVER_NAME_VARIABLE = "SOFTPROMPT_TLS_SERVER_NAME"
TOKEN_VARIABLE, TOKEN_FILE_VARIABLE = "SOFTPROMPT_TOKEN", "SOFTPROMPT_TOKEN_FILE"
_TOKEN = re.compile(r"[\x21-\x7e]*")


@dataclass(frozen=True)
class ClientSecurity:
    """By default plaintext to this machine and TLS with the system's certificate authorities to others."""

    tls: bool | None = None
    """None: TLS with a TLS file, or to another machine. False sends everything unencrypted, including tokens."""
    ca_file: str = ""
    """Certificate authorities to trust, as PEM; empty: the system's."""
    certificate_file: str = ""
    """Client certificate, as PEM, for services that require one. Read when a channel opens, like its key."""
    key_file: str = ""
    server_name: str = ""
    """Name in the services' certificates, if it differs from the address."""
    token: str = ""
    token_file: str = ""
    """Read again whenever it changes. Takes precedence over `token`."""

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] = os.environ) -> ClientSecurity:
        """The settings of the SOFTPROMPT_TLS and SOFTPROMPT_TOKEN variables. Raises InvalidInput for a bad value."""
        return cls(
            tls=_on_or_off(environment.get(TLS_VARIABLE, "")),
            ca_file=environment.get(CA_VARIABLE, ""),
            certificate_file=environment.get(CERTIFICATE_VARIABLE, ""),
            key_file=environment.get(KEY_VARIABLE, ""),
            server_name=environment.get(SERVER_NAME_VARIABLE, ""),
            token=environment.get(TOKEN_VARIABLE, ""),
            token_file=environment.get(TOKEN_FILE_VARIABLE, ""),
        )

    def __repr__(self) -> str:
        """Hides the token, since representations end up in logs."""
        shown = {**vars(self), "token": "***" if self.token else ""}
        return f"ClientSecurity({', '.join(f'{name}={value!r}' for name, value in shown.items())})"

    def uses_tls(self, endpoint: str) -> bool:
        """Whether a connection to this address uses TLS."""
        if self.tls is not None:
            return self.tls
        return bool(self.ca_file or self.certificate_file) or not is_local(endpoint)

    def channel_credentials(self) -> grpc.ChannelCredentials:
        """gRPC's credentials for TLS. Raises InvalidInput naming a file that can't be read."""
        if bool(self.certificate_file) != bool(self.key_file):
            raise InvalidInput.of(CERTIFICATE_VARIABLE, f"and {KEY_VARIABLE} must be set together")
        return grpc.ssl_channel_credentials(
            root_certificates=_pem(self.ca_file, CA_VARIABLE, "CERTIFICATE"),
            private_key=_pem(self.key_file, KEY_VARIABLE, "PRIVATE KEY"),
            certificate_chain=_pem(self.certificate_file, CERTIFICATE_VARIABLE, "CERTIFICATE"),
        )


class TokenSource:
    """The current token: fixed, or from a file that may be renewed."""

    def __init__(self, security: ClientSecurity) -> None:
        self._fixed = security.token
        self._file = WatchedFile(security.token_file) if security.token_file else None
        self._last = ""

    def token(self) -> str:
        """The token; empty for none. Raises InvalidInput for what is no token, or a file that was never readable."""
        if self._file is None:
            return _checked(self._fixed, TOKEN_VARIABLE)
        if self._file.changed() or not self._last:
            content = _read(str(self._file.path), TOKEN_FILE_VARIABLE, self._file) or b""
            self._last = _checked(content.decode("utf-8-sig", errors="replace"), TOKEN_FILE_VARIABLE)
        return self._last


def _checked(token: object, variable: str) -> str:
    """The token without surrounding white space. Raises InvalidInput for one that gRPC can't send as a header."""
    if isinstance(token, str) and _TOKEN.fullmatch(found := token.strip()):
        return found
    raise InvalidInput.of(variable, "is not a token: it may have visible characters of ASCII only, and no space")


def is_local(endpoint: str) -> bool:
    """Whether `host:port`, `dns:///host:port`, `ipv4:a:1,b:2` or `unix:path` is this machine; unusual forms are not."""
    return endpoint.startswith("unix:") or all(is_loopback(host) for host in hosts_of(endpoint))


def hosts_of(endpoint: str) -> list[str]:
    """The hosts of an address that is not a Unix socket, in their original spelling."""
    scheme = next((scheme for scheme in ("dns:", "ipv4:", "ipv6:") if endpoint.startswith(scheme)), "")
    addresses = endpoint.removeprefix(scheme).removeprefix("///" if scheme else "")
    return [_host_of(address) for address in addresses.split(",")]


def _host_of(address: str) -> str:
    """The host of `host`, `host:port`, `[IPv6]:port` or an IPv6 address without brackets, which has no port."""
    bracketed, bracket, after = address.rpartition("]")
    if bracket:
        return bracketed + bracket if not after or after.startswith(":") else address
    host, _, _ = address.partition(":")
    return host if address.count(":") < 2 else address


def _on_or_off(text: str) -> bool | None:
    if text.lower() in ("", "auto"):
        return None
    if text.lower() in ("on", "true", "1", "off", "false", "0"):
        return text.lower() in ("on", "true", "1")
    raise InvalidInput.of(TLS_VARIABLE, f"{text!r} must be on, off or auto")


def _pem(path: str, variable: str, label: str) -> bytes | None:
    """The content of a file of PEM. Of another one, gRPC says only that it can't connect."""
    content = _read(path, variable)
    if content is not None and f"{label}-----".encode() not in content:
        raise InvalidInput.of(variable, f"{path} is not PEM with a {label.lower()}")
    return content


def _read(path: str, variable: str, watched: WatchedFile | None = None) -> bytes | None:
    if not path:
        return None
    try:
        return watched.read() if watched else expanded(path).read_bytes()
    except OSError as error:
        raise InvalidInput.of(variable, f"{path}: {error.strerror}") from error
