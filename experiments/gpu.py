"""Everything that needs the card, unattended, in under 8 minutes: what `make gpu` runs.

    python experiments/gpu.py [--sections matmul,attention] [--model DIR] [--minutes 7.5]
    python experiments/gpu.py --compiled     if Triton's cache holds the kernels of an earlier run
    python experiments/gpu.py --plan         the time that each section needs, by a model
    python experiments/gpu.py --dry-run      every section's control flow, on any machine
    python experiments/gpu.py --roofline     what the compiled kernels imply, on any machine
    python experiments/gpu.py --launches     what a launch costs the host, on any machine

It needs torch, triton with a C compiler, transformers, detcheck's own dependencies for its engine,
and one NVIDIA GPU (sm_80 and up; meant for Hopper). Kernels are compiled first, many at a time.
Then each section gets time in order of value, and keeps what it has measured when that is spent.
Sections run in a process of their own. If one hangs or takes the GPU down, its process is ended,
and it and the others go on in a new one with plainer kernels (no descriptors, no cuBLASLt), as
they do if products are wrong. Writes `results/gpu/gpu.json` after each section, with the
environment, and `results/gpu/table.md`; prints the table last. The completions of `variants` are
kept in a run directory in `results/gpu/variants/`. Exit code 1 if a check failed.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(Path(__file__).parent)]  # also if detcheck is not installed
RESULTS = ROOT / "results" / "gpu"
DRY_RUN = {"DETCHECK_GPU_DRY_RUN": "1", "TRITON_INTERPRET": "1"}

from gpu_sections import plan  # noqa: E402  (found through the line above)
from gpu_sections.clock import Clock  # noqa: E402


def main() -> None:
    """Do what the options ask for; see the module."""
    options = arguments()
    seconds = options.minutes * 60
    if options.dry_run:
        os.environ |= DRY_RUN
    if options.plan:
        print("\n".join(plan.table(plan.named(options.sections), seconds)))
    elif options.roofline:
        from gpu_sections import roofline

        roofline.write(options.out)
    elif options.launches:
        from gpu_sections import launches

        print("\n".join(launches.table()))
    elif options.compile or options.find:
        compile_share(options.compile or options.find, only_find=bool(options.find))
    elif options.child:
        from gpu_sections import child

        sys.exit(child.measure_all(options))
    else:
        sys.exit(measure(options, Clock(seconds)))


def measure(options: argparse.Namespace, clock: Clock) -> int:
    """Measure in processes of their own; returns the exit code."""
    from gpu_sections import report, supervisor

    found = supervisor.measure(options, clock, options.out)
    if found["sections"]:
        print("\n".join(report.table(found)))
    return 1 if report.failed(found) else 0


def compile_share(share: str, *, only_find: bool) -> None:
    """Compile one process's part of the kernels; or exit with a code at one that is not yet."""
    import torch
    from gpu_sections import found_kernels, precompile

    if torch.cuda.is_available():
        if only_find:
            found_kernels.exit_at_a_missing_one()
        precompile.precompile(precompile.share_of(share), torch.cuda.get_device_capability())


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sections", help="names joined by commas (default: all)")
    parser.add_argument("--model", help="folder of the model for the variants (default: embedded)")
    parser.add_argument("--minutes", type=float, default=7.5)
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the results")
    for name in ("compiled", "plan", "dry-run", "roofline", "launches"):
        parser.add_argument(f"--{name}", action="store_true", help="see above")
    parser.add_argument("--plain", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--compile", help=argparse.SUPPRESS)
    parser.add_argument("--find", help=argparse.SUPPRESS)
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    return parser.parse_args()


if __name__ == "__main__":
    main()
