"""Secrets at rest: AES-256-GCM under a key that is not in the database (facts, reliability 4.1).

A sealed value is one byte of format, eight of key id, twelve of nonce, and the encrypted JSON object. The key id says
which key is needed and tells nothing of it.
"""

from __future__ import annotations

import base64
import binascii
import os
import re
import stat
from contextlib import suppress
from hashlib import sha256
from secrets import token_bytes, token_hex
from typing import TYPE_CHECKING, Final

import orjson
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from worker.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

KEY_BYTES: Final = 32

_FORMAT = b"\x01"
_KEY_ID_BYTES = 8
_NONCE_BYTES = 12
_HEADER_BYTES = len(_FORMAT) + _KEY_ID_BYTES + _NONCE_BYTES
_TAG_BYTES = 16
_MOST_KEY_FILE_BYTES = 1024
_HEXADECIMAL = re.compile(r"[0-9A-Fa-f]{64}")
_BASE64 = re.compile(r"[A-Za-z0-9+/_-]{43}=?")


class SecretBox:
    """Seals and opens small sets of secrets with one key of 32 bytes. Safe to use from several threads."""

    def __init__(self, key: bytes) -> None:
        if len(key) != KEY_BYTES:
            raise ConfigurationError(f"The key for secrets has {len(key)} bytes, and needs {KEY_BYTES}.")
        self._cipher = AESGCM(key)
        self._key_id = sha256(b"mixpanel-worker key id\0" + key).digest()[:_KEY_ID_BYTES]

    def __repr__(self) -> str:
        return f"SecretBox({self.key_id})"

    @property
    def key_id(self) -> str:
        """Names the key; fit for logs."""
        return self._key_id.hex()

    def seal(self, secrets: Mapping[str, str]) -> bytes:
        """The secrets encrypted; another text every time."""
        header = _FORMAT + self._key_id + token_bytes(_NONCE_BYTES)
        nonce = header[-_NONCE_BYTES:]
        return header + self._cipher.encrypt(nonce, orjson.dumps(dict(secrets)), header)

    def open(self, sealed: bytes) -> dict[str, str]:
        """What `seal` was given. Raises ConfigurationError for another key, and for bytes that were changed."""
        if len(sealed) < _HEADER_BYTES + _TAG_BYTES or not sealed.startswith(_FORMAT):
            raise ConfigurationError("A sealed secret in the state database is damaged, or of a newer version.")
        header, content = sealed[:_HEADER_BYTES], sealed[_HEADER_BYTES:]
        key_id = header[len(_FORMAT) : -_NONCE_BYTES]
        if key_id != self._key_id:
            raise ConfigurationError(
                f"A secret was sealed with the key {key_id.hex()}, and the key given is {self.key_id}.",
                advice="Give the key that the state database was used with.",
            )
        try:
            text = self._cipher.decrypt(header[-_NONCE_BYTES:], content, header)
        except InvalidTag:
            raise ConfigurationError("A sealed secret in the state database is damaged.") from None
        opened: dict[str, str] = orjson.loads(text)
        return opened


def new_key() -> bytes:
    return token_bytes(KEY_BYTES)


def key_from_text(text: str) -> bytes:
    """A key as people write it: 32 bytes as 64 hexadecimal digits or in base64.

    Raises ConfigurationError, which does not repeat the text.
    """
    text = text.strip()
    if _HEXADECIMAL.fullmatch(text):
        return bytes.fromhex(text)
    if _BASE64.fullmatch(text):
        with suppress(binascii.Error):
            return base64.urlsafe_b64decode(text.replace("+", "-").replace("/", "_").rstrip("=") + "=")
    raise ConfigurationError(
        f"The key for secrets is not {KEY_BYTES} bytes in hexadecimal digits or base64.",
        advice="Make one with: openssl rand -base64 32",
    )


def load_key(path: Path) -> bytes:
    """The key in a file that only its owner can read. Raises ConfigurationError for any other file, and for none."""
    try:
        # not blocking: a pipe without a writer would hold the start up for ever
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as error:
        raise ConfigurationError(f"The key file {path} cannot be read: {error.strerror}.") from error
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise ConfigurationError(f"The key file {path} is not a file.")
        if status.st_mode & (stat.S_IRWXG | stat.S_IRWXO):
            raise ConfigurationError(
                f"The key file {path} can be used by others (mode {stat.S_IMODE(status.st_mode):04o}).",
                advice=f"Make it its owner's alone: chmod 600 {path}",
            )
        content = os.read(descriptor, _MOST_KEY_FILE_BYTES)
    finally:
        os.close(descriptor)
    try:
        return key_from_text(content.decode("ascii"))
    except UnicodeDecodeError:
        raise ConfigurationError(f"The key file {path} does not hold a key as text.") from None
    except ConfigurationError as error:
        raise ConfigurationError(f"The key file {path}: {error.message}", advice=error.advice) from error


def load_or_create_key(path: Path) -> bytes:
    """The key in the file, which is made, with mode 0600 and a new key, if there is none.

    Of several processes that start at once, one makes the file and all get its key; no reader sees half of it.
    """
    if not os.path.lexists(path):
        try:
            _create(path)
        except OSError as error:
            raise ConfigurationError(f"The key file {path} cannot be made: {error.strerror}.") from error
    return load_key(path)


def _create(path: Path) -> None:
    text = base64.b64encode(new_key()) + b"\n"
    draft = path.with_name(f".{path.name}.{token_hex(8)}")
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(text)
            file.flush()
            os.fsync(descriptor)
        # unlike a rename, a link never replaces the key that another process has just made and used
        with suppress(FileExistsError):
            os.link(draft, path)
    finally:
        draft.unlink()
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
