"""What all work on Arrow's arrays here needs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pyarrow as pa

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_pa: Any = pa

NULL: Any = _pa.scalar(None)
"""Null of any type, made once: to make a scalar of None, Arrow looks for an optional package on the disk each time."""


def is_null(array: Any) -> NDArray[np.bool_]:  # noqa: ANN401 - an Arrow array
    """The rows that are null."""
    null: NDArray[np.bool_] = array.is_null().to_numpy(zero_copy_only=False)
    return null
