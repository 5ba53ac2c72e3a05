"""What all work on Arrow's arrays here needs."""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, Any

import pyarrow as pa

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_pa: Any = pa

NULL: Any = _pa.scalar(None)
"""Null of any type."""


@lru_cache(maxsize=64, typed=True)
def scalar(value: str | float) -> Any:  # noqa: ANN401 - an Arrow scalar
    """A constant for a function of columns, made once: to make one, Arrow looks for an optional package on the disk."""
    return _pa.scalar(value)


def is_null(array: Any) -> NDArray[np.bool_]:  # noqa: ANN401 - an Arrow array
    """The rows that are null."""
    null: NDArray[np.bool_] = array.is_null().to_numpy(zero_copy_only=False)
    return null
