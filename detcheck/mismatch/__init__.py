"""Sampler against trainer: the log-probabilities of the same tokens, computed both ways.

A sampler decodes token by token, in batches that it forms itself. A trainer computes whole
sequences with gradients on, in rows of its own layout. `measure_mismatch` compares the two, and
splits the gap into its links.
"""
