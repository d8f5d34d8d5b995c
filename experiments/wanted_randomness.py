"""Wanted randomness against unwanted: sixteen seeds, each answered under every load.

    python experiments/wanted_randomness.py                # 10 to 20 minutes on 2 cores

At a temperature above 0 each seed asks for one sample, so sixteen seeds may give sixteen answers.
Any further answer to the same seed was added by the system. Writes a run directory to
`results/wanted_randomness/`, prints both counts for each kernels setting, and names the command
that makes the report.
"""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path

import detcheck
from detcheck.experiment import DEFAULT_PROMPT

RESULTS = Path(__file__).resolve().parents[1] / "results" / "wanted_randomness"


def main() -> None:
    options = arguments()
    shutil.rmtree(options.out, ignore_errors=True)
    experiment = detcheck.Experiment(
        prompts=(options.prompt,),
        kernels=tuple(options.kernels.split(",")),
        batch_sizes=tuple(int(size) for size in options.batch_sizes.split(",")),
        completions=options.completions,
        max_new_tokens=options.max_new_tokens,
        temperature=options.temperature,
        seeds=tuple(range(options.seeds)),
    )
    target = detcheck.InProcess(model=options.model, device=options.device)
    run = detcheck.run(experiment, target, options.out)
    for group in detcheck.analyse(run).groups:
        print(
            f"{group.kernels}: {options.seeds} seeds gave {group.distinct} distinct answers in "
            f"{group.completions} completions, at most {group.distinct_within_seed} for one seed"
        )
    print(f"\n  detcheck report {run.path}")


def arguments() -> argparse.Namespace:
    """The command line's options."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", nargs="?", help="hub id or folder (default: embedded)")
    parser.add_argument("--prompt", default=DEFAULT_PROMPT)
    parser.add_argument("--seeds", type=int, default=16)
    parser.add_argument("--temperature", type=float, default=0.7)
    parser.add_argument("--completions", type=int, default=21, help="for each seed")
    parser.add_argument("--batch-sizes", default="1,4,16")
    parser.add_argument("--max-new-tokens", type=int, default=80)
    parser.add_argument("--kernels", default="stock,batch-invariant")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--out", type=Path, default=RESULTS)
    return parser.parse_args()


if __name__ == "__main__":
    main()
