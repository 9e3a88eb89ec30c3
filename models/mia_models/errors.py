"""Errors of the model room."""

from __future__ import annotations

from mia_kernels.errors import MiaError


class ModelError(MiaError):
    """A model that must not be used: its files disagree, are damaged, or do not fit the caller's columns."""
