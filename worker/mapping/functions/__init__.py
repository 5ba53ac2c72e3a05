"""The functions of the mapping language, a module a family; importing this package enters them all into `REGISTRY`."""

from worker.mapping.functions import (  # noqa: F401 - each enters its functions
    aggregation,
    conversions_of_type,
    dates,
    hashing,
    hierarchies,
    json_documents,
    logic,
    maps,
    regular_expressions,
    special,
    strings,
    urls,
    user_agents,
)
from worker.mapping.functions.base import REGISTRY

__all__ = ["REGISTRY"]
