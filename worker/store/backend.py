"""What a kind of database has of its own; all else is the same for every kind."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from sqlalchemy import Engine
    from sqlalchemy.exc import SQLAlchemyError

    from worker.errors import StoreError


@dataclass(frozen=True, slots=True)
class Backend:
    """A database that is about to be used.

    Transactions of `engine` that write come one after the other, over all processes, and each sees all that was
    written before it began; they are durable once committed. Those with the option `reads_only` wait for nobody.
    `place` names the database in messages. `explain` says what an error of the database means.
    """

    engine: Engine
    place: str
    explain: Callable[[SQLAlchemyError | UnicodeDecodeError], StoreError]


WITHOUT_STATE = "The tables know what they hold; give --from once, if days before the lookback are missing."
