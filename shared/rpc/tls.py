"""Server credentials that reload their certificate when its files change.

Each new handshake uses the newest certificate; open connections keep theirs.
"""

from __future__ import annotations

import grpc
from prometheus_client import CollectorRegistry, Gauge

from shared.security.certificates import CertificateReader, TlsFiles, TlsMaterial


def server_credentials(files: TlsFiles, metrics: CollectorRegistry | None = None) -> grpc.ServerCredentials:
    """Credentials that follow the files. Raises ConfigError if the files are invalid now; later errors are logged."""
    expiry = Gauge(
        "softprompt_tls_certificate_expiry_timestamp_seconds", "When the served certificate expires.", registry=metrics
    )
    reader = CertificateReader(files, lambda material: expiry.set(material.expires.timestamp()))

    def renewed() -> grpc.ServerCertificateConfiguration | None:
        material = reader.renewed()
        return None if material is None else _configuration(material)

    return grpc.dynamic_ssl_server_credentials(
        _configuration(reader.material),
        renewed,  # type: ignore[arg-type]  # the stubs don't know that None means unchanged
        require_client_authentication=files.client_ca is not None,
    )


def _configuration(material: TlsMaterial) -> grpc.ServerCertificateConfiguration:
    return grpc.ssl_server_certificate_configuration([(material.key, material.certificate)], material.client_ca)
