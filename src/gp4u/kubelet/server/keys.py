"""Keys and certificates as values: make them, ask for them, read them, and put them to use.

Hides the cryptography library and OpenSSL's ways. Which certificate is in force, and when there is
a new one, is decided in `certificates.py`.
"""

from __future__ import annotations

import os
import ssl
from datetime import datetime, timedelta
from ipaddress import ip_address
from typing import Final

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from msgspec import Struct

from gp4u.errors import BadInput

SELF_SIGNED_FOR: Final = timedelta(days=365)
_EARLIER: Final = timedelta(minutes=5)
"""Clocks of others may be behind."""
_UNREADABLE: Final = (ValueError, TypeError, UnsupportedAlgorithm)


class Pair(Struct, frozen=True):
    """A key with its certificate, and those between it and its CA; PEM."""

    key: bytes
    certificate: bytes
    from_at: datetime
    until_at: datetime
    addresses: frozenset[str]
    """The IP addresses and names that it is good for."""

    def is_good(self, address: str, at: datetime) -> bool:
        """Whether it serves this address now."""
        return address in self.addresses and self.from_at <= at < self.until_at


def new_key() -> bytes:
    """Return a new P-256 key as PEM."""
    return ec.generate_private_key(ec.SECP256R1()).private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )


def request_for(key: bytes, *, node_name: str, address: str) -> bytes:
    """Return the request that the kubelet-serving signer takes, as PEM.

    Source: kubernetes pkg/apis/certificates/helpers.go (ValidateKubeletServingCSR), 1.32;
    checked 2026-11.
    """
    builder = x509.CertificateSigningRequestBuilder().subject_name(_subject(node_name))
    builder = builder.add_extension(_names(address), critical=False)
    return builder.sign(_private(key), hashes.SHA256()).public_bytes(serialization.Encoding.PEM)


def self_signed(key: bytes, *, node_name: str, address: str, at: datetime) -> Pair:
    """Return a certificate that nobody vouches for."""
    private = _private(key)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(_subject(node_name))
        .issuer_name(_subject(node_name))
        .public_key(private.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(at - _EARLIER)
        .not_valid_after(at + SELF_SIGNED_FOR)
        .add_extension(_names(address), critical=False)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .sign(private, hashes.SHA256())
    )
    return read_pair(key, certificate.public_bytes(serialization.Encoding.PEM))


def read_pair(key: bytes, certificate: bytes) -> Pair:
    """Return a pair from its two PEM texts.

    Raises:
        BadInput: one of them cannot be read, or they do not belong together.
    """
    try:
        first = x509.load_pem_x509_certificates(certificate)[0]
        private = serialization.load_pem_private_key(key, None)
    except _UNREADABLE as error:
        raise BadInput("certificate", "...", "must be PEM, with its key unencrypted") from error
    if first.public_key() != private.public_key():
        raise BadInput("certificate", "...", "must belong to its key")
    return Pair(
        key,
        certificate,
        first.not_valid_before_utc,
        first.not_valid_after_utc,
        _addresses(first),
    )


def check_authority(pem: bytes) -> bytes:
    """Return certificates of authorities as they are.

    Raises:
        BadInput: none can be read.
    """
    try:
        x509.load_pem_x509_certificates(pem)
    except _UNREADABLE as error:
        raise BadInput("client CA", "...", "must be PEM certificates") from error
    return pem


def context_of(pair: Pair, client_ca: bytes | None) -> ssl.SSLContext:
    """Return TLS with this certificate; with a CA, clients are asked for theirs.

    A certificate that the CA did not sign ends the handshake; no certificate does not.

    Raises:
        BadInput: OpenSSL does not take the pair.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols(["http/1.1"])
    # A resumed session would bring back a client's certificate without looking at it again.
    context.num_tickets = 0
    context.options |= ssl.OP_NO_TICKET
    _load(context, pair)
    if client_ca is not None:
        # Outside of the blocks people write what they like; OpenSSL takes ASCII only.
        context.load_verify_locations(cadata=client_ca.decode("ascii", "ignore"))
        context.verify_mode = ssl.CERT_OPTIONAL
    return context


def _load(context: ssl.SSLContext, pair: Pair) -> None:
    """Give OpenSSL the pair; it takes files only, so the key has one that is never on a disk."""
    file = os.memfd_create("kubelet-serving", os.MFD_CLOEXEC)
    try:
        os.write(file, pair.key + b"\n" + pair.certificate)
        context.load_cert_chain(f"/proc/self/fd/{file}")
    except (OSError, ValueError) as error:  # an SSLError is an OSError
        raise BadInput("certificate", "...", f"OpenSSL does not take it ({error})") from error
    finally:
        os.close(file)


def _private(key: bytes) -> ec.EllipticCurvePrivateKey:
    private = serialization.load_pem_private_key(key, None)
    if not isinstance(private, ec.EllipticCurvePrivateKey):
        raise BadInput("key", "...", "must be one that we made")
    return private


def _subject(node_name: str) -> x509.Name:
    return x509.Name(
        [
            x509.NameAttribute(NameOID.ORGANIZATION_NAME, "system:nodes"),
            x509.NameAttribute(NameOID.COMMON_NAME, f"system:node:{node_name}"),
        ]
    )


def _names(address: str) -> x509.SubjectAlternativeName:
    try:
        return x509.SubjectAlternativeName([x509.IPAddress(ip_address(address))])
    except ValueError:
        return x509.SubjectAlternativeName([x509.DNSName(address)])


def _addresses(certificate: x509.Certificate) -> frozenset[str]:
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return frozenset()
    found = {str(each) for each in names.get_values_for_type(x509.IPAddress)}
    return frozenset(found | set(names.get_values_for_type(x509.DNSName)))
