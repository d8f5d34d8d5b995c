"""Causal language models: their sources, their loading, and their identity.

naming.py    a name or nothing to a folder or hub id; which errors become which sentences
embedded.py  the embedded model, unpacked once
loading.py   a folder or hub id to a model in memory
identity.py  revision and digests of a model's files
"""

from __future__ import annotations

from detcheck.models.embedded import embedded_gguf
from detcheck.models.identity import digest_of_template, identify
from detcheck.models.loading import LoadedModel, load, resolve_device
from detcheck.models.naming import num_attention_heads, source

__all__ = [
    "LoadedModel",
    "digest_of_template",
    "embedded_gguf",
    "identify",
    "load",
    "num_attention_heads",
    "resolve_device",
    "source",
]
