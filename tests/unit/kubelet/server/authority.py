"""A certificate authority for tests: it signs what it is told to."""

from __future__ import annotations

import ssl
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID, ObjectIdentifier

CLIENT, SERVER = ExtendedKeyUsageOID.CLIENT_AUTH, ExtendedKeyUsageOID.SERVER_AUTH


class Authority:
    """One CA."""

    def __init__(self, name: str = "cluster") -> None:
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        now = datetime.now(UTC)
        certificate = (
            x509.CertificateBuilder()
            .subject_name(self._name)
            .issuer_name(self._name)
            .public_key(self._key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - timedelta(days=3650))
            .not_valid_after(now + timedelta(days=3650))
            .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
            .sign(self._key, hashes.SHA256())
        )
        self.pem = certificate.public_bytes(serialization.Encoding.PEM)

    def pair(
        self,
        name: str,
        *organisations: str,
        usage: ObjectIdentifier = CLIENT,
        address: str = "127.0.0.1",
    ) -> tuple[bytes, bytes]:
        """Return a key and a certificate for it, as PEM."""
        key = ec.generate_private_key(ec.SECP256R1())
        pem = key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
        words = [x509.NameAttribute(NameOID.ORGANIZATION_NAME, each) for each in organisations]
        subject = x509.Name([*words, x509.NameAttribute(NameOID.COMMON_NAME, name)])
        request = (
            x509.CertificateSigningRequestBuilder()
            .subject_name(subject)
            .add_extension(
                x509.SubjectAlternativeName([x509.IPAddress(ip_address(address))]), critical=False
            )
            .sign(key, hashes.SHA256())
        )
        signed = self.sign(request.public_bytes(serialization.Encoding.PEM), usage=usage)
        return pem, signed

    def sign(
        self,
        request: bytes,
        *,
        usage: ObjectIdentifier = SERVER,
        at: datetime | None = None,
        for_: timedelta = timedelta(days=365),
    ) -> bytes:
        """Sign what is asked for, and return the certificate as PEM."""
        asked = x509.load_pem_x509_csr(request)
        begin = at or datetime.now(UTC) - timedelta(minutes=5)
        builder = (
            x509.CertificateBuilder()
            .subject_name(asked.subject)
            .issuer_name(self._name)
            .public_key(asked.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(begin)
            .not_valid_after(begin + for_)
            .add_extension(x509.ExtendedKeyUsage([usage]), critical=False)
        )
        for each in asked.extensions:
            builder = builder.add_extension(each.value, critical=each.critical)
        certificate = builder.sign(self._key, hashes.SHA256())
        return certificate.public_bytes(serialization.Encoding.PEM)


def client_context(
    folder: Path, pair: tuple[bytes, bytes] | None = None, *, ca: bytes | None = None
) -> ssl.SSLContext:
    """Return TLS of a client; with a CA it checks the server, with a pair it says who it is."""
    context = ssl.create_default_context(cadata=ca.decode() if ca else None)
    if ca is None:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    if pair is not None:
        file = folder / "client.pem"
        file.write_bytes(pair[0] + pair[1])
        context.load_cert_chain(file)
    return context
