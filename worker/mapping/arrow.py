"""What all work on Arrow's arrays here needs."""

from __future__ import annotations

from typing import Any

import pyarrow as pa

_pa: Any = pa

NULL: Any = _pa.scalar(None)
"""Null of any type, made once: to make a scalar of None, Arrow looks for an optional package on the disk each time."""
