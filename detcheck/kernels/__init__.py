"""Batch-invariant kernels, usable without the rest of detcheck."""
