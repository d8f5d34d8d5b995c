"""Everything that needs the card, unattended, in under 8 minutes: what `make gpu` runs.

    python experiments/gpu.py [--sections matmul,attention] [--model DIR] [--minutes 7.5]

Needs torch, triton and transformers, and one NVIDIA GPU (sm_80 and up; meant for Hopper). The
kernels are compiled first, many at a time; then each section has a share of the time and keeps what
it has measured when that is spent. Sections run in a process of their own: where one hangs or takes
the GPU down, its process is ended, and it and the others go on in a new one, with the plainer
kernels (no descriptors, no segments of K); so they do where products are wrong. Writes
`results/gpu/gpu.json` after each section, with the environment, and `results/gpu/table.md`; prints
the table last. Exit code 1 where a check failed.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(Path(__file__).parent)]  # also where detcheck is not installed
RESULTS = ROOT / "results" / "gpu"

from gpu_sections.clock import Clock  # noqa: E402  (found through the line above)


def main() -> None:
    """Measure, write and print; see the module."""
    options = arguments()
    if options.compile:
        compile_share(options.compile)
    elif options.child:
        from gpu_sections import child

        sys.exit(child.measure_all(options))
    else:
        from gpu_sections import report, supervisor

        found = supervisor.measure(options, Clock(options.minutes * 60), RESULTS)
        if found["sections"]:
            print("\n".join(report.table(found)))
        sys.exit(1 if report.failed(found) else 0)


def compile_share(share: str) -> None:
    """Compile one process's part of the kernels."""
    import torch
    from gpu_sections import precompile

    if torch.cuda.is_available():
        precompile.precompile(precompile.share_of(share), torch.cuda.get_device_capability())


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sections", help="names joined by commas (default: all)")
    parser.add_argument("--model", help="folder of the model for the variants (default: embedded)")
    parser.add_argument("--minutes", type=float, default=7.5)
    parser.add_argument("--plain", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--compile", help=argparse.SUPPRESS)
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    return parser.parse_args()


if __name__ == "__main__":
    main()
