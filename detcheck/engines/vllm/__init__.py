"""Engine `vllm`: vLLM's offline engine, stepped by detcheck.

engine.py   the engine as the runner sees it: one worker at a time, a trial is one message
process.py  the worker's process: start, messages with an end to every wait, stop for sure
worker.py   inside that process: vLLM itself, its own scheduler's batches as evidence

vLLM reads VLLM_BATCH_INVARIANT when it is imported and lays its parallel groups once a process, so
each (kernels, tensor-parallel size) has a process of its own; the one before is gone by then.

On several machines vLLM runs its ranks through Ray, as it documents: start `ray start` on each of
them, then `detcheck run --engine vllm --vllm-executor ray --tensor-parallel 8,16` on one. detcheck
hands the word on to vLLM and no more; it has not been run on a cluster here.
"""
