"""The body of one export on local disk: written at network speed by one side, read behind at once by the other.

A slow target never stalls the socket, which Mixpanel answers by ending the export.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
import threading
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from worker.errors import ResourceError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import TracebackType

READ_BYTES = 1 << 19
PROCESS_PREFIX = "worker-process-"


@contextmanager
def own_spool(folder: Path) -> Iterator[Path]:
    """A folder below `folder` for this process alone, removed at the end; folders of dead processes are removed first.

    A process holds a lock on its own folder, which the kernel lets go of however the process ends. Another lock, on
    `folder`, keeps a folder from being taken for a dead one before it is locked.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        with _locked(folder, fcntl.LOCK_EX):
            for left in folder.glob(f"{PROCESS_PREFIX}*"):
                # a live one is locked; one of another user cannot be opened or removed
                with suppress(OSError), _locked(left, fcntl.LOCK_EX | fcntl.LOCK_NB, os.O_NOFOLLOW):
                    shutil.rmtree(left, ignore_errors=True)
            own = Path(tempfile.mkdtemp(prefix=PROCESS_PREFIX, dir=folder))
            held = os.open(own, os.O_RDONLY | os.O_DIRECTORY)
            fcntl.flock(held, fcntl.LOCK_EX)
    except OSError as error:
        raise ResourceError(
            f"The spool folder {folder} cannot be used: {error.strerror or error}.",
            advice="Free some disk, or let WORKER_SPOOL name a folder with room that the worker may write to.",
        ) from error
    try:
        yield own
    finally:
        shutil.rmtree(own, ignore_errors=True)
        os.close(held)


@contextmanager
def _locked(folder: Path, operation: int, flags: int = 0) -> Iterator[None]:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | flags)
    try:
        fcntl.flock(descriptor, operation)
        yield
    finally:
        os.close(descriptor)


class ExportAbandonedError(Exception):
    """The export was left before its end, because the run was cancelled."""


class Spool:
    """One writer (`write`, then `finish` or `fail`) and one reader (`chunks`), each on a thread of its own.

    `proves_end` tells after `finish` whether the transport itself proved that the body is whole (a length or a chunk
    end).
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.size = 0
        self.proves_end = False
        self._finished = False
        self._error: Exception | None = None
        self._changed = threading.Condition()
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = path.open("wb", buffering=0)

    def __enter__(self) -> Spool:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if not self._finished:
            self.fail(ExportAbandonedError())
        self._file.close()
        self.path.unlink(missing_ok=True)

    def write(self, data: bytes) -> None:
        """Append. Raises ResourceError when the disk is full."""
        view = memoryview(data)
        try:
            while view:
                view = view[self._file.write(view) :]
        except OSError as error:
            raise ResourceError(
                f"The export could not be written to {self.path.parent}: {error.strerror}.",
                advice="Free some disk, or let WORKER_SPOOL name a folder with more room.",
            ) from error
        with self._changed:
            self.size += len(data)
            self._changed.notify_all()

    def finish(self, *, proves_end: bool) -> None:
        with self._changed:
            self.proves_end = proves_end
            self._finished = True
            self._changed.notify_all()

    def fail(self, error: Exception) -> None:
        """The body will not become whole: the reader gets `error`."""
        with self._changed:
            self._error = error
            self._finished = True
            self._changed.notify_all()

    def chunks(self) -> Iterator[bytes]:
        """The bytes from the start, waiting for those to come. Raises what `fail` was given."""
        position = 0
        with self.path.open("rb", buffering=0) as file:
            while True:
                with self._changed:
                    while not self._finished and position >= self.size:
                        self._changed.wait()
                    if self._error is not None:
                        raise self._error
                    if position >= self.size:
                        return
                data = file.read(READ_BYTES)
                position += len(data)
                yield data
