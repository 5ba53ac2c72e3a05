"""Functions of user agents: the documented example, usual agents, and rows on their own."""

from __future__ import annotations

import time
from datetime import UTC, datetime

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.functions_of_mapping import ANYTHING, FAILED, check_rows_alone, of, over
from worker.mapping.attributes import Attributes
from worker.mapping.context import Context
from worker.mapping.expression import Expression
from worker.mapping.functions import REGISTRY
from worker.mapping.functions.user_agents import recognise
from worker.mapping.values import Values

IPHONE = (
    "Mozilla/5.0 (iPhone; CPU iPhone OS 5_1_1 like Mac OS X) AppleWebKit/534.46 (KHTML, like Gecko) "
    "Version/5.1 Mobile/9B206 Safari/7534.48.3"
)
CHROME = "AppleWebKit/537.36 (KHTML, like Gecko) Chrome/141.0.0.0"
IPAD = "Mozilla/5.0 (iPad; CPU OS 16_5 like Mac OS X) AppleWebKit/605.1.15 (KHTML, like Gecko) "

FUNCTIONS = {
    "ua_os_name": "iOS",
    "ua_os_version_major": "iOS 5",
    "ua_os_version": "5.1.1",
    "ua_os_name_version": "iOS 5.1.1",
    "ua_agent_version": "5.1",
    "ua_agent_version_major": "Safari 5",
    "ua_agent_name": "Safari",
    "ua_device_class": "Phone",
}


@pytest.mark.parametrize(("name", "value"), FUNCTIONS.items())
def test_the_documented_examples(name: str, value: str) -> None:
    assert of(name, IPHONE) == value
    assert over(name, [None, IPHONE] * 5) == [None, value] * 5
    assert over(name, Values.repeat(IPHONE, 10)) == [value] * 10
    (example,) = REGISTRY.by_name[name].examples
    assert example.value == value
    block = Attributes({}, [pa.nulls(10, pa.string())], [None], Context(datetime.now(UTC), {}))
    outcome = Expression.of(example.expression).evaluate(block)
    assert outcome.values.to_pylist() == [value] * 10
    assert of(name, [IPHONE]) is FAILED


@pytest.mark.parametrize(
    ("text", "browser", "system", "device_class"),
    [
        (f"Mozilla/5.0 (Windows NT 10.0; Win64; x64) {CHROME} Safari/537.36", "Chrome 141", "Windows 10", "Desktop"),
        (f"Mozilla/5.0 (Windows NT 10.0; Win64; x64) {CHROME} Safari/537.36 Edg/141.0.0.0", "Edge 141", "Windows 10",
         "Desktop"),
        ("Mozilla/5.0 (Macintosh; Intel Mac OS X 10_15_7) AppleWebKit/605.1.15 (KHTML, like Gecko) Version/17.4 "
         "Safari/605.1.15", "Safari 17", "Mac OS 10", "Desktop"),
        ("Mozilla/5.0 (X11; Ubuntu; Linux x86_64; rv:120.0) Gecko/20100101 Firefox/120.0", "Firefox 120", "Ubuntu",
         "Desktop"),
        ("Mozilla/5.0 (compatible; MSIE 10.0; Windows NT 6.1; Trident/6.0; Tablet PC 2.0)", "Internet Explorer 10",
         "Windows 7", "Desktop"),
        (f"Mozilla/5.0 (Linux; Android 14; SM-S918B) {CHROME} Mobile Safari/537.36", "Chrome 141", "Android 14",
         "Phone"),
        (f"Mozilla/5.0 (Linux; Android 13; SM-X906C) {CHROME} Safari/537.36", "Chrome 141", "Android 13", "Tablet"),
        (f"{IPAD} CriOS/114.0.5735.99 Mobile/15E148 Safari/604.1", "Chrome 114", "iOS 16", "Tablet"),
        ("Dalvik/2.1.0 (Linux; U; Android 9; SM-G960F Build/PPR1)", "Android 9", "Android 9", "Mobile"),
        ("Mozilla/5.0 (SMART-TV; Linux; Tizen 5.0) AppleWebKit/538.1 (KHTML, like Gecko) Version/5.0 NativeTVAds "
         "Safari/538.1", "Safari 5", "Tizen 5", "TV"),
        ("Mozilla/5.0 (compatible; Googlebot/2.1; +http://www.google.com/bot.html)", "Googlebot 2", None, "Robot"),
        (f"Mozilla/5.0 (Linux; Android 6.0.1; Nexus 5X Build/MMB29P) {CHROME} Mobile Safari/537.36 (compatible; "
         "Googlebot/2.1; +http://www.google.com/bot.html)", "Googlebot 2", "Android 6", "Robot Mobile"),
        ("curl/8.4.0", "curl 8", None, "Robot"),
        ("nothing known", None, None, "Unknown"),
        ("", None, None, "Unknown"),
    ],
)  # fmt: skip
def test_usual_agents(text: str, browser: str | None, system: str | None, device_class: str) -> None:
    assert of("ua_agent_version_major", text) == browser
    assert of("ua_os_version_major", text) == system
    assert of("ua_device_class", text) == device_class


def test_long_strings_are_cut_and_take_no_time() -> None:
    hostile = "Mozilla/5.0 (Linux; Android " + "Android;Mobile(" * 100_000
    began = time.perf_counter()
    assert of("ua_os_name", hostile) == "Android"
    assert time.perf_counter() - began < 5
    assert of("ua_agent_name", "x" * 5000 + IPHONE) is None


def test_what_is_remembered_is_bounded() -> None:
    assert recognise.cache_info().maxsize == 8192


@pytest.mark.parametrize("name", FUNCTIONS)
@settings(deadline=None, max_examples=30)
@given(
    rows=st.lists(
        st.sampled_from([IPHONE, "curl/8.4.0", "Mozilla/5.0 (X11; CrOS x86_64)"]) | ANYTHING, min_size=1, max_size=6
    )
)
def test_rows_do_not_see_each_other(name: str, rows: list[object]) -> None:
    check_rows_alone(REGISTRY.by_name[name].evaluate, rows)
