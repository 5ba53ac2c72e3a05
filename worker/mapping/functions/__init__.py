"""The functions of the mapping language, a module a family; importing this package enters them all into `REGISTRY`."""

from worker.mapping.functions.base import REGISTRY

__all__ = ["REGISTRY"]
