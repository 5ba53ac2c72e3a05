"""What a source means: the table of `worker.mapping.sources`, line by line, and what it refuses."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from worker.errors import ConfigurationError
from worker.mapping.sources import resolve


@pytest.mark.parametrize(
    ("source", "paths"),
    [
        ("event", [("event",)]),
        ("event_name", [("event",)]),
        ("data.event_name", [("event",)]),
        ("properties.event_name", [("properties", "event_name")]),
        ("data.event", [("properties", "event"), ("properties", "$event")]),
        ("data.insert_id", [("properties", "insert_id"), ("properties", "$insert_id")]),
        ("data.$insert_id", [("properties", "$insert_id")]),
        ("properties.insert_id", [("properties", "insert_id")]),
        ("properties.$insert_id", [("properties", "$insert_id")]),
        ("$insert_id", [("properties", "$insert_id")]),
        ("time", [("properties", "time"), ("properties", "$time")]),
        ("item_id", [("properties", "item_id"), ("properties", "$item_id")]),
        ("properties.cart.total", [("properties", "cart", "total")]),
        ("data.cart.total", [("properties", "cart", "total"), ("properties", "$cart", "total")]),
        ("properties", [("properties",)]),
        ("data", [("properties",)]),
        ("properties.properties", [("properties", "properties")]),
        (r"properties.street\.name", [("properties", "street.name")]),
        ("properties.${First Name}", [("properties", "First Name")]),
        (r"properties.${First\.Name}", [("properties", "First.Name")]),
        ("properties.${a b.c d}.e", [("properties", "a b", "c d", "e")]),
        ("${properties.First Name}", [("properties", "First Name")]),
        (r"properties.${a\}b}", [("properties", "a}b")]),
        ("${First Name}", [("properties", "First Name"), ("properties", "$First Name")]),
        ("data.${size}", [("properties", "size"), ("properties", "$size")]),
        ("data.größe", [("properties", "größe"), ("properties", "$größe")]),
    ],
)
def test_source_means(source: str, paths: list[tuple[str, ...]]) -> None:
    assert list(resolve(source)) == paths


@pytest.mark.parametrize(
    ("source", "says"),
    [
        ("concat(data.a, data.b)", "EXPRESSION"),
        ("data.price * 100", "EXPRESSION"),
        ("data.first-name", "EXPRESSION"),
        ("'constant'", "EXPRESSION"),
        ("data.items[0].name", "is not a path of names"),
        ("data.items[*]", "is not a path of names"),
        ("data.First Name", "is not a path of names"),
        ("data.2024", "is not a path of names"),
        ("data.", "is not a path of names"),
        (".data", "is not a path of names"),
        ("data..a", "is not a path of names"),
        ("data.${}", "is not a path of names"),
        ("data.${a..b}", "is not a path of names"),
        ("data.${a", "is not a path of names"),
        ("", "is empty"),
        (" ", "is empty"),
        ("event.name", r"`properties\.event\.name`"),
        ("data.event_name.x", r"`properties\.event_name\.x`"),
    ],
)
def test_refuses_what_is_not_a_path(source: str, says: str) -> None:
    with pytest.raises(ConfigurationError, match=says):
        resolve(source)


ESCAPES = str.maketrans({"\\": r"\\", ".": r"\.", "{": r"\{", "}": r"\}"})


@given(st.lists(st.text(st.characters(exclude_characters="\n", exclude_categories=["Cs"]), min_size=1), min_size=1))
def test_every_property_can_be_reached_by_wrapping(names: list[str]) -> None:
    escaped = (name.translate(ESCAPES) for name in names)
    assert resolve("properties." + ".".join(f"${{{name}}}" for name in escaped)) == (("properties", *names),)
