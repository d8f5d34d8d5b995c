"""`detcheck trace --mismatch`: the first op on which decoding and prefilling diverge."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from detcheck.cli.trace_text import layers_table, print_first, shape_text
from detcheck.errors import UsageError
from detcheck.targets import from_dict
from detcheck.text import count

if TYPE_CHECKING:
    from detcheck.probes.decode_trace import DecodeTrace


def trace_mismatch(
    prompt: str | None,
    options: dict[str, Any],
    kernels: str,
    max_new_tokens: int | None,
    out: Path | None,
    *,
    as_json: bool,
) -> None:
    """Compare decode steps with prefills, and print the first op that differs."""
    from detcheck.cli.console import keep_probe, print_json

    if prompt is None:
        raise UsageError("Give a prompt with -p: its decode steps are compared with a prefill.")
    tokens = 100 if max_new_tokens is None else max_new_tokens
    if tokens < 1:
        raise UsageError(f"`max_new_tokens` must be at least 1, not {tokens}.")
    from_dict(options)  # its fields are checked as those of other commands are
    from detcheck import models
    from detcheck.engines.prompts import encode_prompt
    from detcheck.probes.decode_trace import trace_decoding

    loaded = models.load(options.pop("model", None), **options)
    prompt_ids = encode_prompt(loaded.tokenizer, prompt, chat_template=True)
    found = trace_decoding(loaded, prompt_ids, kernels, tokens)
    print_json(found) if as_json else _print_decoding(found)
    if out is not None:
        keep_probe(found, "trace-mismatch.json", out)


def _print_decoding(found: DecodeTrace) -> None:
    from detcheck.cli.console import print_line, stdout

    tensors = count(found.tensors_compared, "tensor")
    steps = count(found.steps_compared, "step")
    compared = f"{count(found.ops_compared, 'op')} ({tensors}) of {steps}"
    first = found.first
    if first is None:
        line = f"No op differs under {found.kernels} kernels: decoded and prefilled, {compared} "
        print_line(line + "agree bit for bit.", "green")
        return
    shapes = f"{shape_text(first.reference_shape)} decoded, {shape_text(first.shape)} prefilled"
    print_first(first, f"at decode step {first.step + 1}: {shapes}", compared)
    if found.layers:
        stdout.print()
        stdout.print(layers_table(found.layers))
    print_line(f"Logits change by up to {found.max_logit_change:g}.")
