"""The sections of `experiments/gpu.py`: each measures, and shows what it measured."""
