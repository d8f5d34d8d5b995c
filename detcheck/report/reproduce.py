"""The command that runs an experiment again, as one can paste it into a shell."""

from __future__ import annotations

import shlex

from detcheck.endpoints import TOGETHER
from detcheck.experiment import AUTO, OPENAI, VLLM, Experiment


def command(experiment: Experiment) -> str:
    """`detcheck run …` with every option spelt out, so that later defaults cannot change it."""
    return shlex.join(_arguments(experiment))


def _arguments(experiment: Experiment) -> list[str]:
    arguments = ["detcheck", "run"]
    if experiment.model is not None:
        arguments.append(experiment.model)
    for prompt in experiment.prompts:
        # Joined by "=", or a prompt that begins with a dash would be read as an option.
        arguments.append(f"--prompt={prompt}" if prompt.startswith("-") else "-p")
        if not prompt.startswith("-"):
            arguments.append(prompt)
    arguments += ["-n", str(experiment.completions)]
    arguments += ["-b", ",".join(map(str, experiment.batch_sizes))]
    for url in experiment.endpoints:
        arguments += ["--endpoint", url]
    if experiment.engine != OPENAI:
        arguments += ["-k", ",".join(experiment.kernels)]
    arguments += ["--engine", experiment.engine, "--traffic", experiment.traffic]
    if experiment.arrivals != TOGETHER:
        arguments += ["--arrivals", experiment.arrivals]
    if experiment.engine == VLLM:
        arguments += ["--tensor-parallel", ",".join(map(str, experiment.tensor_parallel))]
    if experiment.vllm_executor != AUTO:
        arguments += ["--vllm-executor", experiment.vllm_executor]
    arguments += ["--max-new-tokens", str(experiment.max_new_tokens)]
    arguments += ["--temperature", f"{experiment.temperature:.12g}", "--seed", str(experiment.seed)]
    if experiment.engine != OPENAI:
        arguments += ["--dtype", experiment.dtype, "--device", experiment.device]
    if not experiment.chat_template:
        arguments.append("--no-chat-template")
    if experiment.trust_remote_code:
        arguments.append("--trust-remote-code")
    return arguments
