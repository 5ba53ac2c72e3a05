"""Receipts as JSON text, the form in which targets keep them."""

from __future__ import annotations

from datetime import date, datetime

import orjson

from worker.model import Receipt, Tally


def receipt_to_json(receipt: Receipt) -> str:
    """One JSON object; `receipt_from_json` gives an equal receipt back."""
    return orjson.dumps(receipt).decode()


def receipt_from_json(text: str) -> Receipt:
    """The receipt that `receipt_to_json` wrote. Keys that this version does not know are ignored."""
    values = orjson.loads(text)
    counts = values["tally"]
    return Receipt(
        flow_id=values["flow_id"],
        day=date.fromisoformat(values["day"]),
        generation=values["generation"],
        batch_id=values["batch_id"],
        run_id=values["run_id"],
        exported_at=datetime.fromisoformat(values["exported_at"]),
        committed_at=datetime.fromisoformat(values["committed_at"]),
        tally=Tally(**{name: counts[name] for name in Tally.__slots__}),
        input_bytes=values["input_bytes"],
        output_bytes=values["output_bytes"],
        file_count=values["file_count"],
    )
