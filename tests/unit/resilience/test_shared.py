"""What sharing a pace needs and shows, without a Redis; with one it is tried in tests/e2e."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence

import pytest
import structlog

from gp4u.errors import BadInput
from gp4u.resilience.shared import RETRY_S, SharedLimits
from tests.unit.resilience.scripted_market import Market, ask, guard_for_test
from tests.virtual_loop import run_virtual

NOBODY_LISTENS = "redis://127.0.0.1:1"


def test_the_missing_package_is_named_with_the_way_to_get_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Redis is an extra; who sets the variable without it must not have to guess."""
    monkeypatch.setitem(sys.modules, "redis.asyncio", None)

    with pytest.raises(BadInput, match=r"GP4U_REDIS_URL.*pip install 'gp4u\[redis\]'"):
        SharedLimits("redis://cache.test")


@pytest.mark.parametrize("url", ["redis://:hunter2@cache.test:99999", "redis://:hunter2@h:port"])
def test_an_address_that_is_none_is_refused_without_its_password(url: str) -> None:
    """The start is where a typing error belongs, and an error text is no place for a password."""
    with pytest.raises(BadInput) as caught:
        SharedLimits(url)

    assert "GP4U_REDIS_URL" in str(caught.value)
    assert "hunter2" not in str(caught.value)


def test_without_the_variable_nobody_pays_for_the_package() -> None:
    """It takes longer to import than most commands run."""
    code = "import sys, gp4u.app; sys.exit('redis' in sys.modules)"

    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_redis_that_is_not_there_is_asked_again_once_in_a_second() -> None:
    """The calls go on at their own pace, and the log tells the trouble once."""

    asked: list[str] = []

    class Counted(SharedLimits):
        async def _evaluated(
            self, script: str, keys: Sequence[str], args: Sequence[object]
        ) -> object:
            asked.append(script)
            return await super()._evaluated(script, keys, args)

    async def story() -> None:
        limits = Counted(NOBODY_LISTENS)
        guard, market = guard_for_test(shared=limits.pace("vastai", "key")), Market(took_s=0.1)
        for _ in range(50):
            assert await ask(guard, market) == "answer"
        assert guard.health().shared is False
        assert len(asked) == pytest.approx(50 * 0.1 / RETRY_S, abs=1)
        await limits.aclose()

    with structlog.testing.capture_logs() as logged:
        run_virtual(story)
    assert [line["event"] for line in logged] == ["shared_limits_failed"]


def test_accounts_are_told_apart_and_none_can_be_read_from_its_name() -> None:
    """Two keys are two accounts, the same key at two markets as well."""
    limits = SharedLimits(NOBODY_LISTENS)
    names = {
        limits.pace(provider, key)._keys("offers")
        for provider in ("vastai", "ionet")
        for key in ("a-secret-key", "another-secret-key")
    }

    assert len(names) == 4
    for account, endpoint in names:
        assert endpoint == f"{account}:offers"
        assert "secret" not in account
