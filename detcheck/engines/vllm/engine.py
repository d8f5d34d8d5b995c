"""Engine `vllm` for the runner: one worker at a time, started for the current condition."""

from __future__ import annotations

import importlib.util
import math
import os
import re
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import msgspec
from msgspec.structs import replace

from detcheck.completion import Completion, TopTwo
from detcheck.engines.base import OnTokens, TrialResult
from detcheck.engines.vllm.process import VAGUE, Message, WorkerDied, WorkerProcess
from detcheck.engines.vllm.scheduler_steps import check_cache
from detcheck.engines.vllm.worker import Setup
from detcheck.errors import MeasurementError, ModelError, OutOfMemory, UsageError
from detcheck.evidence import KernelsProof, LoadEvidence, ModelIdentity, ObservedBatch
from detcheck.experiment import AUTO, Experiment
from detcheck.grid import Condition, conditions
from detcheck.kernels.settings import BATCH_INVARIANT, STOCK
from detcheck.targets import Vllm
from detcheck.text import one_line
from detcheck.traffic import FILLER_PROMPTS, Trial

START_S = 3600.0
"""Longest silence while a worker loads its model."""
STEP_S = 900.0
"""Longest silence while a worker steps: it reports its tokens several times a second."""
MODULE = "detcheck.engines.vllm.worker"
VARIABLE = "VLLM_BATCH_INVARIANT"
HOW_TO_INSTALL = (
    '`engine="vllm"` needs vLLM beside detcheck: run `pip install vllm` (GPU) in this environment, '
    "or on a CPU `make servers` and then .venv-servers/vllm/bin/detcheck."
)
_MEMORY = ("out of memory", "outofmemory", "allocate memory", "not enough memory", "free memory")

_WRAPPED = re.compile(r"Worker failed with error '(.+)', please check")
"""The message of vLLM's executor about an error of its workers."""

WorkerKey = tuple[str, int]
"""(kernels, tensor-parallel size) of a worker."""


class VllmEngine:
    """Engine `vllm`. Each (kernels, tensor-parallel size) has a worker; only one runs at a time.

    Batch-invariant kernels are tried before anything is measured, since vLLM refuses them only at
    its first request. Raises UsageError or ModelError if the experiment cannot run on vLLM here,
    MeasurementError if vLLM does not start.
    """

    def __init__(self, experiment: Experiment, target: Vllm):
        self.experiment = experiment
        self.target = target
        self._worker: WorkerProcess | None = None
        self._key: WorkerKey | None = None
        self._proofs: dict[str, KernelsProof] = {}
        self._identity = ModelIdentity()
        _check_kernels(experiment)
        _check_installed()
        self._source, self._dtype = _source(target)
        _check_heads(target, self._source)
        first = conditions(experiment, target)[0]
        try:
            for kernels in (*sorted(experiment.kernels), first.kernels):
                if kernels in (BATCH_INVARIANT, first.kernels):
                    self._worker_for((kernels, target.tensor_parallel[0]))
        except BaseException:
            self.close()
            raise

    @classmethod
    def open(cls, experiment: Experiment, target: Vllm, *_: object) -> VllmEngine:
        """Start vLLM for the first condition; see the class."""
        return cls(experiment, target)

    def run_trial(self, trial: Trial, on_tokens: OnTokens | None = None) -> TrialResult:
        """See `Engine.run_trial`. An error kills the worker; the next trial starts another."""
        kernels = trial.condition.kernels
        try:
            size, cache = self._place(trial.condition)
            worker = self._worker_for((kernels, size))
            fields = ("prompt", "arrival_step", "max_new_tokens", "seed")
            requests = [[getattr(each, name) for name in fields] for each in trial.requests]
            worker.send({"requests": requests, "prefix_cache": cache})
            message = self._answers(worker, on_tokens)
        except BaseException as error:
            self._drop()
            if isinstance(error, MeasurementError) and _is_out_of_memory(str(error)):
                raise OutOfMemory(
                    f"vLLM ran out of memory at batch size {trial.condition.batch_size}: leave "
                    "that batch size out, or lower `max_new_tokens`."
                ) from error
            raise
        self._count(kernels)
        result = _result(trial, message)
        check_cache(cache, result.load, trial.requests, message.get("cached_tokens", ()))
        return result

    def proof(self, kernels: str) -> KernelsProof:
        """See `Engine.proof`: for batch-invariant, vLLM's own report and the number of trials."""
        if kernels == STOCK:
            return KernelsProof(kernels, {})
        return self._proofs.get(kernels, KernelsProof(kernels, {}, (VARIABLE,)))

    def model_identity(self) -> ModelIdentity:
        """See `IdentifiesModel`: by the model's files and the workers' reports."""
        return self._identity

    def close(self) -> None:
        """See `Engine.close`."""
        worker, self._worker, self._key = self._worker, None, None
        if worker is not None:
            worker.stop()

    def _drop(self) -> None:
        worker, self._worker, self._key = self._worker, None, None
        if worker is not None:
            worker.kill()

    def _worker_for(self, key: WorkerKey) -> WorkerProcess:
        """The worker for `key`. If another one is there, it ends before this one starts."""
        if self._worker is None or self._key != key:
            self.close()
            kernels, tensor_parallel = key
            self._worker = WorkerProcess(MODULE, environment(kernels, tensor_parallel))
            self._key = key
            self._worker.send(asdict(self._setup(key)))
            self._wait_ready(key, self._worker)
        return self._worker

    def _wait_ready(self, key: WorkerKey, worker: WorkerProcess) -> None:
        """Wait until a worker is ready, having answered a first request."""
        kernels, tensor_parallel = key
        where = f" with {VARIABLE}=1" if kernels == BATCH_INVARIANT else ""
        where += f" with tensor parallel {tensor_parallel}" if tensor_parallel > 1 else ""
        instead = ' Use `kernels="stock"`.' if kernels == BATCH_INVARIANT else ""
        try:
            message = worker.receive(START_S)
        except WorkerDied as error:
            raise MeasurementError(f"vLLM does not run{where}: {error}{instead}") from error
        if "failed" in message:
            sentence = _cause(worker, message)
            if message["usage"]:
                raise UsageError(sentence + ".")
            executor = self.target.vllm_executor
            if executor != AUTO and re.search(rf"\b{executor}\b", sentence, re.IGNORECASE):
                instead = f' Use `vllm_executor="{AUTO}"`.'
            raise ModelError(f"vLLM does not run here{where} ({sentence}).{instead}")
        ready = message["ready"]
        self._identify(ready)
        on = bool(ready["batch_invariant"])
        self._proofs.setdefault(
            kernels,
            KernelsProof(
                kernels,
                {VARIABLE: 0},
                () if on else (VARIABLE,),
                "passed" if on else f"vLLM does not report that {VARIABLE} is on",
            ),
        )

    def _identify(self, ready: Message) -> None:
        """Keep the model's identity, from its files and a worker's first message."""
        if self._identity.name is not None:
            return
        from detcheck import models

        digests = ready.get("prompt_digests", {})
        self._identity = replace(
            models.identify(self.target.model_name, self._source, ready.get("commit")),
            dtype=ready.get("dtype"),
            chat_template_digest=ready.get("chat_template_digest"),
            prompt_digests=tuple(
                digests[prompt] for prompt in self.experiment.prompts if prompt in digests
            ),
            decoding=ready.get("decoding", {}),
        )

    def _answers(self, worker: WorkerProcess, on_tokens: OnTokens | None) -> Message:
        while True:
            message = worker.receive(STEP_S)
            if "failed" in message:
                raise MeasurementError(f"vLLM failed ({_cause(worker, message)}).")
            if "answers" in message:
                return message
            if on_tokens is not None:
                on_tokens(int(message["tokens"]))

    def _count(self, kernels: str) -> None:
        """Count one more trial under these kernels."""
        before = self._proofs[kernels]
        served = before.overrides[VARIABLE] + 1
        self._proofs[kernels] = KernelsProof(
            kernels, {VARIABLE: served}, before.missing, before.self_check
        )

    def _place(self, condition: Condition) -> tuple[int, str]:
        """(tensor-parallel size, state of the prefix cache) of a condition."""
        return next(
            (size, state) for name, size, state in self.target.places if name == condition.placement
        )

    def _setup(self, key: WorkerKey) -> Setup:
        experiment, target = self.experiment, self.target
        fillers = FILLER_PROMPTS if experiment.traffic == "mixed" else ()
        prompts = dict.fromkeys((*experiment.prompts, *fillers))
        return Setup(
            source=self._source,
            revision=target.revision,
            dtype=self._dtype,
            tensor_parallel=key[1],
            batch_invariant=key[0] == BATCH_INVARIANT,
            executor=None if target.vllm_executor == AUTO else target.vllm_executor,
            prompts=tuple(prompts),
            chats={prompt: msgspec.to_builtins(experiment.chat_of(prompt)) for prompt in prompts},
            max_new_tokens=experiment.max_new_tokens,
            batch_size=max(experiment.batch_sizes),
            temperature=experiment.temperature,
            filters=experiment.filters,
            chat_template=target.chat_template,
            trust_remote_code=target.trust_remote_code,
        )


def environment(kernels: str, tensor_parallel: int) -> dict[str, str]:
    """A worker's environment variables; the user's own VLLM_ variables win over the defaults."""
    cpus = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else [0]
    return {
        "VLLM_CPU_OMP_THREADS_BIND": threads_bind(cpus, tensor_parallel),
        "VLLM_CPU_KVCACHE_SPACE": "2",
        "VLLM_LOGGING_LEVEL": "WARNING",
        **{name: value for name, value in os.environ.items() if name.startswith("VLLM_")},
        VARIABLE: "1" if kernels == BATCH_INVARIANT else "0",
        # The engine core in the worker's process: a request is scheduled at its arrival step.
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
        "VLLM_NO_USAGE_STATS": "1",
    }


def threads_bind(cpus: list[int], tensor_parallel: int) -> str:
    """CPUs of each rank, in vLLM's notation: `0,1|2,3`.

    If there are fewer CPUs than ranks, the ranks share them in turn.
    By default vLLM gives each rank a NUMA node, and refuses more ranks than nodes.
    """
    if tensor_parallel > len(cpus):
        return "|".join(str(cpus[rank % len(cpus)]) for rank in range(tensor_parallel))
    share = len(cpus) // tensor_parallel
    shares = [cpus[rank * share : (rank + 1) * share] for rank in range(tensor_parallel)]
    return "|".join(",".join(map(str, each)) for each in shares)


def _check_kernels(experiment: Experiment) -> None:
    for kernels in experiment.kernels:
        if kernels not in (STOCK, BATCH_INVARIANT):
            raise UsageError(
                f"vLLM's batch-invariant kernels are one mode: {kernels!r} is for detcheck's own; "
                'use `kernels="stock,batch-invariant"`.'
            )


def _check_installed() -> None:
    if importlib.util.find_spec("vllm") is None:
        raise UsageError(HOW_TO_INSTALL)


def _source(target: Vllm) -> tuple[str, str]:
    """(folder or hub id, dtype), as arguments of vLLM."""
    from detcheck import models

    dtype: str = target.dtype
    if target.model is None and dtype == "auto":
        dtype = "bfloat16"
    return models.source(target.model, dtype, target.revision), dtype


def _check_heads(target: Vllm, source: str) -> None:
    """Raises UsageError if a tensor-parallel size does not divide the attention heads."""
    from detcheck import models

    sizes = target.tensor_parallel
    if sizes == (1,):
        return
    heads = models.num_attention_heads(
        source, revision=target.revision, trust_remote_code=target.trust_remote_code
    )
    bad = [size for size in sizes if heads % size]
    if bad:
        fitting = ", ".join(str(size) for size in range(1, heads + 1) if heads % size == 0)
        raise UsageError(
            f"`tensor_parallel` {bad[0]} does not divide the model's {heads} attention heads: "
            f"choose from {fitting}."
        )


def _cause(worker: WorkerProcess, message: Message) -> str:
    """The cause of a failure, without a full stop; from the log if the error gives no cause."""
    error = str(message["failed"])
    vague = any(word in error for word in VAGUE)
    error = (worker.root_cause() if vague else None) or error
    wrapped = _WRAPPED.search(error)
    return one_line(wrapped[1] if wrapped else error)[:300].rstrip(".")


def _result(trial: Trial, message: Message) -> TrialResult:
    answered = list(zip(trial.requests, message["answers"], strict=True))
    failed = sum("error" in answer for request, answer in answered if not request.is_probe)
    load = message["load"]
    return TrialResult(
        tuple(
            (position, _completion(answer))
            for position, (request, answer) in enumerate(answered)
            if request.is_probe
        ),
        sum(len(answer.get("token_ids", ())) for _, answer in answered),
        message["elapsed_s"],
        load=None if load is None else LoadEvidence(**load),
        filler_failures={"engine": failed} if failed else {},
    )


def _completion(reply: Mapping[str, Any]) -> Completion:
    if "error" in reply:
        return Completion("", "error", error=reply["error"], failure="engine")
    batch = reply["observed_batch"]
    return Completion(
        text=reply["text"],
        finish_reason=reply["finish_reason"],
        token_ids=tuple(reply["token_ids"]),
        token_ends=tuple(reply["token_ends"]),
        top_two=_top_two(reply),
        observed_batch=None if batch is None else ObservedBatch(**batch),
    )


def _top_two(reply: Mapping[str, Any]) -> TopTwo:
    """The two best tokens; of sampled tokens, which need not be the best, their own logprobs."""
    if "top_two" in reply:
        return TopTwo(*map(tuple, reply["top_two"]))
    return TopTwo(None, (math.nan,) * len(reply["logprobs"]), tuple(reply["logprobs"]))


def _is_out_of_memory(text: str) -> bool:
    return any(words in text.lower() for words in _MEMORY)
