"""detcheck: does an LLM give the same answer when only the load around the request changes?"""

from __future__ import annotations

__version__ = "0.1.0"
