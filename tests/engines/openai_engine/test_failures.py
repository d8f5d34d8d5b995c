from __future__ import annotations

import time
from email.utils import formatdate

import pytest

from detcheck.engines.openai.failures import HTTP_429, failed_status


def retry_after(text: str | None) -> float | None:
    failure = failed_status(429, "", "", text, None)
    assert failure.kind == HTTP_429
    return failure.retry_after_s


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("7", 7.0),
        ("0.5", 0.5),
        (formatdate(0, usegmt=True), 0.0),
        ("-1", None),
        ("nan", None),
        ("inf", None),
        ("soon", None),
        ("Wed, 99 Nov 99999 00:00:00 GMT", None),
        ("", None),
        (None, None),
    ],
)
def test_retry_after_in_seconds(text, seconds) -> None:
    assert retry_after(text) == seconds


def test_retry_after_as_a_date() -> None:
    seconds = retry_after(formatdate(time.time() + 100, usegmt=True))
    assert seconds is not None
    assert 90 < seconds <= 100
