"""Functions that Adobe has and a mapping of events into a table has not, each with the reason."""

from __future__ import annotations

_ANALYTICS = "it is for data that comes from Adobe's Web SDK or Adobe Analytics"
_DESTINATIONS = "Adobe has it for destinations only, not for ingestion"
_UNPUBLISHED = "Adobe has not published it"

REFUSED: dict[str, str] = {
    "aa_get_event_id": _ANALYTICS,
    "aa_get_event_value": _ANALYTICS,
    "aa_get_product_categories": _ANALYTICS,
    "aa_get_product_names": _ANALYTICS,
    "aa_get_product_quantities": _ANALYTICS,
    "aa_get_product_prices": _ANALYTICS,
    "aa_get_product_event_values": _ANALYTICS,
    "aa_get_product_evars": _ANALYTICS,
    "array_to_string": _DESTINATIONS,
    "filterArray": _DESTINATIONS,
    "transformArray": _DESTINATIONS,
    "flattenArray": _DESTINATIONS,
    "aa_get_product_events": _UNPUBLISHED,
    "aa_get_product_event_ids": _UNPUBLISHED,
}
