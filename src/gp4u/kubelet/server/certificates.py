"""The kubelet port's own certificate: where it comes from, and how it is replaced in time.

In this order: a pair of files, read again when they change; a certificate that the cluster signs
when asked (`kubernetes.io/kubelet-serving`, which somebody has to approve); until there is one, a
certificate that we sign ourselves, with a word in the log about it. Whatever is in force is used
from the next connection on, so nothing is ever restarted for it. Making and reading certificates is
in `keys.py`.

Source: Kubernetes documentation, "Certificates and Certificate Signing Requests", and kubernetes
pkg/controller/certificates, 1.32; checked 2026-11.
"""

from __future__ import annotations

import asyncio
import base64
import ssl
from collections.abc import Callable, Mapping
from datetime import datetime, timedelta
from pathlib import Path
from random import Random
from typing import Any, Final

import structlog

from gp4u.clock import Clock
from gp4u.errors import BadInput, KubeAbsent, KubeDenied, KubeError, KubeUnavailable
from gp4u.kube.client import KubeClient
from gp4u.kube.paths import signing_request, signing_requests
from gp4u.kubelet.server.keys import (
    Pair,
    context_of,
    new_key,
    read_pair,
    request_for,
    self_signed,
)
from gp4u.kubelet.server.trust import ClientTrust

SIGNER: Final = "kubernetes.io/kubelet-serving"
LOOK_S: Final = 60.0
"""How often files, the address and the calendar are looked at."""
PENDING_S: Final = 3300.0
"""A request is collected after an hour, whatever became of it."""
FIRST_POLL_S, LAST_POLL_S = 1.0, 60.0
AGAIN_S: Final = 30.0
DECLINED_S: Final = 1800.0
DENIED_S: Final = (10.0, 120.0)
"""First and longest wait where we may not ask: whoever mends the role looks whether it helped."""
RENEW_BETWEEN: Final = (0.7, 0.8)
"""Of a certificate's life, when the next one is asked for; the alert is on what is left later."""
_SAVED: Final = "kubelet-serving.pem"


class Declined(Exception):
    """The cluster will not sign it: denied, or failed."""


class Certificates:
    """What TLS is served with at this moment."""

    def __init__(
        self,
        client: KubeClient | None,
        *,
        node_name: str,
        address: Callable[[], str],
        trust: ClientTrust,
        clock: Clock,
        random: Random,
        files: tuple[Path, Path] | None = None,
        self_approve: bool = False,
        directory: Path | None = None,
    ) -> None:
        """Take what it goes by; nothing is read yet.

        `files` are certificate and key. `directory` is ours alone and keeps what the cluster
        signed, so that nobody has to approve another request after each restart. Without a
        `client`, nobody is asked.
        """
        self._client, self._node_name, self._address = client, node_name, address
        self._trust, self._clock, self._random = trust, clock, random
        self._files, self._self_approve = files, self_approve
        self._saved = None if directory is None else directory / _SAVED
        self._stamps: tuple[tuple[int, int], ...] = ()
        self._pair: Pair | None = None
        self._made: tuple[Pair, bytes | None, ssl.SSLContext] | None = None
        self._renew_at: datetime | None = None
        self._denials = 0
        """Times in a row that we were not allowed to ask."""
        self.source = ""
        """`files`, `cluster` or `self-signed`."""

    @property
    def until_at(self) -> datetime | None:
        """When what is in force expires."""
        return None if self._pair is None else self._pair.until_at

    @property
    def lifetime(self) -> timedelta | None:
        """How long what is in force is good for, from its first moment to its last."""
        return None if self._pair is None else self._pair.until_at - self._pair.from_at

    def context(self) -> ssl.SSLContext:
        """Return what the next connection is served with."""
        pair, client_ca = self._pair or self._sign_ourselves(), self._trust.pem
        if self._made is None or self._made[0] is not pair or self._made[1] != client_ca:
            self._made = pair, client_ca, context_of(pair, client_ca)
        return self._made[2]

    def begin(self) -> None:
        """Have something to serve with, at once.

        Raises:
            BadInput: the files are named, and cannot be used.
        """
        if self._files is not None:
            try:
                self._read_files(self._files)
            except OSError as error:
                file, why = str(error.filename), f"cannot be read: {error.strerror}"
                raise BadInput("certificate", file, why) from error
        elif not self._take_saved():
            self._sign_ourselves()

    async def run(self) -> None:
        """Replace it in time, for ever."""
        while True:
            wait_s = LOOK_S
            if self._files is not None:
                self._look_at_files(self._files)
            elif self._is_due():
                wait_s = await self._replace()
            await asyncio.sleep(wait_s)

    # --- files ---

    def _read_files(self, files: tuple[Path, Path]) -> None:
        certificate, key = files
        stamps = tuple((s.st_mtime_ns, s.st_size) for s in (each.stat() for each in files))
        if stamps == self._stamps:
            return
        pair = read_pair(key.read_bytes(), certificate.read_bytes())
        context_of(pair, None)
        self._use(pair, "files")
        self._stamps = stamps
        address = self._address()
        if address not in pair.addresses:
            structlog.get_logger().warning("certificate_lacks_address", address=address)

    def _look_at_files(self, files: tuple[Path, Path]) -> None:
        try:
            self._read_files(files)
        except (BadInput, OSError) as error:
            # Two files are not replaced at one moment: at the next look they will fit.
            structlog.get_logger().warning("certificate_unreadable", error=str(error))

    # --- the cluster ---

    def _is_due(self) -> bool:
        now = self._clock.now()
        return (
            self._pair is None
            or not self._pair.is_good(self._address(), now)
            or self._renew_at is None
            or now >= self._renew_at
        )

    async def _replace(self) -> float:
        """Get a new one from the cluster, or from ourselves; return after how long to look on."""
        pair = self._pair
        is_good = pair is not None and pair.is_good(self._address(), self._clock.now())
        if pair is None or not is_good or (self.source == "self-signed" and self._ends_soon(pair)):
            self._sign_ourselves()
        if self._client is None:
            self._renew_at = self._clock.now() + timedelta(days=1)
            return LOOK_S
        address = self._address()
        try:
            pair = await self._asked(self._client, address)
        except KubeDenied as error:
            self._denials += 1
            if self._denials == 1:
                self._not_signed(error)
            first_s, most_s = DENIED_S
            return min(most_s, first_s * 2.0 ** min(self._denials - 1, 10))
        except Declined as error:
            self._denials = 0
            self._not_signed(error)
            return DECLINED_S
        except (KubeError, BadInput) as error:
            structlog.get_logger().info("certificate_not_signed_yet", reason=str(error))
            return AGAIN_S
        self._denials = 0
        self._use(pair, "cluster")
        self._save(pair)
        return LOOK_S

    def _not_signed(self, error: Exception) -> None:
        structlog.get_logger().warning(
            "certificate_not_signed", reason=str(error), serving=self.source
        )

    async def _asked(self, client: KubeClient, address: str) -> Pair:
        """Ask the cluster for a certificate and wait for it.

        Raises:
            Declined: it will not be signed.
            KubeDenied: we may not ask.
            KubeError: the request could not be made, or is gone.
            BadInput: what was signed is of no use.
        """
        key = new_key()
        request = request_for(key, node_name=self._node_name, address=address)
        made = await client.create(
            signing_requests(),
            {
                "apiVersion": "certificates.k8s.io/v1",
                "kind": "CertificateSigningRequest",
                "metadata": {"generateName": f"gp4u-{self._node_name}-"},
                "spec": {
                    "request": base64.b64encode(request).decode(),
                    "signerName": SIGNER,
                    "usages": ["digital signature", "server auth"],
                },
            },
        )
        name = made["metadata"]["name"]
        structlog.get_logger().info("certificate_requested", request=name)
        if self._self_approve:
            await self._approve(client, made)
        pair = read_pair(key, await self._signed(client, name))
        if address not in pair.addresses:
            raise BadInput("certificate", name, f"must be for {address}")
        return pair

    async def _approve(self, client: KubeClient, made: Mapping[str, Any]) -> None:
        condition = {
            "type": "Approved",
            "status": "True",
            "reason": "GP4UNodeApproved",
            "message": "the node approves its own serving certificate, as its operator allows",
        }
        body = {**made, "status": {**(made.get("status") or {}), "conditions": [condition]}}
        try:
            await client.replace(signing_request(made["metadata"]["name"], "approval"), body)
        except KubeError as error:
            # Somebody else may approve it all the same.
            structlog.get_logger().warning("certificate_not_self_approved", reason=str(error))

    async def _signed(self, client: KubeClient, name: str) -> bytes:
        loop = asyncio.get_running_loop()
        until_s, wait_s = loop.time() + PENDING_S, FIRST_POLL_S
        while loop.time() < until_s:
            try:
                status = (await client.get(signing_request(name))).get("status") or {}
            except KubeUnavailable:
                status = {}
            except KubeDenied as error:
                # It was made, and we may not see it: another request would help nobody.
                if not self._denials:
                    self._not_signed(error)
                self._denials, status = 1, {}
            for each in status.get("conditions") or ():
                if each.get("type") in ("Denied", "Failed"):
                    told = f"{each['type']}: {each.get('reason', '')} {each.get('message', '')}"
                    raise Declined(f"request {name} is {told.strip()}")
            # Approved is not signed: only the certificate itself counts.
            if status.get("certificate"):
                return base64.b64decode(status["certificate"])
            if self._pair is None or not self._pair.is_good(self._address(), self._clock.now()):
                raise BadInput("address", self._address(), "has changed while a request waited")
            await asyncio.sleep(wait_s)
            wait_s = min(1.5 * wait_s, LAST_POLL_S)
        raise KubeAbsent("GET", signing_request(name), "nobody approved it in time")

    # --- what is in force ---

    def _sign_ourselves(self) -> Pair:
        pair = self_signed(
            new_key(), node_name=self._node_name, address=self._address(), at=self._clock.now()
        )
        structlog.get_logger().warning(
            "certificate_self_signed",
            meaning="an API server with --kubelet-certificate-authority refuses logs and exec "
            "until the request for a kubelet-serving certificate is approved",
        )
        self._use(pair, "self-signed")
        return pair

    def _use(self, pair: Pair, source: str) -> None:
        self._pair, self.source = pair, source
        share = self._random.uniform(*RENEW_BETWEEN)
        # One of our own is replaced as soon as the cluster signs.
        is_kept = source != "self-signed"
        self._renew_at = pair.from_at + share * (pair.until_at - pair.from_at) if is_kept else None
        structlog.get_logger().info(
            "certificate_in_force", source=source, until=pair.until_at.isoformat()
        )

    def _ends_soon(self, pair: Pair) -> bool:
        left = pair.until_at - self._clock.now()
        return left < (1 - RENEW_BETWEEN[0]) * (pair.until_at - pair.from_at)

    def _take_saved(self) -> bool:
        if self._saved is None or not self._saved.exists():
            return False
        try:
            block = self._saved.read_bytes()
            pair = read_pair(block, block)
        except (BadInput, OSError) as error:
            structlog.get_logger().warning("saved_certificate_unreadable", error=str(error))
            return False
        if not pair.is_good(self._address(), self._clock.now()):
            return False
        self._use(pair, "cluster")
        return True

    def _save(self, pair: Pair) -> None:
        if self._saved is None:
            return
        try:
            self._saved.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            part = self._saved.with_suffix(".part")
            part.touch(mode=0o600)
            part.write_bytes(pair.key + b"\n" + pair.certificate)
            part.replace(self._saved)
        except OSError as error:
            structlog.get_logger().warning("certificate_not_saved", error=type(error).__name__)
