"""Mixpanel's rule for duplicates, exact for a day of any size in bounded memory.

Events with the same event name, distinct_id, time and `$insert_id` are one event; the one that was processed last
counts. An event without `$insert_id` is never a duplicate (Mixpanel, event deduplication).
"""

from __future__ import annotations

import tempfile
from typing import TYPE_CHECKING, Self

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path
    from types import TracebackType

    from numpy.typing import NDArray

    Contents = Callable[[NDArray[np.int64]], NDArray[np.uint64]]

RECORD = np.dtype([("key0", "<u8"), ("key1", "<u8"), ("processed", "<i8"), ("row", "<i8")], align=False)
PARTITIONS = 64
FILTER_SIZE = 1 << 18


class Deduplicator:
    """Takes the keys of a day block by block, then says which rows lose. Use as a context manager.

    Two keys are the same when their 128 bits are. Above `memory_bytes` the records go to `folder`, split by key, and
    are compared part by part.
    """

    def __init__(self, folder: Path, memory_bytes: int) -> None:
        self._folder = folder
        self._memory_records = max(memory_bytes // RECORD.itemsize, 1)
        self._held: list[NDArray[np.void]] = []
        self._held_records = 0
        self._rows = 0
        self._spilled: tempfile.TemporaryDirectory[str] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._spilled is not None:
            self._spilled.cleanup()

    def add(self, keys: NDArray[np.uint64], processed: NDArray[np.int64]) -> None:
        """The next rows in order. `keys` has two columns; a row whose key is all zero cannot be a duplicate."""
        rows = np.flatnonzero(keys.any(axis=1))
        records = np.empty(len(rows), dtype=RECORD)
        records["key0"], records["key1"] = keys[rows, 0], keys[rows, 1]
        records["processed"] = processed[rows]
        records["row"] = rows + self._rows
        self._rows += len(keys)
        self._held.append(records)
        self._held_records += len(records)
        if self._held_records > self._memory_records:
            self._spill()

    def kept(self, contents: Contents) -> NDArray[np.bool_]:
        """For each row added, in order: whether it stays. Nothing may be added afterwards.

        `contents` gives 64 bits for what each of some rows, in ascending order, holds. It is asked where rows of one
        key were processed at the same time: the larger one wins, so that the answer does not hang on the order of rows,
        and of equal ones the first row.
        """
        kept = np.ones(self._rows, dtype=bool)
        if self._spilled is None:
            kept[_losers(self._held, contents)] = False
            return kept
        self._spill()
        for part in range(PARTITIONS):
            path = self._part(part)
            with open(path, "rb") as file:  # noqa: PTH123 - numpy wants a file
                kept[_losers([np.fromfile(file, dtype=RECORD)], contents)] = False
        return kept

    def _part(self, part: int) -> str:
        assert self._spilled is not None
        return f"{self._spilled.name}/{part:03}"

    def _spill(self) -> None:
        if self._spilled is None:
            self._spilled = tempfile.TemporaryDirectory(prefix="keys-", dir=self._folder)
            for part in range(PARTITIONS):
                open(self._part(part), "wb").close()  # noqa: PTH123
        records = np.concatenate(self._held) if self._held else np.empty(0, dtype=RECORD)
        self._held, self._held_records = [], 0
        part_of = (records["key0"] >> np.uint64(58)).astype(np.uint8)
        order = np.argsort(part_of, kind="stable")
        bounds = np.searchsorted(part_of[order], np.arange(PARTITIONS + 1))
        for part in range(PARTITIONS):
            chosen = order[bounds[part] : bounds[part + 1]]
            if len(chosen):
                with open(self._part(part), "ab") as file:  # noqa: PTH123
                    records[chosen].tofile(file)


def _losers(parts: list[NDArray[np.void]], contents: Contents) -> NDArray[np.int64]:
    """The row numbers of all but the winner of each key."""
    nobody = np.empty(0, dtype=np.int64)
    if not parts:
        return nobody
    ordered = np.sort(np.concatenate([part["key0"] for part in parts]))
    repeated = np.unique(ordered[1:][ordered[1:] == ordered[:-1]])
    if not len(repeated):
        return nobody
    rivals = np.concatenate([part[_places_of(part["key0"], repeated)] for part in parts])
    rivals = rivals[np.lexsort((rivals["row"], -rivals["processed"], rivals["key1"], rivals["key0"]))]
    same = (rivals["key0"][1:] == rivals["key0"][:-1]) & (rivals["key1"][1:] == rivals["key1"][:-1])
    even = same & (rivals["processed"][1:] == rivals["processed"][:-1])
    if even.any():
        content = np.zeros(len(rivals), dtype=np.uint64)
        asked = np.flatnonzero(np.append(even, False) | np.insert(even, 0, False))
        asked = asked[np.argsort(rivals["row"][asked])]
        content[asked] = contents(rivals["row"][asked])
        # keys stay side by side: only rivals of one key change places
        rivals = rivals[np.lexsort((rivals["row"], ~content, -rivals["processed"], rivals["key1"], rivals["key0"]))]
    losers: NDArray[np.int64] = rivals["row"][1:][same]
    return losers


def _places_of(values: NDArray[np.uint64], ordered: NDArray[np.uint64]) -> NDArray[np.int64]:
    """Where in `values` those stand that are among the `ordered` ones."""
    # most values are none of them, which their last bits tell without a search
    low = np.uint64(FILTER_SIZE - 1)
    maybe = np.zeros(FILTER_SIZE, dtype=bool)
    maybe[ordered & low] = True
    places = np.flatnonzero(maybe[values & low])
    values = values[places]
    found: NDArray[np.int64] = places[ordered[np.minimum(np.searchsorted(ordered, values), len(ordered) - 1)] == values]
    return found
