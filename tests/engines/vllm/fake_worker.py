"""Replaces the real worker: sends its messages, with the fault named by the variable FAKE."""

import json
import os
import subprocess
import sys
import time

FAKE = os.environ.get("FAKE", "")


def send(**message):
    print(json.dumps(message), flush=True)


def answer(setup, request, rows):
    prompt, _, limit, *_ = request
    token_ids = [len(prompt) + index for index in range(limit)]
    if FAKE == "diverges" and (rows > 1 or setup["tensor_parallel"] > 1):
        token_ids[-1] += setup["tensor_parallel"]
    if FAKE == "aborts":
        return {"error": "vLLM ended the request: abort"}
    return {
        "text": "x" * limit,
        "finish_reason": "length",
        "token_ids": token_ids,
        "token_ends": list(range(1, limit + 1)),
        "observed_batch": {
            "rows_min": rows,
            "rows_max": rows,
            "rows_mean": float(rows),
            "query_tokens_max": rows,
            "steps": limit,
        },
        **(
            {"logprobs": [-1.5] * limit}
            if setup.get("temperature")
            else {"top_two": [[0] * limit, [0.5] * limit, [-0.5] * limit]}
        ),
    }


def main():
    setup = json.loads(sys.stdin.readline())
    invariant = os.environ["VLLM_BATCH_INVARIANT"] == "1"
    if FAKE == "hangs at start":
        time.sleep(600)
    if FAKE == "dies at start":
        sys.exit("RuntimeError: no kernel image\nEngineDeadError: See stack trace above")
    if FAKE == "refuses invariance" and invariant:
        print("TypeError: no such kernel\nEngineDeadError: x", file=sys.stderr)
        send(failed="EngineDeadError: See stack trace", usage=False)
        return
    if FAKE == "refuses ray":
        send(failed="ValueError: current platform cpu does not support ray.", usage=False)
        return
    if FAKE == "too long":
        send(failed="Prompt 1 is too long.", usage=True)
        return
    on = invariant and FAKE != "forgets the mode"
    identity = {
        "dtype": "bfloat16",
        "commit": setup.get("revision"),
        "prompt_digests": {prompt: f"sha256:{prompt}" for prompt in setup.get("prompts", ())},
        "decoding": {"top_k": "20, left out"},
    }
    send(ready={"version": "0", "batch_invariant": on, **identity})
    for line in sys.stdin:
        asked = json.loads(line)
        requests, cache = asked["requests"], asked.get("prefix_cache")
        if FAKE == "dies":
            os._exit(9)
        if FAKE == "dies in a word":
            os.write(1, b'{"answers": [{"te')
            os._exit(9)
        if FAKE == "hangs with a child":
            child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
            print(f"child {child.pid}", file=sys.stderr, flush=True)
            time.sleep(600)
        if FAKE == "memory":
            send(failed="RuntimeError: CUDA out of memory", usage=False)
            return
        send(tokens=1)
        rows = len(requests)
        load = {
            "source": "forward passes",
            "rows_max": rows,
            "rows_mean": float(rows),
            "query_tokens_max": rows,
            "preemptions": 2,
            "prefix_cache_hits": 0 if cache == "cold" or FAKE == "keeps no blocks" else 3,
        }
        answers = [answer(setup, request, rows) for request in requests]
        cached = [0 if cache == "cold" or (FAKE == "evicts" and at) else 3 for at in range(rows)]
        send(answers=answers, elapsed_s=0.5, load=load, cached_tokens=cached)


if __name__ == "__main__":
    main()
