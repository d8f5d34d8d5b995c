from __future__ import annotations

import pytest

from detcheck.engines.openai.connection import Connection, redact
from detcheck.errors import UsageError


def test_secrets_are_read_from_the_environment_and_never_shown(monkeypatch) -> None:
    monkeypatch.setenv("THE_KEY", "sk-very-secret")
    monkeypatch.setenv("TENANT", "tenant-secret")
    headers = ("X-Tenant: env:TENANT", "X-Auth-Token: literal-secret", "X-Plain: plainvalue")
    connection = Connection(api_key_env="THE_KEY", headers=headers)
    assert connection.resolve() == {
        "Authorization": "Bearer sk-very-secret",
        "X-Tenant": "tenant-secret",
        "X-Auth-Token": "literal-secret",
        "X-Plain": "plainvalue",
    }
    shown = repr(connection) + str(connection)
    for secret in ("sk-very-secret", "tenant-secret", "literal-secret"):
        assert secret not in shown
        assert secret in connection.secrets()
        assert secret not in redact(f"said {secret}.", connection.secrets())


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"api_key_env": "NO_SUCH_KEY"}, "NO_SUCH_KEY is not set"),
        ({"headers": ("X-Tenant: env:NO_SUCH",)}, "NO_SUCH is not set"),
        ({"api_key_env": "sk-hush-hush"}, "never the key itself"),
        ({"headers": ("X-Tenant: env:hush-hush",)}, "never the key itself"),
        ({"headers": ("no colon hush-hush",)}, "has not the form"),
        ({"headers": ("Bad Name: hush-hush",)}, "has not the form"),
        ({"headers": ("Host: hush-hush",)}, "detcheck's own"),
        ({"headers": ("X-A: hush-hush\r\nX-B: 1",)}, "line breaks"),
        ({"headers": ("X-A: hush-hush", "x-a: other")}, "x-a is given twice"),
        (
            {"api_key_env": "SOME_KEY", "headers": ("authorization: hush-hush",)},
            "authorization is given twice",
        ),
        ({"total_s": 0.0}, "above 0"),
        ({"total_s": float("nan")}, "above 0"),
    ],
)
def test_unusable_setting_is_refused_without_its_value(fields, said, monkeypatch) -> None:
    monkeypatch.delenv("NO_SUCH_KEY", raising=False)
    with pytest.raises(UsageError, match=said) as caught:
        Connection(**fields).resolve()
    assert "hush-hush" not in str(caught.value)


def test_within_bounds_every_wait() -> None:
    short = Connection().within(5)
    waits = (short.connect_s, short.first_token_s, short.between_tokens_s, short.total_s)
    assert max(*waits, short.check_timeout_s) == 5
    assert Connection(check_timeout_s=2.0).within(5).check_timeout_s == 2


def test_checks_have_a_limit_of_their_own() -> None:
    assert Connection().check_timeout_s == 60 < Connection().first_token_s
    with pytest.raises(UsageError, match="`check_timeout_s` must be a number of seconds above 0"):
        Connection(check_timeout_s=0)
