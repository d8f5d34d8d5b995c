"""An unusable server or option gives one sentence and exit code 2 or 3, and shows no secret."""

from __future__ import annotations

import contextlib
import json
import socket
import ssl
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from asking import ask
from sweeps import few

from detcheck.cli.app import run_program
from detcheck.errors import UsageError

from .behaviour import Behaviour
from .server import serving

SMALL = ("-n", "6", "-b", "1,2", "--max-new-tokens", "6")
SECRET = "sk-do-not-show-this"


@pytest.fixture
def detcheck(capsys, monkeypatch, tmp_path):
    """Run a command line in this process, from an empty folder: (exit code, out, err)."""
    (tmp_path / "cwd").mkdir()
    monkeypatch.chdir(tmp_path / "cwd")
    monkeypatch.delenv("DETCHECK_DEBUG", raising=False)

    def call(*args: str) -> tuple[int, str, str]:
        code = run_program(["run", *args, *SMALL])
        return code, *capsys.readouterr()

    return call


def only_sentence(result: tuple[int, str, str], code: int) -> str:
    assert result[0] == code, result
    assert result[1] == ""
    assert result[2].count("\n") == 1, result[2]
    assert not Path("results").exists()
    return result[2]


def test_a_run_from_the_command_line(serve, detcheck):
    server = serve()
    code, out, err = detcheck("--endpoint", server.url)
    assert code == 0, err
    assert "batches of up to 2 of 2 asked, by overlapping streams" in out
    assert "temperature 0: one answer" in err


def test_no_server(detcheck):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    said = only_sentence(detcheck("--endpoint", f"http://127.0.0.1:{port}/v1"), 3)
    assert "There is no server at" in said


def test_a_name_that_does_not_resolve(detcheck):
    said = only_sentence(detcheck("--endpoint", "http://no-such-host.invalid/v1"), 3)
    assert "There is no server at" in said


def test_not_an_openai_api(serve, detcheck):
    said = only_sentence(detcheck("--endpoint", serve(html=True).url), 2)
    assert "not as an OpenAI-compatible API" in said
    said = only_sentence(detcheck("toy", "--endpoint", serve(html=True).url), 2)
    assert "not as an OpenAI-compatible API" in said
    assert "--no-chat-template" not in said


def test_another_protocol(detcheck):
    with listening(b"220 smtp.example ESMTP\r\n") as url:
        said = only_sentence(detcheck("--endpoint", url), 2)
    assert "not as an OpenAI-compatible API" in said


def test_a_wrong_model_name_lists_those_served(serve, detcheck):
    server = serve(models=("toy", "other\x1b[31m"))
    said = only_sentence(detcheck("nonsense", "--endpoint", server.url), 2)
    assert 'does not serve "nonsense": it serves toy, other' in said
    assert "\x1b" not in said
    said = only_sentence(detcheck("--endpoint", server.url), 2)
    assert "name the one to ask" in said


@pytest.mark.parametrize("key", [None, SECRET])
def test_no_key_and_a_refused_key(serve, detcheck, monkeypatch, key):
    server = serve(key="right")
    options = ()
    if key is not None:
        monkeypatch.setenv("SOME_KEY", key)
        options = ("--api-key-env", "SOME_KEY")
    said = only_sentence(detcheck("--endpoint", server.url, *options), 2)
    assert ("refuses the key in SOME_KEY" if key else "asks for an API key") in said
    assert SECRET not in said


def test_the_variable_of_the_key_is_not_set(serve, detcheck, monkeypatch):
    monkeypatch.delenv("NO_KEY", raising=False)
    said = only_sentence(detcheck("--endpoint", serve().url, "--api-key-env", "NO_KEY"), 2)
    assert "NO_KEY is not set" in said


def test_redirect_is_not_followed_and_gets_no_key(serve, detcheck, monkeypatch):
    monkeypatch.setenv("SOME_KEY", SECRET)
    elsewhere = serve()
    server = serve(redirect=elsewhere.url)
    result = detcheck("--endpoint", server.url, "--api-key-env", "SOME_KEY")
    assert "redirects to http://127.0.0.1" in only_sentence(result, 2)
    assert elsewhere.behaviour.headers == []
    assert server.behaviour.headers[0]["Authorization"] == f"Bearer {SECRET}"


def test_a_key_in_the_address_of_a_redirect_is_not_shown(serve, detcheck, monkeypatch):
    monkeypatch.setenv("SOME_KEY", SECRET)
    server = serve(redirect=f"https://{SECRET}.example/v1")
    said = only_sentence(detcheck("--endpoint", server.url, "--api-key-env", "SOME_KEY"), 2)
    assert "redirects to https://[redacted].example" in said


@few("status", [429, 500, 503])
def test_server_that_cannot_list_its_models_yet(serve, detcheck, status):
    server = serve(models_error=(status, "Loading model"))
    said = only_sentence(detcheck("--endpoint", server.url), 3)
    assert f"does not list its models now ({status}: Loading model)" in said
    assert detcheck("toy", "--endpoint", server.url)[0] == 0


def test_a_server_without_chat(serve, detcheck):
    server = serve(chat_error=(404, "Not Found"))
    said = only_sentence(detcheck("--endpoint", server.url), 2)
    assert "404: Not Found at /chat/completions; --no-chat-template asks /completions" in said
    assert detcheck("--endpoint", server.url, "--no-chat-template")[0] == 0


def test_a_model_without_a_chat_template(serve, detcheck):
    server = serve(chat_error=(400, "you must provide a chat template"))
    said = only_sentence(detcheck("--endpoint", server.url), 2)
    assert "cannot chat with toy" in said
    assert "use `chat_template=False`" in said or "--no-chat-template" in said


def test_https_to_a_server_of_http(serve, detcheck):
    url = serve().url.replace("http://", "https://")
    assert "does not speak HTTPS" in only_sentence(detcheck("--endpoint", url), 2)


@pytest.fixture
def certificate(tmp_path) -> ssl.SSLContext:
    """A self-signed certificate."""
    paths = tmp_path / "key.pem", tmp_path / "cert.pem"
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "1"]
    command += ["-subj", "/CN=127.0.0.1", "-keyout", str(paths[0]), "-out", str(paths[1])]
    try:
        subprocess.run(command, check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("openssl is not installed")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(paths[1], paths[0])
    return context


@pytest.mark.sweep
def test_http_to_a_server_of_https(detcheck, certificate):
    with serving(Behaviour(), certificate) as server:
        url = server.url.replace("https://", "http://")
        assert "speaks HTTPS" in only_sentence(detcheck("--endpoint", url), 2)


def test_certificates_are_verified(detcheck, certificate):
    with serving(Behaviour(), certificate) as server:
        said = only_sentence(detcheck("--endpoint", server.url), 2)
        assert "certificate" in said
        assert "(self-signed certificate)" in said
        assert server.behaviour.headers == []


@pytest.mark.parametrize("listed", [True, False])
def test_a_context_that_is_too_short(serve, detcheck, listed, monkeypatch):
    server = serve(context=70)
    if not listed:
        monkeypatch.setattr("detcheck.engines.openai.reach._context", lambda entry: None)
    long = ("-p", "word " * 30)
    said = only_sentence(detcheck("--endpoint", server.url, *long), 2)
    assert "too long for toy" in said
    if listed:
        said = only_sentence(detcheck("--endpoint", serve(context=6).url), 2)
        assert "too short for 6 new ones" in said


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("localhost:8000/v1", "not the base URL"),
        ("ftp://host/v1", "not the base URL"),
        ("http://host:port/v1", "not a valid URL"),
        ("http://[::1/v1", "not a valid URL"),
        ("http://host", "such as http://host/v1"),
        ("http://host/", "such as http://host/v1"),
        ("http://host/v1/chat/completions", "such as http://host/v1"),
        ("http://host/v1/models/", "such as http://host/v1"),
        ("http:///v1", "not the base URL"),
        (f"http://user:{SECRET}@host/v1", "credentials"),
        (f"http://host/v1?key={SECRET}", "credentials"),
        (f"http:user:{SECRET}@host/v1", "credentials"),
        (f"user:{SECRET}@host/v1", "credentials"),
        ("http://host/v1?", "credentials"),
        ("http://host/v1#", "credentials"),
    ],
)
def test_a_malformed_url(detcheck, url, said):
    shown = only_sentence(detcheck("--endpoint", url), 2)
    assert said in shown
    assert SECRET not in shown


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"engine": "openai"}, "needs a server"),
        ({"endpoints": ("http://h/v1",), "kernels": ("stock",)}, "cannot change the kernels"),
        ({"endpoints": ("http://h/v1",), "engine": "static"}, "Two targets are named"),
        ({"endpoints": ("http://h/v1", "http://h/v1")}, "given twice"),
        ({"endpoints": ("http://h/v1", "http://h/v1/")}, "given twice"),
        ({"endpoints": ("http://h/v1",), "arrivals": "poisson:0"}, "Unknown arrivals"),
        ({"arrivals": "poisson:4"}, "for the engine openai"),
        ({"kernels": ("as-served",)}, "those of a server"),
        ({"tensor_parallel": (1, 2)}, "for the engine vllm"),
        ({"vllm_executor": "ray"}, "for the engine vllm"),
        ({"engine": "vllm", "vllm_executor": "dask"}, "choose one of auto, mp, ray"),
        ({"engine": "vllm", "tensor_parallel": (0,)}, "each tensor-parallel size once"),
    ],
)
def test_grid_that_is_not_usable_is_refused(fields, said):
    with pytest.raises(UsageError, match=said):
        ask(**fields)


@pytest.mark.parametrize("path", ["/v1", "/v1/", "/api/v1", "/v1beta/openai", "/api/paas/v4"])
def test_usual_base_urls_are_accepted(path):
    assert ask(endpoints=[f"https://host{path}"]).target.engine == "openai"


def test_connection_options_need_an_endpoint(detcheck):
    assert "give --endpoint" in only_sentence(detcheck("--timeout", "5"), 2)


def test_secrets_are_in_no_file_and_no_output(serve, capsys, monkeypatch, tmp_path):
    """Even if the server repeats them in its errors and answers."""
    monkeypatch.setenv("SOME_KEY", SECRET)
    monkeypatch.setenv("TENANT", "tenant-do-not-show")
    monkeypatch.setenv("DETCHECK_DEBUG", "1")
    server = serve(key=SECRET, echo_key=True)
    server.behaviour.fault = lambda number, body: "500" if number > 20 and number % 3 == 0 else None
    options = ("--endpoint", server.url, "--api-key-env", "SOME_KEY")
    options += ("--header", "X-Tenant: env:TENANT", "--header", "X-Auth-Token: literal-do-not-show")
    folder = tmp_path / "run"
    code = run_program(["run", *options, *SMALL, "-o", str(folder), "--json"])
    shown = "".join(capsys.readouterr())
    assert code == 0
    run_program(["report", str(folder), "--format", "html,md,csv"])
    shown += "".join(capsys.readouterr())
    sent = server.behaviour.headers[-1]
    assert sent["Authorization"] == f"Bearer {SECRET}"
    assert sent["X-Tenant"] == "tenant-do-not-show"
    kept = b"".join(path.read_bytes() for path in folder.rglob("*") if path.is_file())
    assert json.loads((folder / "run.json").read_bytes())["conditions"][0]["completed"]
    for secret in (SECRET, "tenant-do-not-show", "literal-do-not-show"):
        assert secret not in shown
        assert secret.encode() not in kept


@pytest.mark.sweep
def test_an_endpoint_needs_no_torch(serve, tmp_path):
    server = serve()
    code = (
        "import sys\nfrom detcheck.cli.app import run_program\n"
        f"code = run_program(['run', '--endpoint', {server.url!r}, *{list(SMALL)!r}])\n"
        "print(code, [name for name in ('torch', 'transformers') if name in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, check=True
    )
    assert done.stdout.endswith("0 []\n")


@contextlib.contextmanager
def listening(greeting: bytes):
    """A socket that greets every client in another protocol than HTTP."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def greet() -> None:
            with contextlib.suppress(OSError):
                while True:
                    connection, _ = server.accept()
                    with connection:
                        connection.sendall(greeting)
                        connection.recv(4096)

        thread = threading.Thread(target=greet, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{server.getsockname()[1]}/v1"
