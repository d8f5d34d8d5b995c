"""Sampler against trainer, as numbers: measures, their rows, rounding, and the verdict.

No torch: the log-probabilities come from `detcheck.mismatch`, or from a file that it wrote.
"""
