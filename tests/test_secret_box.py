"""Secrets at rest: what is sealed comes back with its key and with no other; the key file is its owner's alone."""

from __future__ import annotations

import base64
import os
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from worker.errors import ConfigurationError
from worker.secret_box import KEY_BYTES, SecretBox, key_from_text, load_key, load_or_create_key, new_key

if TYPE_CHECKING:
    from pathlib import Path

CANARY = "canary/sécret+1"
KEY = bytes(range(KEY_BYTES))


@given(st.dictionaries(st.text(max_size=20), st.text(max_size=200), max_size=5))
def test_what_was_sealed_comes_back(secrets: dict[str, str]) -> None:
    box = SecretBox(new_key())
    assert box.open(box.seal(secrets)) == secrets


def test_a_sealed_value_shows_nothing_and_is_another_one_every_time() -> None:
    box = SecretBox(KEY)
    first, second = box.seal({"password": CANARY}), box.seal({"password": CANARY})
    assert first != second
    for sealed in (first, second):
        assert CANARY.encode() not in sealed
        assert b"password" not in sealed
    assert KEY.hex() not in repr(box)


def test_F149_the_key_id_is_not_part_of_the_key() -> None:
    assert bytes.fromhex(SecretBox(KEY).key_id) not in KEY


def test_another_key_is_named_in_a_clear_error() -> None:
    box, other = SecretBox(KEY), SecretBox(new_key())
    with pytest.raises(ConfigurationError, match=f"{box.key_id}.*{other.key_id}") as caught:
        other.open(box.seal({"password": CANARY}))
    assert CANARY not in str(caught.value)


def test_every_changed_byte_is_noticed() -> None:
    box = SecretBox(KEY)
    sealed = box.seal({"password": CANARY})
    for index in range(len(sealed)):
        changed = bytearray(sealed)
        changed[index] ^= 1
        with pytest.raises(ConfigurationError):
            box.open(bytes(changed))
    for length in range(len(sealed)):
        with pytest.raises(ConfigurationError):
            box.open(sealed[:length])


@pytest.mark.parametrize(
    "text", [KEY.hex(), KEY.hex().upper(), base64.b64encode(KEY).decode(), base64.urlsafe_b64encode(KEY).decode()]
)
def test_keys_as_text(text: str) -> None:
    assert key_from_text(f" {text}\n") == KEY
    assert key_from_text(text.rstrip("=")) == KEY


@pytest.mark.parametrize(
    "text", ["", "short", "g" * 64, KEY.hex()[:-1], KEY.hex() * 2, base64.b64encode(KEY * 2).decode()]
)
def test_a_text_that_is_no_key_is_refused_and_not_repeated(text: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        key_from_text(text)
    assert not text or text not in str(caught.value)


@pytest.mark.parametrize("length", [0, 16, 31, 33])
def test_a_key_of_another_length_is_refused(length: int) -> None:
    with pytest.raises(ConfigurationError, match=f"{length} bytes"):
        SecretBox(b"x" * length)


def test_a_key_file_is_made_once_for_its_owner(tmp_path: Path) -> None:
    path = tmp_path / "worker.key"
    key = load_or_create_key(path)
    assert len(key) == KEY_BYTES
    assert path.stat().st_mode & 0o777 == 0o600
    assert load_or_create_key(path) == key
    assert load_key(path) == key
    assert [entry.name for entry in tmp_path.iterdir()] == ["worker.key"]


def test_a_wide_umask_changes_nothing(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        load_or_create_key(tmp_path / "worker.key")
    finally:
        os.umask(before)
    assert (tmp_path / "worker.key").stat().st_mode & 0o777 == 0o600


def test_all_that_start_at_once_get_one_key(tmp_path: Path) -> None:
    path = tmp_path / "worker.key"
    with ThreadPoolExecutor(16) as pool:
        keys = set(pool.map(lambda _: load_or_create_key(path), range(64)))
    assert len(keys) == 1
    assert [entry.name for entry in tmp_path.iterdir()] == ["worker.key"]


@pytest.mark.parametrize("mode", [0o644, 0o640, 0o604, 0o620, 0o777])
def test_a_key_file_that_others_can_use_is_refused(tmp_path: Path, mode: int) -> None:
    path = tmp_path / "worker.key"
    load_or_create_key(path)
    path.chmod(mode)
    with pytest.raises(ConfigurationError, match="chmod 600"):
        load_or_create_key(path)


@pytest.mark.parametrize("content", [b"", b"no key", b"\xff" * 40, b"A" * 5000])
def test_a_file_that_holds_no_key_is_refused_and_kept(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "worker.key"
    path.write_bytes(content)
    path.chmod(0o600)
    with pytest.raises(ConfigurationError, match=r"worker\.key"):
        load_or_create_key(path)
    assert path.read_bytes() == content


def test_what_is_no_file_is_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe", 0o600)
    for name in ("pipe", ".", "missing/worker.key"):
        with pytest.raises(ConfigurationError):
            load_or_create_key(tmp_path / name)
    (tmp_path / "dangling").symlink_to(tmp_path / "nothing")
    with pytest.raises(ConfigurationError):
        load_or_create_key(tmp_path / "dangling")
    with pytest.raises(ConfigurationError):
        load_key(tmp_path / "missing")
