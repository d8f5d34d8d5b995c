"""Engine `vllm`: vLLM's offline engine, stepped by detcheck.

engine.py   the engine for the runner: one worker at a time, one message for each trial
process.py  the worker's process: start, messages with a timeout, stop
worker.py   the program of that process: vLLM, with its scheduler's batches as evidence

vLLM reads VLLM_BATCH_INVARIANT when it is imported, and makes its parallel groups once a process.
So each (kernels, tensor-parallel size) has its own process, started after the last one has ended.

On several machines vLLM runs its ranks through Ray, as it documents: start `ray start` on each of
them, then `detcheck run --engine vllm --vllm-executor ray --tensor-parallel 8,16` on one. detcheck
only passes the name to vLLM. vLLM refuses it on CPUs, unless a plugin names a resource of Ray for
them, as `tests/servers/ray_cluster.py` does; GPUs were not tried.
"""
