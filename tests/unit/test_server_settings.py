"""What is set of the server: who may call, what may be spent, and that no secret of it is shown."""

from __future__ import annotations

from decimal import Decimal
from pathlib import Path

import pytest

from gp4u.errors import SettingsError
from gp4u.settings import Settings, load_settings

READER, ADMIN = "r" * 16, "a1._~+/=-" * 2


def settings(cwd: Path, **environ: str) -> Settings:
    """Return what is in force with these variables."""
    return load_settings({"HOME": str(cwd), **environ}, cwd)


def complaint(cwd: Path, **environ: str) -> str:
    """Return the whole text of a start that was refused."""
    with pytest.raises(SettingsError) as refused:
        settings(cwd, **environ)
    return str(refused.value)


def test_each_token_has_its_role_in_the_order_written(tmp_path: Path) -> None:
    """A list is written by hand, so commas, blanks and lines all part its entries."""
    found = settings(tmp_path, GP4U_API_TOKENS=f"read:{READER}, admin:{ADMIN}\nrent:{READER}x")
    told = [(role, token.get_secret_value()) for role, token in found.api.granted]
    assert told == [("read", READER), ("admin", ADMIN), ("rent", f"{READER}x")]
    assert settings(tmp_path).api.granted == ()


def test_tokens_may_stand_in_a_file(tmp_path: Path) -> None:
    """An orchestrator hands secrets over as files, a token a line."""
    (tmp_path / "tokens").write_text(f"read:{READER}\nadmin:{ADMIN}\n")
    found = settings(tmp_path, GP4U_API_TOKENS_FILE="tokens")
    assert [role for role, _ in found.api.granted] == ["read", "admin"]


@pytest.mark.parametrize(
    ("value", "why"),
    [
        ("read:short", "16 or more"),
        (READER, "ROLE one of read, rent, admin"),
        (f"root:{READER}", "ROLE one of read, rent, admin"),
        (f"read:{READER},admin:with space in it!", "entry 2"),
        (",".join(f"read:{READER}{n}" for n in range(101)), "at most 100"),
    ],
)
def test_a_bad_token_list_is_refused_by_entry_and_never_quoted(
    value: str, why: str, tmp_path: Path
) -> None:
    """Whoever reads the message must find the entry; nobody may find the token in a log."""
    text = complaint(tmp_path, GP4U_API_TOKENS=value)
    assert "GP4U_API_TOKENS" in text
    assert why in text
    assert READER not in text


def test_no_secret_is_in_the_table_and_each_is_known_to_the_redactor(tmp_path: Path) -> None:
    """`gp4u config` is pasted into bug reports, and logs are kept for years."""
    found = settings(
        tmp_path,
        GP4U_API_TOKENS=f"admin:{ADMIN}",
        GP4U_API_TOKEN="token-of-the-caller",
        GP4U_DATABASE_URL="postgresql://gp4u:s%40cret-db@db/gp4u?password=other-db",
        GP4U_REDIS_URL="redis://:secret-redis@cache:6379/1",
        GP4U_OTLP_URL="https://user:secret-otlp@collector/v1",
    )
    shown = "\n".join(row.value for row in found.table())
    secrets = {ADMIN, "token-of-the-caller", "s%40cret-db", "s@cret-db", "other-db"}
    secrets |= {"secret-redis", "secret-otlp"}
    assert secrets <= set(found.secrets())
    assert not [secret for secret in secrets if secret in shown]
    assert "postgresql://***@db/gp4u?password=***" in shown


@pytest.mark.parametrize(
    ("variable", "value", "bound"),
    [
        ("GP4U_API_URL", "ftp://host", "http(s)://HOST"),
        ("GP4U_API_URL", "http://user:word@host", "http(s)://HOST"),
        ("GP4U_API_URL", "http://host:99999", "the port from 1 to 65535"),
        ("GP4U_API_URL", "http://host:web", "the port from 1 to 65535"),
        ("GP4U_API_URL", "http://host:0", "the port from 1 to 65535"),
        ("GP4U_API_MAX_BODY_BYTES", "1023", "from 1024"),
        ("GP4U_API_MAX_CONCURRENT", "0", "from 1"),
        ("GP4U_API_HEADER_TIMEOUT_S", "nan", "number above 0"),
        ("GP4U_REDIS_URL", "http://cache", "redis://"),
        ("GP4U_REDIS_URL", "redis://cache:70000", "redis://"),
        ("GP4U_OTLP_URL", "collector:4318", "https://"),
        ("GP4U_BUDGET_USD_PER_HOUR", "-1", "number above 0"),
        ("GP4U_MAX_RENTALS", "1.5", "whole number from 0"),
        ("GP4U_DATABASE_URL", "postgresql://db", "postgresql://"),
    ],
)
def test_a_bad_value_is_refused_with_variable_and_range(
    variable: str, value: str, bound: str, tmp_path: Path
) -> None:
    """As with every other variable."""
    text = complaint(tmp_path, **{variable: value})
    assert text.startswith(f"{variable}:")
    assert bound in text
    assert "word" not in text.partition(" is not valid")[0]


def test_budgets_are_exact_and_none_is_no_bound(tmp_path: Path) -> None:
    """Money is decimal from the variable to the ledger."""
    found = settings(tmp_path, GP4U_BUDGET_USD_PER_HOUR="0.3", GP4U_MAX_RENTALS="0")
    assert found.budget.usd_per_hour == Decimal("0.3")
    assert found.budget.max_rentals == 0
    assert found.budget.usd_per_day is None


def test_a_slash_behind_the_servers_address_is_no_part_of_it(tmp_path: Path) -> None:
    """People paste addresses as browsers show them."""
    assert settings(tmp_path, GP4U_API_URL="http://host:8000/").api.url == "http://host:8000"
