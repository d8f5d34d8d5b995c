"""The tiny model of the engines' tests, for replays."""

from __future__ import annotations

from engines.conftest import tiny_model

__all__ = ["tiny_model"]
