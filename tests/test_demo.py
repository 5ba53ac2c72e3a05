"""The demo runs as a user runs it; a second one exports the same days and changes no row."""

from __future__ import annotations

import os
import re
import shlex
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest

from worker import demo
from worker.lake import open_lake

ROOT = Path(__file__).parent.parent
EVENTS_PER_DAY = 3000


def start(folder: Path, events_per_day: int = EVENTS_PER_DAY) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "worker.demo", "--folder", str(folder), "--events-per-day", str(events_per_day)],
        cwd=ROOT,
        # what a user has set for a real project must not matter
        env={**os.environ, "MIXPANEL_HOST": "https://data.mixpanel.com", "WORKER_LAKE": "/nowhere"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def run(folder: Path) -> str:
    with start(folder) as process:
        output, errors = process.communicate(timeout=60)
    assert process.returncode == 0, errors
    assert errors == ""
    return output


def rows(folder: Path) -> Counter[str]:
    with open_lake(folder / "lake") as tables:
        return Counter(map(repr, tables.sql("select * from mixpanel_events").fetchall()))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("demo")


@pytest.fixture(scope="module")
def output(folder: Path) -> str:
    return run(folder)


def test_the_demo_says_what_it_did(output: str) -> None:
    found = re.findall(r"^ +(rows in|rows out|deduplicated|rejected|skipped)  ([\d,]+)", output, re.MULTILINE)
    numbers = {name: int(value.replace(",", "")) for name, value in found}
    assert numbers["rows in"] == len(demo.DAYS) * EVENTS_PER_DAY
    assert numbers["deduplicated"] > 0
    assert numbers["rows in"] == sum(numbers.values()) - numbers["rows in"]
    for words in ("days  2024-02-28 to 2024-03-01: 3 of 3 committed", "rows a second", "bytes  ", "event_name"):
        assert words in output


def test_the_commands_that_the_demo_prints_work(output: str, folder: Path) -> None:
    printed: list[str] = re.findall(r"^  (.*(?:mixpanel-worker|-m worker) .*)$", output, re.MULTILINE)
    assert [shlex.split(line)[1] for line in printed] == ["query", "query", "runs"]
    for line in printed:
        done = subprocess.run(shlex.split(line), cwd=ROOT, capture_output=True, text=True, timeout=30, check=False)
        assert done.returncode == 0, done.stderr
        assert done.stdout


def test_a_second_demo_leaves_the_same_rows(output: str, folder: Path) -> None:
    before = rows(folder)
    again = run(folder)
    assert rows(folder) == before
    assert before.total() > 0.99 * len(demo.DAYS) * EVENTS_PER_DAY
    fingerprints = [re.findall(r"│ (2024-\S+) +│ +(\d+) +│ (\w+) +│", text) for text in (output, again)]
    assert len(fingerprints[0]) == len(demo.DAYS)
    assert fingerprints[0] == fingerprints[1]


def test_an_interrupted_demo_ends_at_once_and_leaves_nothing_running(tmp_path: Path) -> None:
    with start(tmp_path / "demo", events_per_day=100_000) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if " run " in line:
                break
        time.sleep(0.7)
        os.killpg(process.pid, signal.SIGINT)
        _, errors = process.communicate(timeout=20)
    assert process.returncode == 128 + signal.SIGINT, errors
    assert "Traceback" not in errors
    with pytest.raises(ProcessLookupError):
        os.killpg(process.pid, 0)


def test_the_demo_outside_of_a_checkout_says_what_is_missing(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "worker.demo"], cwd=tmp_path, capture_output=True, text=True, timeout=30, check=False
    )
    assert done.returncode == 2
    assert "checkout" in done.stderr
