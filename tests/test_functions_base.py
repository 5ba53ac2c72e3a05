"""What functions of the mapping language build on: groups of rows, bounds, and the bytes of texts."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
from hypothesis import given
from hypothesis import strategies as st

from worker.mapping.functions.base import MAX_ITEMS, MAX_TEXT_CHARACTERS, Call, cut, laid_out, present, texts_of_bytes
from worker.mapping.values import Items, Kind, Values

TEXTS = st.lists(st.none() | st.text(max_size=6), max_size=12)


@given(TEXTS)
def test_groups_hold_each_row_once_under_its_text(texts: list[str | None]) -> None:
    call = Call(len(texts))
    groups = [(text, rows.tolist()) for text, rows in call.by_value(pa.array(texts, pa.string()))]
    assert len({text for text, _ in groups}) == len(groups)
    assert sorted(row for _, rows in groups for row in rows) == [i for i, text in enumerate(texts) if text is not None]
    assert all(texts[row] == text for text, rows in groups for row in rows)


@given(TEXTS, st.integers(0, 3))
def test_texts_come_back_from_their_bytes(texts: list[str | None], skipped: int) -> None:
    column = pa.array(texts, pa.string())[skipped:]
    data, offsets = laid_out(column)
    valid = present(column)
    assert cut(data, offsets[:-1], offsets[1:], valid).equals(column)
    lengths = offsets[1:] - offsets[:-1]
    assert texts_of_bytes(data[offsets[0] :], lengths, valid).equals(column)


def test_a_text_is_as_long_as_texts_may_be() -> None:
    most, beyond = "😀" * MAX_TEXT_CHARACTERS, "a" * (MAX_TEXT_CHARACTERS + 1)
    call = Call(3)
    kept = call.short(pa.array([most, beyond, None]))
    assert kept.to_pylist() == [most, None, None]
    assert [(reason, rows.tolist()) for reason, rows in call.failures()] == [
        (f"the result is longer than {MAX_TEXT_CHARACTERS} characters", [1])
    ]


def test_an_array_has_as_many_items_as_arrays_may_have() -> None:
    lengths = np.array([MAX_ITEMS, MAX_ITEMS + 1, 0])
    arrays = Values.items(Items.of_lengths(lengths, Values.repeat(1, int(lengths.sum()))))
    call = Call(3)
    assert call.few(arrays).trees(Kind.ARRAY).lengths.tolist() == [MAX_ITEMS, 0, 0]
    assert call.failed.tolist() == [False, True, False]
