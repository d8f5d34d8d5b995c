"""How fast detcheck's client is, compared with other load generators on the same server.

    python experiments/bench_client.py [--rounds 5] [--in-flight 1000] [--requests 10000] [--json]
        [--guidellm PATH/guidellm] [--vllm-python PATH/python] [--memory 100000]
    python experiments/bench_client.py --server http://localhost:8000 --model smollm2 --tokens 50
        --in-flight 64 --requests 256 [--guidellm …] [--vllm-python …]   # a real server instead

Every client runs in its own process and keeps the same number of streamed chat requests in flight
against `instant_server.py`. The clients take turns within a round, so that a change of the
machine's speed affects all of them; compare the ratios within a round. detcheck's figure covers a
whole condition of `detcheck.run`: connections, trials, checks of every reply, fingerprints, and
writing to disk. The other clients' figures are from their own reports.

detcheck asks for log-probabilities and token ids; the others do not. For the comparison the server
sends detcheck the same bare replies as the others. The row `detcheck, full replies` includes both.
`--memory N` sends N further requests, with full replies, and reports the process's peak memory.

With `--server` a real server is asked instead. Log-probabilities and token ids cost it time, so
every client asks for them there; the rows `…, bare` show the other clients without them.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import Any

PROMPT = "Tell me about Richard Feynman"
LONGEST_S = 900
SERVER = Path(__file__).with_name("instant_server.py")
VLLM = (
    "import argparse; from vllm.benchmarks.serve import add_cli_args, main;"
    "p = argparse.ArgumentParser(); add_cli_args(p); main(p.parse_args())"
)
FIELDS = {"logprobs": True, "top_logprobs": 2, "return_token_ids": True}
"""Request fields by which detcheck asks a server for log-probabilities and token ids."""
DETCHECK, FULL = "detcheck", "detcheck, full replies"


@dataclass(frozen=True)
class Measured:
    """The result of one run of one client."""

    requests_per_second: float
    completed: int
    peak_mb: float | None = None
    """Peak resident memory of the client's process; None for other clients than detcheck."""


def main() -> None:
    options = arguments()
    if options.ask:
        ask(options)
        return
    load_before = os.getloadavg()[0]
    rounds: dict[str, list[Measured]] = {}
    with servers(options) as (bare, full):
        clients = chosen(options, bare, full)
        for number in range(options.rounds):
            names = list(clients)
            for name in names[number % len(names) :] + names[: number % len(names)]:
                measured = clients[name]()
                rounds.setdefault(name, []).append(measured)
                print(f"{name}: {measured.requests_per_second:,.0f} requests/s", file=sys.stderr)
        memory = detcheck(options, full, options.memory) if options.memory else None
    show(rounds, memory, load_before, options)


def arguments() -> argparse.Namespace:
    """The command line's options."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--in-flight", type=int, default=1000)
    parser.add_argument("--requests", type=int, default=10_000)
    parser.add_argument("--tokens", type=int, default=8, help="tokens of each completion")
    parser.add_argument("--server", help="root URL of a running server, instead of the instant one")
    parser.add_argument("--model", default="instant", help="name of the served model")
    parser.add_argument("--guidellm", type=Path, help="guidellm program of another environment")
    parser.add_argument("--vllm-python", type=Path, help="Python of an environment with vLLM")
    parser.add_argument(
        "--memory", type=int, default=0, help="further requests to measure memory, such as 100000"
    )
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--ask", help=argparse.SUPPRESS)  # this process is the client
    return parser.parse_args()


def chosen(options: argparse.Namespace, bare: str, full: str) -> dict[str, Callable[[], Measured]]:
    """The clients to compare, by name; each value runs its client once against a root URL.

    `bare` and `full` are root URLs of servers without and with log-probabilities and token ids.
    """
    clients = {DETCHECK: lambda: detcheck(options, bare, options.requests)}
    if full != bare:
        clients[FULL] = lambda: detcheck(options, full, options.requests)
    others = {
        "guidellm": (options.guidellm, guidellm),
        "vllm bench serve": (options.vllm_python, vllm),
    }
    for name, (installed, client) in others.items():
        if installed:
            clients[name] = partial(client, options, bare, FIELDS if options.server else {})
        if installed and options.server:
            clients[f"{name}, bare"] = partial(client, options, bare, {})
    return clients


@contextmanager
def servers(options: argparse.Namespace) -> Iterator[tuple[str, str]]:
    """Root URLs of two instant servers, with bare and with full replies.

    With `--server`, both are the URL of that server.
    """
    if options.server:
        yield options.server, options.server
        return
    with instant_server(options.tokens, "--bare") as bare, instant_server(options.tokens) as full:
        yield bare, full


@contextmanager
def instant_server(tokens: int, *flags: str) -> Iterator[str]:
    """Run `instant_server.py` in its own process; the value is its root URL."""
    command = [sys.executable, str(SERVER), "--tokens", str(tokens), *flags]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            yield f"http://127.0.0.1:{int(process.stdout.readline())}"
        finally:
            process.terminate()


def detcheck(options: argparse.Namespace, root: str, requests: int) -> Measured:
    """One `detcheck.run` in a fresh process."""
    values = {
        "ask": root,
        "requests": requests,
        "in-flight": options.in_flight,
        "tokens": options.tokens,
        "model": options.model,
    }
    flags = [f"--{name}={value}" for name, value in values.items()]
    return Measured(**json.loads(call([sys.executable, __file__, *flags])))


def ask(options: argparse.Namespace) -> None:
    """Measure `detcheck.run` in this process, and print the result as JSON for the parent."""
    import detcheck
    from detcheck.listener import Listener

    class Clock(Listener):
        """Times the condition, from its start until it is on disk."""

        def condition_started(self, index: int, record: Any) -> None:
            self.started = perf_counter()

        def condition_finished(self, index: int, record: Any) -> None:
            self.elapsed = perf_counter() - self.started

    target = detcheck.Served(model=options.model, endpoints=(f"{options.ask}/v1",))
    experiment = detcheck.Experiment(
        prompts=(PROMPT,),
        batch_sizes=(options.in_flight,),
        completions=options.requests,
        max_new_tokens=options.tokens,
    )
    clock = Clock()
    with tempfile.TemporaryDirectory() as folder:
        run = detcheck.run(experiment, target, Path(folder) / "run", listener=clock)
    completed = int((run.completions.variant >= 0).sum())
    peak_mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(json.dumps(asdict(Measured(completed / clock.elapsed, completed, round(peak_mb, 1)))))


def vllm(options: argparse.Namespace, root: str, fields: dict[str, Any]) -> Measured:
    """`vllm bench serve` on a file of prompts, without a tokenizer."""
    with tempfile.TemporaryDirectory() as folder:
        prompts = Path(folder) / "prompts.jsonl"
        prompts.write_text(
            f"{json.dumps({'prompt': PROMPT, 'output_tokens': options.tokens})}\n"
            * options.requests
        )
        flags = {
            "backend": "openai-chat",
            "base-url": root,
            "endpoint": "/v1/chat/completions",
            "model": options.model,
            "dataset-name": "custom",
            "dataset-path": prompts,
            "custom-output-len": options.tokens,
            # Without a tokenizer it would ask for one token.
            "extra-body": json.dumps({"max_completion_tokens": options.tokens, **fields}),
            "num-prompts": options.requests,
            "max-concurrency": options.in_flight,
            "temperature": 0,
            "result-dir": folder,
            "result-filename": "result.json",
        }
        named = [part for name, value in flags.items() for part in (f"--{name}", str(value))]
        switches = ["--skip-tokenizer-init", "--skip-chat-template", "--save-result"]
        call([str(options.vllm_python), "-c", VLLM, *named, *switches, "--disable-tqdm"])
        result = json.loads((Path(folder) / "result.json").read_text())
    return Measured(result["request_throughput"], result["completed"])


def guidellm(options: argparse.Namespace, root: str, fields: dict[str, Any]) -> Measured:
    """`guidellm run` on a file of prompts."""
    with tempfile.TemporaryDirectory() as folder:
        prompts = Path(folder) / "prompts.jsonl"
        prompts.write_text(f"{json.dumps({'prompt': PROMPT})}\n" * options.requests)
        report = Path(folder) / "report.json"
        body = [f",extras.body.{name}={json.dumps(value)}" for name, value in fields.items()]
        flags = {
            "backend": f"kind=openai_http,target={root},model={options.model},"
            f"max_tokens={options.tokens},extras.body.temperature=0{''.join(body)}",
            "profile": f"kind=concurrent,streams={options.in_flight}",
            "constraint": f"kind=max_requests,count={options.requests}",
            "data": f"kind=json_file,path={prompts}",
            "output": f"kind=json,path={report}",
        }
        named = [part for name, value in flags.items() for part in (f"--{name}", value)]
        call([str(options.guidellm), "run", *named, "--disable-console"], cwd=folder)
        benchmark = json.loads(report.read_text())["benchmarks"][0]
    metrics = benchmark["metrics"]
    return Measured(
        metrics["requests_per_second"]["successful"]["mean"],
        metrics["request_totals"]["successful"],
    )


def call(command: list[str], cwd: str | None = None) -> str:
    """Run a client until it ends; returns its standard output. Exits if it fails."""
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, timeout=LONGEST_S, cwd=cwd
    )
    if done.returncode:
        raise SystemExit(f"{Path(command[0]).name} failed:\n{done.stderr[-2000:]}")
    return done.stdout


def compare(name: str, results: list[Measured], of_detcheck: list[Measured]) -> dict[str, Any]:
    """One client's row: medians over rounds, and detcheck's rate divided by its rate."""
    rates = [result.requests_per_second for result in results]
    ratios = [
        ours.requests_per_second / rate for ours, rate in zip(of_detcheck, rates, strict=True)
    ]
    return {
        "client": name,
        "requests_per_second": statistics.median(rates),
        "detcheck_against_it": statistics.median(ratios),
        "ratio_min": min(ratios),
        "ratio_max": max(ratios),
        "completed": min(result.completed for result in results),
        "peak_mb": max((result.peak_mb or 0 for result in results), default=0) or None,
    }


def show(
    rounds: dict[str, list[Measured]],
    memory: Measured | None,
    load_before: float,
    options: argparse.Namespace,
) -> None:
    """Print the comparison as a table, or as JSON."""
    rows = [compare(name, results, rounds[DETCHECK]) for name, results in rounds.items()]
    document = {
        "in_flight": options.in_flight,
        "requests": options.requests,
        "rounds": options.rounds,
        "cores": os.cpu_count(),
        "load_average_before": round(load_before, 2),
        "rows": rows,
        "memory": None if memory is None else {"requests": options.memory, **asdict(memory)},
    }
    if options.json:
        print(json.dumps(document, indent=2))
        return
    print(f"{options.requests:,} requests, {options.in_flight:,} in flight, load {load_before:.2f}")
    for row in rows:
        print(
            f"{row['client']:24}{row['requests_per_second']:8,.0f} requests/s   detcheck is "
            f"{row['detcheck_against_it']:.2f}× ({row['ratio_min']:.2f} to {row['ratio_max']:.2f})"
        )
    if memory is not None:
        print(f"peak memory over {memory.completed:,} requests: {memory.peak_mb:,.0f} MB")


if __name__ == "__main__":
    main()
