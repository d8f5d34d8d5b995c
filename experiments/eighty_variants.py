"""The 80-variants finding: one question under many loads, stock and batch-invariant kernels.

    python experiments/eighty_variants.py                      # embedded model, this machine
    python experiments/eighty_variants.py Qwen/Qwen3-8B --device cuda --max-new-tokens 1000

The source sent the same request 1000 times and got 80 different answers (Qwen3-235B, 1000 tokens;
"Defeating Nondeterminism in LLM Inference", Thinking Machines Lab, 2025). Writes a run directory to
`results/eighty_variants/` and names the command that makes its report. `--resume` continues a run
that was interrupted.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import detcheck
from detcheck.experiment import DEFAULT_PROMPT
from detcheck.listener import Listener
from detcheck.rundir import ConditionRecord

RESULTS = Path(__file__).parents[1] / "results" / "eighty_variants"


class Progress(Listener):
    """Prints one line for each condition that is done."""

    def condition_finished(self, index: int, record: ConditionRecord) -> None:
        """See `Listener.condition_finished`."""
        print(
            f"{record.condition_id}: {record.completed} completions, "
            f"{record.tokens_per_second or 0:.0f} tokens/s",
            flush=True,
        )


def main() -> None:
    options = arguments()
    if options.resume:
        run = detcheck.resume(options.out, listener=Progress())
    else:
        target = detcheck.InProcess(model=options.model, dtype=options.dtype, device=options.device)
        experiment = detcheck.Experiment(
            prompts=(options.prompt,),
            completions=options.completions,
            batch_sizes=tuple(int(size) for size in options.batch_sizes.split(",")),
            max_new_tokens=options.max_new_tokens,
            kernels=tuple(options.kernels.split(",")),
        )
        run = detcheck.run(experiment, target, options.out, listener=Progress())
    for group in detcheck.analyse(run).groups:
        cost = f", {group.relative_cost:.2f} times the stock time" if group.relative_cost else ""
        print(
            f"{group.kernels}: {group.distinct} distinct of {group.completions}, the most common "
            f"{group.most_common} times, first divergence {group.first_divergence}{cost}"
        )
    print(f"\n  detcheck report {run.path}")


def arguments() -> argparse.Namespace:
    """The command line's options."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", nargs="?", help="hub id or folder (default: embedded)")
    parser.add_argument("--prompt", default=DEFAULT_PROMPT)
    parser.add_argument("--completions", type=int, default=1000)
    parser.add_argument("--batch-sizes", default="1,8,16,32,64")
    parser.add_argument("--max-new-tokens", type=int, default=80)
    parser.add_argument("--kernels", default="stock,batch-invariant,fully-invariant")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--resume", action="store_true", help="continue the run in --out")
    return parser.parse_args()


if __name__ == "__main__":
    main()
