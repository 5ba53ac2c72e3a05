"""What a kind of target must be able to do. A sink is one file with one class of these three methods.

All methods are blocking and are called from worker threads, never from the event loop.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from datetime import date

    import pyarrow as pa

    from worker.model import Load, Receipt


@dataclass(frozen=True, slots=True)
class Table:
    """One table of the target: its name, the columns beside `mp_date`, and the flow that it belongs to.

    The columns are booleans, signed integers, floats, decimals, strings, binaries, date32, UTC timestamps in
    microseconds, and structs, lists and maps of them. `notes` is stored with the table and read by people: where the
    types came from.
    """

    name: str
    schema: pa.Schema
    flow_id: str
    notes: str = ""


class Stage(Protocol):
    """The rows of one load while nobody sees them: `write` at will, `seal` once, then `commit` or `abandon`.

    Every method but `abandon` raises ResourceError when the disk is full.
    """

    def write(self, batch: pa.RecordBatch) -> None:
        """Add rows. Columns and types are those of the table's schema, in its order, without `mp_date`."""

    def seal(self) -> tuple[int, int]:
        """Close and verify the files; give (bytes, files). Afterwards nothing can fail for a reason in the data."""

    def commit(self, receipt: Receipt) -> None:
        """Replace the day by the sealed rows, all at once, and store `receipt` in the target in the same step.

        A repeat of a commit that landed changes nothing. Raises StaleGenerationError when an equal or later generation
        of another batch is there, CommitUnknownError when nobody can say, SinkError otherwise.
        """

    def abandon(self) -> None:
        """Remove what was staged and never committed; harmless after `commit`. Never raises for missing files."""


class Sink(Protocol):
    """A kind of target."""

    def prepare(self, table: Table) -> None:
        """Create the table, or widen it by the columns that are new in `table.schema` (nested ones too).

        Called once before the first load of a run. Raises SchemaConflictError, OwnerConflictError, SinkError.
        """

    def stage(self, table: Table, load: Load) -> Stage:
        """Open a place for the rows of `load`. Nothing becomes visible before `Stage.commit`.

        Removes what earlier generations of the same day staged and never committed. Raises SinkError.
        """

    def landed(self, table_name: str, flow_id: str, day: date) -> Receipt | None:
        """The receipt of the newest generation of this flow's day that the target holds, or None.

        The answer to every doubt: after a crash, a time-out, a lost state database. When somebody has cleaned the
        target's history, generation and row counts stay true; the run is then empty, and the batch too where no file
        names it. Raises SinkError.
        """

    def receipts(self, table_name: str, flow_id: str) -> list[Receipt]:
        """What `landed` says of every day of this flow that the target knows of, in the order of the days.

        A day without rows is known only as long as the target's history tells of it. Raises SinkError.
        """
