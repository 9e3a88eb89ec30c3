"""Any table that speaks the Arrow PyCapsule interface, as a Polars frame."""

from __future__ import annotations

from typing import Any

import polars as pl

from mia_fast.errors import DataError


def frame_of(data: Any, *, where: str, then: str) -> pl.DataFrame:
    """The caller's table as a Polars frame, without a copy where its memory allows.

    Raises
    ------
    DataError
        It is no table; ``where`` and ``then`` say whose call it was and what was not done.
    """
    if isinstance(data, pl.DataFrame):
        return data
    if not hasattr(data, "__arrow_c_stream__"):
        raise DataError(
            f"a {type(data).__name__} is not a table",
            where=where,
            hint="pass a Polars or pandas frame, a pyarrow table or a DuckDB relation",
            then=then,
        )
    return pl.DataFrame(data)
