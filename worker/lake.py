"""SQL over the tables of a lake, with DuckDB over the live files of each table's newest version."""

from __future__ import annotations

from typing import TYPE_CHECKING
from urllib.parse import unquote

from worker.errors import ConfigurationError

if TYPE_CHECKING:
    from pathlib import Path

    import duckdb


EMPTY = "empty table"
"""A name that no dataset can have."""


def table_names(lake: Path) -> list[str]:
    """The Delta tables directly under `lake`, by name."""
    if not lake.is_dir():
        return []
    return sorted(path.parent.name for path in lake.glob("*/_delta_log") if path.is_dir())


def open_lake(lake: Path) -> duckdb.DuckDBPyConnection:
    """A DuckDB connection with one view for each table of `lake`, named as the table.

    Raises ConfigurationError when there is none.
    """
    import duckdb
    import pyarrow as pa
    from deltalake import DeltaTable

    names = table_names(lake)
    if not names:
        raise ConfigurationError(
            f"There is no table in {lake}.", advice="Run a flow first, or let WORKER_LAKE name the lake."
        )
    connection = duckdb.connect(":memory:")
    for name in names:
        table = DeltaTable(str(lake / name))
        empty = pa.schema(table.schema().to_arrow()).empty_table()  # type: ignore[arg-type]  # the stubs lack the Arrow interface
        files = sorted(unquote(uri) for uri in table.file_uris())
        connection.register(EMPTY, empty)
        columns = connection.sql(f"describe {_identifier(EMPTY)}").fetchall()
        if not files:
            connection.register(name, empty)
            continue
        # the casts give columns that older files lack, in the order of the table
        selected = ", ".join(
            f"cast({_identifier(column[0])} as {column[1]}) as {_identifier(column[0])}" for column in columns
        )
        paths = ", ".join("'" + path.replace("'", "''") + "'" for path in files)
        connection.execute(
            f"create view {_identifier(name)} as select {selected} from "  # noqa: S608 - names and paths are quoted here
            f"read_parquet([{paths}], hive_partitioning = true, union_by_name = true)"
        )
    connection.unregister(EMPTY)
    return connection


def _identifier(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'
