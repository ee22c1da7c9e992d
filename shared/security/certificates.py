"""Certificate, key and client CA as files that are renewed while we run: read whole, checked, kept until better ones
are there.
"""

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
    certificate: Path
    key: Path
    client_ca: Path | None = None
    """Set: every client must show a certificate of this authority (mTLS)."""


@dataclass(frozen=True)
class TlsMaterial:
    """PEM bytes that belong together, and until when."""

    certificate: bytes
    key: bytes
    client_ca: bytes | None
    expires: datetime


class CertificateReader:
    """`material` is what was read and found good last. Thread-safe: handshakes of many connections ask at once."""

    def __init__(self, files: TlsFiles, on_read: Callable[[TlsMaterial], None] = lambda material: None) -> None:
        """Raises ConfigError if the files can't be used at the start."""
        self._watched = [
            WatchedFile(path) for path in (files.certificate, files.key, files.client_ca) if path is not None
        ]
        self._on_read = on_read
        self._lock = threading.Lock()
        self.material = self._read()

    def renewed(self) -> TlsMaterial | None:
        """New material if the files changed since the last call and fit together. Never raises: what was good goes on
        being used.
        """
        with self._lock:
            try:
                if not any(file.changed() for file in self._watched):
                    return None
                self.material = self._read()
            except Exception as error:  # the caller is a handshake inside gRPC, which an error would end for good
                log.error("the renewed TLS files can't be used; those before still serve: %s", error)
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
        _tell(material)
        self._on_read(material)
        return material


def _checked(certificate: bytes, key: bytes, client_ca: bytes | None) -> datetime:
    """When the certificate expires. Raises ConfigError unless key and certificate belong together and the CA holds a
    certificate.
    """
    try:
        leaf = x509.load_pem_x509_certificates(certificate)[0]
        if client_ca is not None:
            x509.load_pem_x509_certificates(client_ca)
    except ValueError as error:
        raise ConfigError(f"there is no readable certificate: {error}") from error
    try:
        own = load_pem_private_key(key, password=None).public_key()
    except (ValueError, TypeError, UnsupportedAlgorithm):
        raise ConfigError("the key can't be read: it must be PEM, without a password") from None
    if own.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo) != leaf.public_key().public_bytes(
        Encoding.DER, PublicFormat.SubjectPublicKeyInfo
    ):
        raise ConfigError("certificate and key don't belong together")
    return leaf.not_valid_after_utc


def _tell(material: TlsMaterial) -> None:
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
