"""What is set of the API server, of who may call it, and of what may be spent.

Beside `provider_settings.py`: these variables belong to the process that serves and to the command
line that asks it. How they arrive as text is in `variables.py`; what they do is in `api/` and
`rentals/`.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from decimal import Decimal
from typing import Annotated, Final
from urllib.parse import SplitResult, urlsplit

from pydantic import AfterValidator, Field, SecretStr

from gp4u.variables import Group, Names, Token, Variable

ROLES: Final = ("read", "rent", "admin")
"""Each may do what those before it may, and more."""
_SHORTEST_TOKEN: Final = 16
_MANY: Final = 100
_SECRET_WORD: Final = re.compile(r"[A-Za-z0-9._~+/=-]+")


def _granted(value: SecretStr | None) -> SecretStr | None:
    """Refuse tokens that could be guessed, or that no header could carry."""
    if value is not None:
        split_tokens(value)
    return value


def split_tokens(value: SecretStr) -> tuple[tuple[str, SecretStr], ...]:
    """Return (role, token) of a list such as `read:...,admin:...`.

    Raises:
        ValueError: it is no such list; the text quotes nothing of it.
    """
    found = []
    for number, word in enumerate(re.split(r"[,\s]+", value.get_secret_value().strip()), 1):
        role, _, token = word.partition(":")
        if role not in ROLES:
            raise ValueError(f"entry {number} must be ROLE:TOKEN, ROLE one of {', '.join(ROLES)}")
        if len(token) < _SHORTEST_TOKEN or not _SECRET_WORD.fullmatch(token):
            raise ValueError(
                f"entry {number}: a token has {_SHORTEST_TOKEN} or more letters, digits or ._~+/=-"
            )
        found.append((role, SecretStr(token)))
    if len(found) > _MANY:
        raise ValueError(f"at most {_MANY} tokens")
    return tuple(found)


def service(*schemes: str) -> Callable[[str | None], str | None]:
    """Return a check for the address of another program; a password in it is hidden when shown."""

    def check(value: str | None) -> str | None:
        if value is None:
            return None
        parts = urlsplit(value)
        if parts.scheme not in schemes or not parts.hostname or not _has_good_port(parts):
            raise ValueError(f"{' or '.join(f'{scheme}://' for scheme in schemes)} and a host")
        return value

    return check


def _server(value: str | None) -> str | None:
    """Take the address of a GP4U server, without the slash at its end."""
    if value is None:
        return None
    parts = urlsplit(value)
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.query or parts.fragment:
        raise ValueError("http(s)://HOST[:PORT]")
    if not _has_good_port(parts):
        raise ValueError("http(s)://HOST[:PORT], the port from 1 to 65535")
    if parts.username or parts.password:
        raise ValueError("http(s)://HOST[:PORT]; the token goes into GP4U_API_TOKEN")
    return value.rstrip("/")


def _has_good_port(parts: SplitResult) -> bool:
    """Whether the port of an address, if it names one, is one that can be called."""
    try:
        return parts.port != 0
    except ValueError:
        return False


class ApiGroup(Group):
    """How the API is served, and which server the command line asks."""

    tokens: Annotated[
        SecretStr | None,
        AfterValidator(_granted),
        Variable(
            "GP4U_API_TOKENS",
            "",
            "who may call the API; needed to listen anywhere but on loopback",
            allowed="comma list of ROLE:TOKEN; roles are read, rent and admin",
        ),
    ] = None
    hosts: Annotated[
        Names,
        Variable(
            "GP4U_API_HOSTS",
            "names",
            "names under which the server may be called, besides loopback and its own address",
            allowed="comma list of host names; *.example.org covers all below",
        ),
    ] = ()
    max_body_bytes: Annotated[
        int,
        Field(ge=1024, le=64 << 20),
        Variable("GP4U_API_MAX_BODY_BYTES", "bytes", "largest body of a request"),
    ] = 1 << 20
    max_concurrent: Annotated[
        int,
        Field(ge=1, le=100_000),
        Variable("GP4U_API_MAX_CONCURRENT", "requests", "served at a time; more get 503"),
    ] = 256
    header_timeout_s: Annotated[
        float,
        Field(gt=0, le=600),
        Variable("GP4U_API_HEADER_TIMEOUT_S", "s", "how long a caller may take to send a head"),
    ] = 10.0
    url: Annotated[
        str | None,
        AfterValidator(_server),
        Variable(
            "GP4U_API_URL",
            "URL",
            "server that the command line asks; none: it does everything itself",
            allowed="http(s)://HOST[:PORT]",
        ),
    ] = None
    token: Annotated[
        Token, Variable("GP4U_API_TOKEN", "", "what the command line shows that server")
    ] = None

    @property
    def granted(self) -> tuple[tuple[str, SecretStr], ...]:
        """(role, token), in the order in which they are written."""
        return split_tokens(self.tokens) if self.tokens else ()


class BudgetGroup(Group):
    """What may be spent; None means no bound."""

    usd_per_hour: Annotated[
        Decimal | None,
        Field(gt=0, le=1_000_000),
        Variable("GP4U_BUDGET_USD_PER_HOUR", "USD/hour", "of all open rentals together"),
    ] = None
    usd_per_day: Annotated[
        Decimal | None,
        Field(gt=0, le=10_000_000),
        Variable("GP4U_BUDGET_USD_PER_DAY", "USD", "spent in the last 24 hours, and an hour more"),
    ] = None
    max_rentals: Annotated[
        int | None,
        Field(ge=0, le=100_000),
        Variable("GP4U_MAX_RENTALS", "rentals", "open at a time"),
    ] = None
