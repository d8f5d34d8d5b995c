"""Gives the replays the tiny model of the engines' tests."""

from __future__ import annotations

from engines.conftest import tiny_model

__all__ = ["tiny_model"]
