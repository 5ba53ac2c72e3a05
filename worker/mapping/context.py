"""What a mapping set may know beside the events."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping
    from datetime import datetime

    from worker.model import Source

FLOW = "_flow"
"""The name under which sources find the facts: `_flow.projectId`. A property of that name is `properties._flow`."""

FACTS: Mapping[str, str] = {
    "projectId": "the Mixpanel project",
    "timezone": "the project's time zone, an IANA name",
    "timeBasis": "`utc`, or `project` where the events' `time` counts the seconds of the project's own clock",
}
"""The facts, and what they say."""


@dataclass(frozen=True, slots=True)
class Context:
    """`moment`, aware, is what the function `now` gives; `facts` has all of `FACTS`."""

    moment: datetime
    facts: Mapping[str, str]

    @classmethod
    def of(cls, source: Source, moment: datetime) -> Context:
        return cls(
            moment,
            {"projectId": source.project_id, "timezone": source.timezone.key, "timeBasis": source.time_basis},
        )
