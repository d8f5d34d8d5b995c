"""The message for a server that did not answer, by the cause."""

from __future__ import annotations

import asyncio
import ssl
from types import SimpleNamespace

import pytest

from detcheck.engines.openai.failures import MALFORMED, REFUSED, RESET, Failure
from detcheck.engines.openai.reach import unreachable

PLAIN = "give it as http://"


def sentence(kind: str, reason: str | None = None) -> str:
    failure = Failure(kind, "what happened")
    if reason is not None:
        failure.__cause__ = ssl.SSLError(1, "words")
        failure.__cause__.reason = reason
    client = SimpleNamespace(base_url="https://host/v1")
    return str(asyncio.run(unreachable(client, failure)))


@pytest.mark.parametrize("reason", ["WRONG_VERSION_NUMBER", "RECORD_LAYER_FAILURE"])
def test_plain_http_is_advised_if_the_server_has_no_tls(reason) -> None:
    assert PLAIN in sentence(REFUSED, reason)


@pytest.mark.parametrize(
    ("kind", "reason", "said"),
    [
        (RESET, None, "cut the connection"),
        (MALFORMED, None, "not as an OpenAI-compatible API"),
        (REFUSED, "TLSV13_ALERT_CERTIFICATE_REQUIRED", "alert certificate required"),
        (REFUSED, "TLSV1_ALERT_PROTOCOL_VERSION", "alert protocol version"),
    ],
)
def test_plain_http_is_never_advised_for_a_server_of_tls(kind, reason, said) -> None:
    shown = sentence(kind, reason)
    assert said in shown
    assert PLAIN not in shown
