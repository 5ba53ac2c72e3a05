"""Synthetic Mixpanel days: events that look like a real export, the same ones for the same seed.

What makes them like the real thing is what hurts a reader: one property that is a number in one line and a string in
the next, text outside ASCII, missing ``$insert_id`` and ``distinct_id``, lines sent twice, lines processed again later.
"""

from __future__ import annotations

import itertools
from datetime import UTC, date, datetime, time, timedelta
from functools import lru_cache
from typing import TYPE_CHECKING, Any, NamedTuple
from uuid import UUID, uuid4

import numpy as np
import orjson
from isal import isal_zlib

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from numpy.typing import NDArray

# Small enough that another thread gets the interpreter every few milliseconds while a day is made.
BLOCK_EVENTS = 8192

# Of all lines: sent twice (half of them unchanged, half with a later mp_processing_time_ms).
DUPLICATE_SHARE = 0.002
WITHOUT_INSERT_ID_SHARE = 0.01
WITHOUT_DISTINCT_ID_SHARE = 0.005
IMPORT_SHARE = 0.01
LATE_SHARE = 0.01

_DAY_SECONDS = 86_400
_GZIP_WINDOW_BITS = 31

_EVENTS_WITH_ITEM = ("Items purchased", "Items sold", "Item viewed", "Item added to cart", "Item removed from cart")
_EVENTS_WITHOUT_ITEM = ("Sign in", "Sign off", "Page viewed", "Search", "$mp_web_page_view")
_EVENT_SHARES = (0.12, 0.06, 0.32, 0.11, 0.04, 0.05, 0.04, 0.17, 0.07, 0.02)

_ITEM_NAMES = (
    *("charger", "chair", "mobile", "Watch", "café table", "Kühlschrank", "lámpara de pie", "desk", "pillow"),
    *('27" monitor', "kettle", "headphones", "backpack", "notebook", "スニーカー", "socks \\ grey", "tent"),
)
_PATHS = ("", "search", "cart", "checkout", "account/orders", "item", "category/kitchen", "category/outdoor", "help")
_BROWSERS = (
    ("Chrome", (126, 127, 128, "91.0.4472.101")),
    ("Safari", (17.5, 16.6, "604.1")),
    ("Firefox", (127, 115, "78.0.1")),
    ("Microsoft Edge", (126, "125.0.2535.67")),
    ("Samsung Internet", ("25.0.0.31", 24)),
)
_SYSTEMS = ("Windows", "Mac OS X", "iOS", "Android", "Linux", "Chrome OS")
_SCREENS = ((1080, 1920), (900, 1440), (844, 390), (915, 412), (1440, 2560), (768, 1366))
_REFERRING_DOMAINS = ("$direct", "www.google.com", "news.example.org", "mail.example.net")
_PLACES = (
    ("San Francisco", "California", "US"),
    ("New York", "New York", "US"),
    ("São Paulo", "São Paulo", "BR"),
    ("Zürich", "Zürich", "CH"),
    ("København", "Hovedstaden", "DK"),
    ("Łódź", "Łódź Voivodeship", "PL"),
    ("Málaga", "Andalucía", "ES"),
    ("Montréal", "Québec", "CA"),
    ("東京", "東京都", "JP"),
    ("Αθήνα", "Αττική", "GR"),
    ("Bengaluru", "Karnataka", "IN"),
    ("London", "England", "GB"),
)
_LIBRARIES = (("web", "2.49.0"), ("web", "2.55.1"), ("iphone", "4.2.7"), ("android", "7.3.2"), ("python", "4.10.1"))
_ENDPOINTS = ("api.mixpanel.com", "api-js.mixpanel.com")

_HEXADECIMAL_PAIRS = np.frombuffer(b"".join(b"%02x" % value for value in range(256)), dtype=np.uint8).reshape(256, 2)
_INSERT_ID_TEMPLATE = np.frombuffer(b',"$insert_id":"00000000-0000-0000-0000-000000000000"', dtype=np.uint8)
_INSERT_ID_DIGITS = np.flatnonzero(np.equal(_INSERT_ID_TEMPLATE, ord("0")))


class _Users(NamedTuple):
    """One pool per piece of a line that belongs to the user, as JSON text; position = user."""

    distinct_id: NDArray[np.object_]
    before_url: NDArray[np.object_]
    after_url: NDArray[np.object_]
    before_timestamp: NDArray[np.object_]
    after_timestamp: NDArray[np.object_]
    before_processing: NDArray[np.object_]


def iter_lines(day: date, events: int, seed: int, *, utc_offset: timedelta = timedelta(0)) -> Iterator[bytes]:
    r"""Yield the ``events`` lines of a day, each ending with ``\n``; the same as ``write_day`` writes."""
    for block in iter_blocks(day, events, seed, utc_offset=utc_offset):
        yield from block.splitlines(keepends=True)


def iter_blocks(day: date, events: int, seed: int, *, utc_offset: timedelta = timedelta(0)) -> Iterator[bytes]:
    """Yield the lines of a day in blocks of at most ``BLOCK_EVENTS`` whole lines.

    Equal arguments give equal bytes, with one release of numpy. Days of one seed and size share their users.
    ``time`` lies in ``day`` and lines are in no order. ``utc_offset`` makes an old project, whose ``time`` is local
    wall clock written as an epoch: the server's own timestamps are then that much earlier.

    Raises ``ValueError`` for a negative ``events`` or ``seed``, or a year outside 2002 to 2199.
    """
    if events < 0 or seed < 0:
        raise ValueError("events and seed must not be negative")
    if not 2002 <= day.year < 2200:
        raise ValueError("year must be 2002 to 2199: epoch seconds are written with ten digits")
    users = _users(seed, min(20_000, max(20, events // 20)))
    midnight = int(datetime.combine(day, time(), UTC).timestamp())
    offset_milliseconds = int(utc_offset.total_seconds()) * 1000
    for number, first in enumerate(range(0, events, BLOCK_EVENTS)):
        generator = np.random.default_rng([seed, day.toordinal(), number])
        yield _block(generator, users, min(BLOCK_EVENTS, events - first), midnight, offset_milliseconds)


def write_day(
    directory: Path,
    day: date,
    events: int,
    seed: int,
    *,
    utc_offset: timedelta = timedelta(0),
    compression_level: int = 2,
    on_progress: Callable[[int], object] | None = None,
) -> Path:
    """Write ``YYYY-MM-DD.jsonl.gz`` into ``directory`` and return its path; the file appears whole or not at all.

    ``compression_level`` is isal's, 0 to 3. ``on_progress`` is called after each block with the lines made so far;
    what it raises ends the work, leaves no file and is passed on.
    """
    directory.mkdir(parents=True, exist_ok=True)
    path = directory / f"{day.isoformat()}.jsonl.gz"
    # A name of its own: two processes may make the same day of a shared cache at once.
    unfinished = path.with_name(f"{path.name}.{uuid4().hex}.part")
    compressor = isal_zlib.compressobj(compression_level, wbits=_GZIP_WINDOW_BITS)
    made = 0
    try:
        with unfinished.open("wb") as file:
            for block in iter_blocks(day, events, seed, utc_offset=utc_offset):
                file.write(compressor.compress(block))
                made = min(events, made + BLOCK_EVENTS)
                if on_progress is not None:
                    on_progress(made)
            file.write(compressor.flush())
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)
    return path


def _block(generator: np.random.Generator, users: _Users, count: int, midnight: int, offset_milliseconds: int) -> bytes:
    event = generator.choice(len(_EVENT_SHARES), count, p=_EVENT_SHARES)
    user = generator.integers(0, len(users.distinct_id), count)
    item = generator.integers(0, len(_items()), count)
    url = generator.integers(0, len(_urls()), count)
    moment = _moments(generator, count) + midnight
    insert_id = np.frombuffer(generator.bytes(16 * count), dtype=np.uint8).reshape(count, 16)
    imported = generator.random(count) < IMPORT_SHARE
    without_insert_id = generator.random(count) < WITHOUT_INSERT_ID_SHARE
    without_distinct_id = generator.random(count) < WITHOUT_DISTINCT_ID_SHARE
    received = moment * 1000 - offset_milliseconds + _delays_milliseconds(generator, count, imported)
    processed = received + 30 + generator.exponential(300, count).astype(np.int64)

    # Copies come from the first half and go to the second, so that no copy overwrites another's original.
    copies = min(count // 2, round(count * DUPLICATE_SHARE))
    source = np.arange(count)
    target = count // 2 + generator.choice(max(1, count - count // 2), copies, replace=False)
    source[target] = generator.integers(0, max(1, count // 2), copies)
    later = np.zeros(count, dtype=np.int64)
    resent = target[::2]
    later[resent] = 1000 + generator.exponential(60_000, len(resent)).astype(np.int64)

    event, user, item, url, moment = event[source], user[source], item[source], url[source], moment[source]
    imported, received, processed = imported[source], received[source], processed[source] + later
    distinct_ids = users.distinct_id[user]
    distinct_ids[without_distinct_id[source]] = b""
    insert_ids = _insert_ids(insert_id[source])
    insert_ids[without_insert_id[source]] = b""
    items = _items()[item]
    items[event >= len(_EVENTS_WITH_ITEM)] = b""
    imports = np.where(imported, _objects([b',"$import":true']), _objects([b""]))

    columns = (
        _heads()[event],
        _decimal(moment, 10),
        distinct_ids,
        users.before_url[user],
        _urls()[url],
        users.after_url[user],
        imports,
        insert_ids,
        users.before_timestamp[user],
        _decimal(received, 13),
        users.after_timestamp[user],
        items,
        users.before_processing[user],
        _decimal(processed, 13),
    )
    rows = zip(*(column.tolist() for column in columns), itertools.repeat(b"}}\n"), strict=False)
    return b"".join(itertools.chain.from_iterable(rows))


def _moments(generator: np.random.Generator, count: int) -> NDArray[np.int64]:
    """Seconds within the day: most people are awake, some are not."""
    awake = generator.normal(14 * 3600, 4.5 * 3600, count).astype(np.int64) % _DAY_SECONDS
    any_hour = generator.integers(0, _DAY_SECONDS, count)
    return np.where(generator.random(count) < 0.6, awake, any_hour)


def _delays_milliseconds(generator: np.random.Generator, count: int, imported: NDArray[np.bool_]) -> NDArray[np.int64]:
    """From the event to its arrival: mostly a second, for phones that were offline days, for imports weeks."""
    delay = 20 + generator.exponential(400, count).astype(np.int64)
    late = generator.random(count) < LATE_SHARE
    delay += np.where(late, generator.integers(2 * 3_600_000, 5 * 86_400_000, count), 0)
    delay += np.where(imported, generator.integers(86_400_000, 30 * 86_400_000, count), 0)
    return delay


def _decimal(values: NDArray[np.int64], digits: int) -> NDArray[np.bytes_]:
    powers = 10 ** np.arange(digits - 1, -1, -1, dtype=np.int64)
    text = (values[:, np.newaxis] // powers % 10 + ord("0")).astype(np.uint8)
    return text.view(f"S{digits}").ravel()


def _insert_ids(values: NDArray[np.uint8]) -> NDArray[np.bytes_]:
    text = np.tile(_INSERT_ID_TEMPLATE, (len(values), 1))
    text[:, _INSERT_ID_DIGITS] = _HEXADECIMAL_PAIRS[values].reshape(len(values), 32)
    return text.view(f"S{len(_INSERT_ID_TEMPLATE)}").ravel()


def _objects(values: list[bytes]) -> NDArray[np.object_]:
    return np.array(values, dtype=np.object_)


def _members(properties: dict[str, Any]) -> bytes:
    """The properties as they stand inside a JSON object, each after a comma."""
    return b"," + orjson.dumps(properties)[1:-1]


@lru_cache(maxsize=1)
def _heads() -> NDArray[np.object_]:
    names = (*_EVENTS_WITH_ITEM, *_EVENTS_WITHOUT_ITEM)
    return _objects([b'{"event":%b,"properties":{"time":' % orjson.dumps(name) for name in names])


@lru_cache(maxsize=1)
def _items() -> NDArray[np.object_]:
    items = []
    for number in range(600):
        price = 5 + number * 7919 % 90_000 / 100
        items.append(
            _members(
                {
                    "item_id": str(29_000 + number),
                    "item_name": _ITEM_NAMES[number % len(_ITEM_NAMES)],
                    "item_price": round(price) if number % 40 == 0 else f"{price:.2f}",
                }
            )
        )
    return _objects(items)


@lru_cache(maxsize=1)
def _urls() -> NDArray[np.object_]:
    urls = []
    for number in range(3000):
        path = _PATHS[number % len(_PATHS)]
        query = f"?ref={number * 7907 % 100_003:05d}&page={number % 17}" if number % 3 else ""
        urls.append(_members({"$current_url": f"https://shop.example.com/{path}{query}"}))
    return _objects(urls)


@lru_cache(maxsize=2)
def _users(seed: int, count: int) -> _Users:
    generator = np.random.default_rng([seed, count])
    pools: tuple[list[bytes], ...] = tuple([] for _ in _Users._fields)
    for number in range(count):
        draw = generator.integers(0, 1 << 30, 8).tolist()
        browser, versions = _BROWSERS[draw[0] % len(_BROWSERS)]
        city, region, country = _PLACES[draw[1] % len(_PLACES)]
        height, width = _SCREENS[draw[2] % len(_SCREENS)]
        library, library_version = _LIBRARIES[draw[3] % len(_LIBRARIES)]
        device_id = str(UUID(bytes=generator.bytes(16), version=4))
        distinct_id = f"user-{seed}-{number:06d}@example.com" if number % 4 else f"$device:{device_id}"
        pieces: tuple[dict[str, Any], ...] = (
            {"distinct_id": distinct_id},
            {"$browser": browser, "$browser_version": versions[draw[5] % len(versions)], "$city": city},
            {"$device_id": device_id},
            {"$lib_version": library_version, "$mp_api_endpoint": _ENDPOINTS[draw[6] % len(_ENDPOINTS)]},
            {
                "$os": _SYSTEMS[draw[7] % len(_SYSTEMS)],
                "$referring_domain": _REFERRING_DOMAINS[draw[4] % len(_REFERRING_DOMAINS)],
                "$region": region,
                "$screen_height": height,
                "$screen_width": width,
            },
            {"mp_country_code": country, "mp_lib": library},
        )
        for pool, piece in zip(pools, pieces, strict=True):
            pool.append(_members(piece))
    distinct_id_pool, before_url, after_url, before_timestamp, after_timestamp, before_processing = pools
    return _Users(
        _objects(distinct_id_pool),
        _objects(before_url),
        _objects(after_url),
        _objects([piece + b',"$mp_api_timestamp_ms":' for piece in before_timestamp]),
        _objects(after_timestamp),
        _objects([piece + b',"mp_processing_time_ms":' for piece in before_processing]),
    )
