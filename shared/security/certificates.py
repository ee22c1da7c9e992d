"""Reads and checks the TLS files (certificate, key, client CA), and reloads them when they are renewed."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_pem_private_key

from shared.config import ConfigError
from shared.security.watched_file import WatchedFile

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class TlsFiles:
    """Paths of the TLS files (PEM)."""

    certificate: Path
    key: Path
    client_ca: Path | None = None
    """If set, every client needs a certificate of this authority (mTLS)."""


@dataclass(frozen=True)
class TlsMaterial:
    """Content (PEM) of TLS files that fit together, and when the certificate expires."""

    certificate: bytes
    key: bytes
    client_ca: bytes | None
    expires: datetime


class CertificateReader:
    """Keeps the newest valid files in `material`. Thread-safe, because handshakes run in parallel."""

    def __init__(self, files: TlsFiles, on_read: Callable[[TlsMaterial], None] = lambda material: None) -> None:
        """Raises ConfigError if the files are invalid at the start. `on_read` is called with each valid material."""
        self._watched = [
            WatchedFile(path) for path in (files.certificate, files.key, files.client_ca) if path is not None
        ]
        self._on_read = on_read
        self._lock = threading.Lock()
        self.material = self._read()

    def renewed(self) -> TlsMaterial | None:
        """New material if the files have changed since the last call and are valid; else None. Never raises."""
        with self._lock:
            try:
                if not any(file.changed() for file in self._watched):
                    return None
                self.material = self._read()
            except Exception as error:  # gRPC calls this in a handshake and would stop calling it after an error
                log.error("the renewed TLS files are invalid; keeping the previous ones: %s", error)
                return None
            return self.material

    def _read(self) -> TlsMaterial:
        try:
            certificate, key, *rest = [file.read() for file in self._watched]
        except OSError as error:
            raise ConfigError(f"{error.filename}: {error.strerror}") from error
        material = TlsMaterial(
            certificate, key, rest[0] if rest else None, _checked(certificate, key, rest[0] if rest else None)
        )
        _log_read(material)
        self._on_read(material)
        return material


def _checked(certificate: bytes, key: bytes, client_ca: bytes | None) -> datetime:
    """When the certificate expires. Raises ConfigError if the key doesn't match or the CA file has no certificate."""
    try:
        leaf = x509.load_pem_x509_certificates(certificate)[0]
        if client_ca is not None:
            x509.load_pem_x509_certificates(client_ca)
    except ValueError as error:
        raise ConfigError(f"no readable certificate: {error}") from error
    try:
        own = load_pem_private_key(key, password=None).public_key()
    except (ValueError, TypeError, UnsupportedAlgorithm):
        raise ConfigError("the key can't be read: it must be PEM, without a password") from None
    if own.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo) != leaf.public_key().public_bytes(
        Encoding.DER, PublicFormat.SubjectPublicKeyInfo
    ):
        raise ConfigError("certificate and key don't match")
    return leaf.not_valid_after_utc


def _log_read(material: TlsMaterial) -> None:
    fields = {
        "expires": material.expires.isoformat(timespec="seconds"),
        "client_certificates": material.client_ca is not None,
    }
    if material.expires <= datetime.now(UTC):
        log.error(
            "the TLS certificate has EXPIRED: clients refuse it until its file is renewed", extra={"fields": fields}
        )
    else:
        log.info("TLS certificate read", extra={"fields": fields})
