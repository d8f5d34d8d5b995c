"""vLLM's offline engine in a process of its own: `python -m detcheck.engines.vllm.worker`.

A trial is stepped as in the engine `continuous`: requests join at their arrival step, and each
step's batch is the one that vLLM's scheduler reports. The engine core stays in this process, so
that a request is scheduled at its arrival step.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from time import perf_counter
from typing import IO, Any

import msgspec

from detcheck.completion import fingerprint_token_ids
from detcheck.engines.own_decoding import left_out
from detcheck.engines.partial import PartialCompletion
from detcheck.engines.prompts import check_lengths, encode_prompt
from detcheck.engines.vllm.scheduler_steps import SchedulerSteps, stat_logger
from detcheck.errors import DetcheckError, ModelError, UsageError
from detcheck.models.identity import digest_of_template
from detcheck.models.naming import hub_commit
from detcheck.prompts import ChatMessage
from detcheck.targets.prefix_cache import AS_IS, COLD, WARM

PROGRESS_S = 0.2
WARM_UP_TOKENS = 2
OLDEST = "This vLLM does not report its scheduler's batch at each step: install 0.32 or newer."


Request = tuple[str, int, int, int]
"""(prompt, arrival step, token limit, seed)."""


@dataclass(frozen=True, slots=True)
class Setup:
    """The first message to a worker: its model, kernels and limits."""

    source: str
    """Folder or hub id of the model."""
    revision: str | None
    """Branch, tag or commit of a hub id; None for its main branch."""
    dtype: str
    tensor_parallel: int
    batch_invariant: bool
    executor: str | None
    """vLLM's `distributed_executor_backend`; None leaves it to vLLM."""
    prompts: tuple[str, ...]
    """All prompts of the experiment, fillers included."""
    chats: Mapping[str, Sequence[Mapping[str, str]]]
    """The messages of each prompt, each with its role and content."""
    max_new_tokens: int
    batch_size: int
    """Most requests in flight."""
    temperature: float
    filters: Mapping[str, float]
    """`top_k`, `top_p` and `min_p`; those not in use are absent."""
    chat_template: bool
    trust_remote_code: bool


class Worker:
    """One loaded vLLM engine."""

    def __init__(self, setup: Setup):
        from detcheck.engines.decoding import Detokenizer

        self._setup = setup
        self._steps = SchedulerSteps()
        tokenizer = self._tokenizer = _tokenizer(setup)
        self._prompts = {
            prompt: encode_prompt(
                tokenizer,
                prompt,
                chat_template=setup.chat_template,
                chat=msgspec.convert(setup.chats[prompt], tuple[ChatMessage, ...]),
            )
            for prompt in setup.prompts
        }
        check_lengths(list(self._prompts.values()), setup.max_new_tokens, _context(setup))
        self._detokenize = Detokenizer(tokenizer)
        self._engine = _engine(setup, self._prompts, self._steps)
        self._trials = 0
        self._cached: dict[str, int | None] = {}
        """Prompt tokens from the prefix cache by request of the trial; None if not reported."""
        self.run([(prompt, 0, WARM_UP_TOKENS, 0) for prompt in setup.prompts[:1]], None)

    def run(
        self, requests: list[Request], out: IO[str] | None, prefix_cache: str = AS_IS
    ) -> dict[str, Any]:
        """Generate for requests of (prompt, arrival step, token limit, seed).

        Progress messages go to `out` unless it is None. The prefix cache is emptied first, so that
        no trial depends on the previous one. If it must be warm, each prompt is then asked once; if
        cold, no request finds the blocks of another.
        """
        self._engine.reset_prefix_cache()
        if prefix_cache == WARM:
            for prompt in dict.fromkeys(request[0] for request in requests):
                self._generate([(prompt, 0, WARM_UP_TOKENS, 0)], None, AS_IS)
        return self._generate(requests, out, prefix_cache)

    def _generate(
        self, requests: list[Request], out: IO[str] | None, prefix_cache: str
    ) -> dict[str, Any]:
        """Step vLLM until every request is answered; see `run`."""
        self._steps.reset()
        self._cached = {}
        self._trials += 1
        ids = [f"{self._trials}-{position}" for position in range(len(requests))]
        partials = {ids[i]: PartialCompletion(request[2]) for i, request in enumerate(requests)}
        waiting = sorted(zip(ids, requests, strict=True), key=lambda pair: pair[1][1])
        step, reported, started = 0, 0.0, perf_counter()
        while waiting or self._engine.has_unfinished_requests():
            while waiting and waiting[0][1][1] <= step:
                self._submit(*waiting.pop(0), own_cache=prefix_cache == COLD)
            self._step(partials)
            step += 1
            if out is not None and perf_counter() - reported > PROGRESS_S:
                reported = perf_counter()
                _send(out, tokens=sum(len(partial.token_ids) for partial in partials.values()))
        elapsed = perf_counter() - started
        return {
            "answers": [self._reply(partials[request_id]) for request_id in ids],
            "cached_tokens": [self._cached.get(request_id) for request_id in ids],
            "elapsed_s": elapsed,
            "load": msgspec.to_builtins(self._steps.evidence()),
        }

    def ready(self) -> dict[str, Any]:
        """vLLM's version and mode, and the model's identity."""
        import vllm
        from vllm import envs

        template = self._tokenizer.chat_template if self._setup.chat_template else None
        config = self._engine.model_config
        return {
            "version": vllm.__version__,
            "batch_invariant": bool(envs.VLLM_BATCH_INVARIANT),
            "dtype": str(config.dtype).removeprefix("torch."),
            "commit": hub_commit(self._setup.source, self._setup.revision),
            "chat_template_digest": digest_of_template(template),
            "prompt_digests": {
                prompt: fingerprint_token_ids(ids) for prompt, ids in self._prompts.items()
            },
            "decoding": _left_out(self._setup),
        }

    def close(self) -> None:
        """Let vLLM end its own processes."""
        self._engine.engine_core.shutdown()

    def _submit(self, request_id: str, request: Request, *, own_cache: bool) -> None:
        """Hand a request to vLLM; with `own_cache` it shares no blocks of the prefix cache."""
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind

        prompt, _, limit, seed = request
        params = SamplingParams(
            temperature=self._setup.temperature,
            **self._setup.filters,
            seed=seed if self._setup.temperature > 0 else None,
            max_tokens=limit,
            logprobs=2,
            detokenize=False,
            output_kind=RequestOutputKind.DELTA,
        )
        given: dict[str, Any] = {"prompt_token_ids": list(self._prompts[prompt])}
        if own_cache:
            given["cache_salt"] = request_id
        self._engine.add_request(request_id, given, params)

    def _step(self, partials: Mapping[str, PartialCompletion]) -> None:
        """Run one step of vLLM; its tokens belong to the batch that its scheduler reported."""
        self._steps.last = None
        outputs = self._engine.step()
        for output in outputs:
            delta = output.outputs[0]
            partial = partials.get(output.request_id)
            if partial is None:
                continue
            self._cached[output.request_id] = getattr(output, "num_cached_tokens", None)
            if delta.token_ids and self._steps.last is not None:
                partial.joined_pass(*self._steps.last)
            for token_id, logprobs in zip(delta.token_ids, delta.logprobs or (), strict=False):
                _append(partial, token_id, logprobs)
            if output.finished:
                partial.finish_reason = delta.finish_reason or "length"

    def _reply(self, partial: PartialCompletion) -> dict[str, Any]:
        """A completion as plain data.

        Above temperature 0 it has log-probabilities and no `top_two`: a sampled token need not be
        the best one.
        """
        if partial.finish_reason not in ("stop", "length"):
            return {"error": f"vLLM ended the request: {partial.finish_reason}"}
        text, ends = self._detokenize(tuple(partial.token_ids))
        batch = partial.observed_batch
        reply: dict[str, Any] = {
            "text": text,
            "finish_reason": partial.finish_reason,
            "token_ids": partial.token_ids,
            "token_ends": ends,
            "observed_batch": msgspec.to_builtins(batch),
        }
        if self._setup.temperature == 0:
            reply["top_two"] = [partial.runner_up_token_ids, partial.gaps, partial.logprobs]
        else:
            reply["logprobs"] = partial.logprobs
        return reply


def _append(partial: PartialCompletion, token_id: int, logprobs: Mapping[int, Any]) -> None:
    """Append a token with its runner-up. vLLM decides when the completion ends."""
    chosen = logprobs[token_id].logprob
    others = [(other.logprob, -index) for index, other in logprobs.items() if index != token_id]
    runner_up, index = max(others)
    partial.token_ids.append(token_id)
    partial.runner_up_token_ids.append(-index)
    partial.gaps.append(max(0.0, chosen - runner_up))
    partial.logprobs.append(chosen)


def _options(setup: Setup) -> dict[str, Any]:
    """Keyword arguments for every `from_pretrained`."""
    return {"revision": setup.revision or "main", "trust_remote_code": setup.trust_remote_code}


def _tokenizer(setup: Setup) -> Any:
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(setup.source, **_options(setup))
    except Exception as error:  # transformers raises various types for broken files
        raise ModelError(
            f"{setup.source} has no tokenizer that can be read ({_first_words(error)}): check the "
            "model's name or download the whole model."
        ) from error


def _context(setup: Setup) -> int | None:
    """Most tokens that a sequence may have; None if the model's config does not say."""
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(setup.source, **_options(setup))
    return getattr(config.get_text_config(), "max_position_embeddings", None) or None


def _left_out(setup: Setup) -> dict[str, str]:
    """The model's own decoding options, which vLLM does not apply to requests with their own."""
    from transformers import GenerationConfig

    try:
        own = GenerationConfig.from_pretrained(setup.source, revision=setup.revision or "main")
    except OSError:  # the model has none
        return {}
    return left_out(own, sampled=setup.temperature > 0, stated=setup.filters)


def _engine(setup: Setup, prompts: Mapping[str, tuple[int, ...]], steps: SchedulerSteps) -> Any:
    """vLLM with its defaults, except for the experiment's settings.

    The context is as long as the longest request needs, so that vLLM reserves no more memory.
    On a CPU nothing is compiled, since that takes minutes.
    """
    from vllm import EngineArgs, LLMEngine
    from vllm.platforms import current_platform

    if "enable_logging_iteration_details" not in {field.name for field in fields(EngineArgs)}:
        raise UsageError(OLDEST)
    on_cpu = current_platform.is_cpu()
    arguments = EngineArgs(
        model=setup.source,
        revision=setup.revision,
        tokenizer_revision=setup.revision,
        dtype=setup.dtype,
        tensor_parallel_size=setup.tensor_parallel,
        distributed_executor_backend=setup.executor or ("mp" if on_cpu else None),
        max_model_len=max(map(len, prompts.values())) + setup.max_new_tokens,
        max_num_seqs=setup.batch_size,
        max_logprobs=2,
        seed=0,
        enforce_eager=on_cpu,
        trust_remote_code=setup.trust_remote_code,
        enable_logging_iteration_details=True,
        disable_log_stats=False,
    )
    return LLMEngine.from_engine_args(arguments, stat_loggers=[stat_logger(steps)])


def _first_words(error: BaseException) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:200].rstrip(".")


def _send(out: IO[str], **message: Any) -> None:
    out.write(json.dumps(message) + "\n")
    out.flush()


def _serve(out: IO[str]) -> None:
    """Read the setup from the first line, then run one trial a line until the input ends."""
    first = json.loads(sys.stdin.readline())
    worker = Worker(Setup(**first | {"prompts": tuple(first["prompts"])}))
    try:
        _send(out, ready=worker.ready())
        for line in sys.stdin:
            asked = json.loads(line)
            requests = [tuple(request) for request in asked["requests"]]
            _send(out, **worker.run(requests, out, asked["prefix_cache"]))
    finally:
        worker.close()


def main() -> None:
    """Serve messages on the original stdout; all other output goes to stderr."""
    out = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    try:
        _serve(out)
    except BrokenPipeError:
        pass  # the parent process has ended
    except DetcheckError as error:
        _send(out, failed=str(error), usage=True)
    except Exception as error:
        import traceback

        traceback.print_exc()
        _send(out, failed=_first_words(error), usage=False)


if __name__ == "__main__":
    main()
