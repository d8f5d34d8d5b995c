"""Real inference servers with the embedded model: start, wait until ready, and always stop.

    with launch("vllm") as server:
        target = detcheck.Served(endpoints=(server.endpoint,), model=server.model)
        detcheck.run(detcheck.Experiment(...), target, out)

`python -m tests.servers.launch vllm` starts one by hand, until Ctrl-C.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from detcheck import models

REPOSITORY = Path(__file__).resolve().parents[2]
GUARD = Path(__file__).with_name("guard.py")
ENVIRONMENTS = REPOSITORY / ".venv-servers"
START_S = 300.0
STOP_S = 20.0
SERVED_NAME = "smollm2"
CONTEXT_TOKENS = 2048


@dataclass(frozen=True)
class Kind:
    """How to start a server, and the path that answers once it is ready."""

    arguments: Callable[[int], list[str]]
    """Takes a port; returns the arguments for the Python of the server's environment."""
    ready: str
    """Path that answers with status 200 once the server is ready."""
    variables: Mapping[str, str] = field(default_factory=dict)
    model: Callable[[], str] = lambda: SERVED_NAME
    """Returns the name under which the model is served."""


@dataclass(frozen=True)
class Server:
    """A server that is ready."""

    endpoint: str
    """Base URL of its OpenAI-compatible API."""
    model: str
    """Name under which it serves the model."""
    log: Path
    """Its standard output and error."""


def _folder() -> str:
    """Folder of the embedded model as safetensors."""
    return models.source(None, "bfloat16")


def _gguf() -> str:
    """File of the embedded model as GGUF."""
    return str(models.embedded_gguf())


def _vllm(port: int) -> list[str]:
    return [
        *("-m", "vllm.entrypoints.openai.api_server", "--model", _folder()),
        *("--served-model-name", SERVED_NAME, "--dtype", "bfloat16", "--enforce-eager"),
        *("--max-model-len", str(CONTEXT_TOKENS), "--max-num-seqs", "64"),
        *("--host", "127.0.0.1", "--port", str(port)),
    ]


def _transformers(port: int) -> list[str]:
    # 512 cache blocks of 32 tokens: by default it takes a minute to reserve most of the memory.
    return [
        *("-c", "from transformers.cli.transformers import main; main()"),
        *("serve", Path(_folder()).name, "--continuous-batching"),
        *("--cb-num-blocks", "512", "--cb-block-size", "32", "--cb-max-batch-tokens", "256"),
        *("--dtype", "bfloat16", "--device", "cpu"),
        *("--host", "127.0.0.1", "--port", str(port)),
    ]


def _llama(port: int) -> list[str]:
    # By default it cuts a streamed answer short as soon as another request comes in.
    return [
        *("-m", "llama_cpp.server", "--model", _gguf(), "--model_alias", SERVED_NAME),
        *("--n_ctx", str(CONTEXT_TOKENS), "--interrupt_requests", "false"),
        *("--host", "127.0.0.1", "--port", str(port)),
    ]


KINDS = {
    "vllm": Kind(
        _vllm,
        "/health",
        {"VLLM_CPU_KVCACHE_SPACE": "2", "VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1"},
    ),
    "transformers": Kind(_transformers, "/health", model=lambda: Path(_folder()).name),
    "llama": Kind(_llama, "/v1/models"),
}


def python(kind: str) -> Path:
    """The Python of the environment that `tests/servers/install.sh` makes for a server."""
    return ENVIRONMENTS / kind / "bin" / "python"


def missing(kind: str) -> str | None:
    """Why a server cannot be started on this machine; None if it can."""
    if (ENVIRONMENTS / kind / ".installed").is_file():
        return None
    return f"{kind} is not installed: run `make servers`"


@contextmanager
def launch(kind: str) -> Iterator[Server]:
    """Start a server of this kind, wait until it is ready, and end it after the block.

    The server and every process it started end with this process too, however this one ends.
    Raises RuntimeError with the end of its log if it ends early or is not ready in `START_S`.
    """
    settings, port = KINDS[kind], free_port()
    log = Path(tempfile.mkstemp(prefix=f"detcheck-{kind}-", suffix=".log")[1])
    with log.open("wb") as sink:
        process = subprocess.Popen(
            [sys.executable, str(GUARD), str(python(kind)), *settings.arguments(port)],
            stdout=sink,
            stderr=subprocess.STDOUT,
            stdin=subprocess.PIPE,  # closed by the system when this process ends: see guard.py
            start_new_session=True,
            cwd=Path(_folder()).parent,  # transformers serve names a model by its folder
            env=_environment(settings.variables),
        )
    try:
        _wait(process, f"http://127.0.0.1:{port}{settings.ready}", log)
        yield Server(f"http://127.0.0.1:{port}/v1", settings.model(), log)
    except BaseException:
        print(f"the log of {kind} is kept in {log}", file=sys.stderr)
        raise
    else:
        log.unlink(missing_ok=True)
    finally:
        stop(process)


def _environment(variables: Mapping[str, str]) -> dict[str, str]:
    # transformers serve fails without this folder.
    hub = Path(os.environ.get("HF_HOME", "~/.cache/huggingface")).expanduser() / "hub"
    hub.mkdir(parents=True, exist_ok=True)
    inherited = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    return {**inherited, "HF_HUB_OFFLINE": "1", **variables}


def free_port() -> int:
    """A port on which nothing listens now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _wait(process: subprocess.Popen[bytes], url: str, log: Path) -> None:
    until = time.monotonic() + START_S
    while time.monotonic() < until:
        if process.poll() is not None:
            raise RuntimeError(f"the server ended with {process.returncode}:\n{_tail(log)}")
        with suppress(urllib.error.URLError, OSError), urllib.request.urlopen(url, timeout=5):
            return
        time.sleep(0.5)
    raise RuntimeError(f"the server was not ready in {START_S:.0f} s:\n{_tail(log)}")


def _tail(log: Path) -> str:
    return log.read_text(encoding="utf-8", errors="replace")[-4000:]


def stop(process: subprocess.Popen[bytes], within_s: float = STOP_S) -> None:
    """SIGTERM to the guard, which ends its group; SIGKILL to the rest of the group."""
    process.terminate()
    with suppress(subprocess.TimeoutExpired):
        process.wait(within_s)
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    if process.stdin is not None:
        process.stdin.close()


def main() -> None:
    """Start one by hand."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with suppress(KeyboardInterrupt), launch(sys.argv[1]) as server:
        print(f"{server.endpoint} serves {server.model}; Ctrl-C stops it", flush=True)
        signal.pause()


if __name__ == "__main__":
    main()
