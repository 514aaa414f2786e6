"""Who may call: what is kept of tokens, what guessing costs, and where tokens must be set."""

from __future__ import annotations

import gc

import pytest
from pydantic import SecretStr

from gp4u.api.door.tokens import (
    GUESS_WINDOW_S,
    GUESSES,
    Guesses,
    Tokens,
    check_exposure,
    is_loopback,
)
from gp4u.errors import BadInput

READ, ADMIN = "read-token-canary-1", "admin-token-canary-1"


def granted(*pairs: tuple[str, str]) -> Tokens:
    return Tokens([(role, SecretStr(token)) for role, token in pairs])


def role_of(tokens: Tokens, token: str) -> str | None:
    return tokens.role_of(tokens.digest(token.encode()))


def test_a_token_has_the_role_it_was_granted() -> None:
    """The role is what a token is for."""
    tokens = granted(("read", READ), ("admin", ADMIN))
    assert (role_of(tokens, READ), role_of(tokens, ADMIN)) == ("read", "admin")


@pytest.mark.parametrize("wrong", ["", READ[:-1], READ + "x", READ.upper(), "read"])
def test_what_is_not_exactly_a_token_has_no_role(wrong: str) -> None:
    """A beginning, a longer word or another case is a guess."""
    assert role_of(granted(("read", READ)), wrong) is None


def test_a_token_granted_twice_has_the_higher_role() -> None:
    """Otherwise the order of a list would decide what somebody may do."""
    tokens = granted(("admin", ADMIN), ("read", ADMIN))
    assert role_of(tokens, ADMIN) == "admin"


def test_no_tokens_are_false() -> None:
    """The door asks whether there are any."""
    assert not Tokens()
    assert granted(("read", READ))


def test_the_value_holds_digests_alone() -> None:
    """A core dump or a debugger's view of it must not hand the tokens out."""
    tokens = granted(("read", READ))
    seen: set[int] = set()
    held: list[object] = [tokens]
    while held:
        thing = held.pop()
        if id(thing) in seen or isinstance(thing, type):
            continue
        seen.add(id(thing))
        assert READ not in repr(thing)
        assert READ.encode() not in (thing if isinstance(thing, bytes) else b"")
        held += gc.get_referents(thing)


def test_two_processes_keep_different_digests() -> None:
    """A salt: digests that leak somewhere else match nothing here."""
    assert granted(("read", READ)).digest(b"x") != granted(("read", READ)).digest(b"x")


def test_the_eleventh_guess_has_to_wait_for_the_rest_of_the_minute() -> None:
    """Otherwise tokens could be tried as fast as the network carries them."""
    guesses = Guesses()
    for number in range(GUESSES):
        assert guesses.wait_s("192.0.2.1", at=100.0 + number) == 0
        guesses.missed("192.0.2.1", bytes([number]), at=100.0 + number)
    assert guesses.wait_s("192.0.2.1", at=110.0) == GUESS_WINDOW_S - 10
    assert guesses.wait_s("192.0.2.2", at=110.0) == 0
    assert guesses.wait_s("192.0.2.1", at=100.0 + GUESS_WINDOW_S) == 0


def test_the_same_old_token_again_and_again_is_no_guessing() -> None:
    """A scraper whose token has changed must not lock out its neighbours."""
    guesses = Guesses()
    for number in range(1000):
        guesses.missed("192.0.2.1", b"old", at=number / 100)
    assert guesses.wait_s("192.0.2.1", at=10.0) == 0


def test_a_minute_later_counting_begins_anew() -> None:
    """Ten slips in a day are not an attack."""
    guesses = Guesses()
    for number in range(GUESSES):
        guesses.missed("192.0.2.1", bytes([number]), at=number * GUESS_WINDOW_S)
    assert guesses.wait_s("192.0.2.1", at=GUESSES * GUESS_WINDOW_S) == 0


def test_a_whole_ipv6_network_is_one_caller() -> None:
    """Whoever has one address there has 2^64 of them."""
    guesses = Guesses()
    for number in range(GUESSES):
        guesses.missed(f"2001:db8:1:2::{number:x}", bytes([number]), at=0.0)
    assert guesses.wait_s("2001:db8:1:2:ffff::1", at=1.0) > 0
    assert guesses.wait_s("2001:db8:1:3::1", at=1.0) == 0


def test_memory_of_guesses_is_bounded() -> None:
    """An attacker with many addresses must not fill the memory."""
    guesses = Guesses()
    for number in range(10_000):
        guesses.missed(f"10.1.{number >> 8}.{number & 255}", b"x", at=0.0)
    assert len(guesses._tries) <= 4096


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.8.8", "::1", "localhost"])
def test_loopback_needs_no_token(host: str) -> None:
    """Whoever can call there has an account on this machine."""
    check_exposure(host, Tokens())


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "", "192.0.2.7", "2001:db8::1", "no such host"])  # noqa: S104 - to be refused
def test_listening_elsewhere_without_a_token_is_refused(host: str) -> None:
    """An open server rents machines on the operator's bill for anybody."""
    with pytest.raises(BadInput, match="GP4U_API_TOKENS"):
        check_exposure(host, Tokens())
    check_exposure(host, granted(("admin", ADMIN)))


@pytest.mark.parametrize(
    ("address", "is_home"),
    [
        ("127.0.0.1", True),
        ("::ffff:127.0.0.1", True),
        ("::1", True),
        ("10.0.0.1", False),
        ("::ffff:10.0.0.1", False),
        ("example.org", False),
        ("", False),
    ],
)
def test_loopback_is_told_from_the_rest(address: str, *, is_home: bool) -> None:
    """A mapped address is the address that it maps; a name is nothing one can trust."""
    assert is_loopback(address) is is_home
