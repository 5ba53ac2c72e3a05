"""Targets: the protocol is in `base`, each kind is one file, and they are opened here."""

from __future__ import annotations

from typing import TYPE_CHECKING

from worker.errors import ConfigurationError

if TYPE_CHECKING:
    from worker.sinks.base import Sink


def open_sink(format: str, lake: str) -> Sink:  # noqa: A002 the word of the target connection
    """The sink for a target connection's `format` whose tables lie under `lake`. Touches neither disk nor network.

    Raises ConfigurationError for a format that is not known and for a lake that the format cannot use.
    """
    # Each kind is imported when it is opened: a command that opens none starts without their libraries.
    match format:
        case "delta":
            from worker.sinks.delta import DeltaSink  # noqa: PLC0415

            return DeltaSink(lake)
        case "memory":
            from worker.sinks.memory import MemorySink  # noqa: PLC0415

            return MemorySink()
    raise ConfigurationError(f"The target format {format!r} is not known.", advice="Use 'delta'.")
