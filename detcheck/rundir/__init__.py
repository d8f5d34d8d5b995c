"""The run directory: appended trial by trial, verified on load, resumable after `kill -9`.

    run.json            experiment, environment, conditions, proof of kernels, seals of the files
    completions.jsonl   one line a completion
    variants.jsonl      one line a distinct (prompt, fingerprint), written with its first completion

A trial is committed in three steps: its lines are appended and flushed to disk, the seals (length
and running SHA-256 of both files) are updated, and `run.json` is replaced atomically. Bytes past a
seal belong to a trial that was never committed: loading ignores them, the next append and resuming
cut them off. `run.json` ends with a seal of its own. Anything else that does not match its seal, or
a variant whose fingerprint is not the hash of its own tokens, was changed afterwards and is
refused.
"""

from detcheck.rundir.reader import load
from detcheck.rundir.records import (
    COMPLETIONS_FILE,
    ENOUGH,
    RUN_FILE,
    SCHEMA_VERSION,
    VARIANTS_FILE,
    CompletionTable,
    ConditionRecord,
    Float32Array,
    Int32Array,
    Run,
    Status,
    StoredVariant,
)
from detcheck.rundir.writer import RunWriter

__all__ = [
    "COMPLETIONS_FILE",
    "ENOUGH",
    "RUN_FILE",
    "SCHEMA_VERSION",
    "VARIANTS_FILE",
    "CompletionTable",
    "ConditionRecord",
    "Float32Array",
    "Int32Array",
    "Run",
    "RunWriter",
    "Status",
    "StoredVariant",
    "load",
]
