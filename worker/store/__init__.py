"""The state of the worker: flows, runs, loads and the request ledger.

The sink is the truth and the store is a cache of it. `base` has the contract and the rules that every store keeps;
`sql` keeps them in a database, `memory` in a process; `documents` turns values into JSON and back.
"""

from worker.store.base import Lease, RunQuery, Store, StoredFlow, StoredObject
from worker.store.memory import MemoryStore
from worker.store.sql import SqlStore, open_store

__all__ = ["Lease", "MemoryStore", "RunQuery", "SqlStore", "Store", "StoredFlow", "StoredObject", "open_store"]
