"""Batch-invariant kernels for the CPU, built on the stock ones (oneDNN, MKL)."""
