"""Data Access over real Delta tables: the files of a batch, and the rows that it refused."""

from __future__ import annotations

import json
from itertools import islice
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pytest
from aiohttp import ClientPayloadError
from deltalake import DeltaTable

from tests.support import receipt_of
from tests.test_catalog_door import DAY, begun, committed, run_of, tally_of
from tests.test_http_app import Service, problem_of, serving
from worker.http import data_access
from worker.http.problems import unavailable
from worker.pipeline import REJECTS_SCHEMA
from worker.sinks import open_sink
from worker.sinks.base import Table

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from datetime import date
    from pathlib import Path

    from worker.model import Load, Run

EXPORT = "/data/foundation/export"
ROWS = pa.schema([("id", pa.string())])
EVENT = '{"event":"Item viewed","properties":{"time":"never"}}'

Reject = tuple[int, str, str, str, str]
REJECTS: list[Reject] = [
    (2, "decode", "INGEST-1401-400", "The line is not JSON.", "canary {"),
    (5, "map", "INGEST-1555-400", "time is required, and is not a time.", EVENT),
    (7, "decode", "INGEST-1401-400", "The line is not a JSON object.", "[1]"),
]


def written(service: Service, run: Run, rejects: Sequence[Reject], day: date = DAY, rows: int = 3) -> Load:
    """A day, staged and committed as a run does it; the batch is in the store and in the lake."""
    load = begun(service.store, run, day)
    stages = [
        ("events", ROWS, pa.record_batch({"id": [str(number) for number in range(rows)]}, schema=ROWS)),
        (
            "events_rejects",
            REJECTS_SCHEMA,
            pa.RecordBatch.from_pylist(
                [dict(zip(REJECTS_SCHEMA.names, reject, strict=True)) for reject in rejects], schema=REJECTS_SCHEMA
            ),
        ),
    ]
    sink = open_sink("delta", str(service.lake))
    for name, schema, content in stages:
        table = Table(name, schema, run.flow_id)
        sink.prepare(table)
        stage = sink.stage(table, load)
        stage.write(content)
        stage.seal()
        stage.commit(receipt_of(load, tally=tally_of(rows, len(rejects))))
    committed(service.store, run, load, rows=rows, failed=len(rejects))
    return load


async def content(service: Service, href: str) -> bytes:
    async with service.ask("GET", href) as response:
        assert response.status == 200, await response.text()
        body: bytes = await response.read()
        return body


def href(entry: dict[str, Any]) -> str:
    found: str = entry["_links"]["self"]["href"]
    return found


async def test_the_rows_that_a_batch_refused(tmp_path: Path) -> None:
    async with serving(tmp_path) as service:
        load = written(service, run_of(), REJECTS)
        base = f"{EXPORT}/batches/{load.batch_id}"
        for address in (f"{base}/meta?path=row_errors", f"{base}/meta?path=row_errors/", f"{base}/failed"):
            listed = await service.json("GET", address)
            assert [one["name"] for one in listed["data"]] == ["parsing_errors_0.json", "conversion_errors_0.json"]
            assert listed["_page"] == {"limit": 100, "count": 2}
            bodies = []
            for entry in listed["data"]:
                body = await content(service, href(entry))
                assert entry["length"] == str(len(body))
                bodies.append([json.loads(line) for line in body.splitlines()])
            assert bodies == [
                [
                    {
                        "_corrupt_record": "canary {",
                        "_errors": [{"code": "1401", "message": "The line is not JSON."}],
                        "_filename": "parsing_errors_0.json",
                        "_line": 2,
                    },
                    {
                        "_corrupt_record": "[1]",
                        "_errors": [{"code": "1401", "message": "The line is not a JSON object."}],
                        "_filename": "parsing_errors_0.json",
                        "_line": 7,
                    },
                ],
                [
                    {
                        "event": "Item viewed",
                        "properties": {"time": "never"},
                        "_errors": [{"code": "1555", "message": "time is required, and is not a time."}],
                        "_filename": "conversion_errors_0.json",
                        "_line": 5,
                    }
                ],
            ]
        for name in ("row_error_samples.json", "row_errors_sample.json"):
            samples = await service.json("GET", f"{base}/meta?path={name}")
            assert [one["_line"] for one in samples] == [2, 7, 5]


async def test_what_a_batch_is_made_of(tmp_path: Path) -> None:
    async with serving(tmp_path) as service:
        load = written(service, run_of(), REJECTS)
        base = f"{EXPORT}/batches/{load.batch_id}"
        top = await service.json("GET", f"{base}/meta")
        assert [one["name"] for one in top["data"]] == ["row_errors", "input_files", "row_error_samples.json"]
        for entry in top["data"]:
            await content(service, href(entry))
        (entry,) = (await service.json("GET", f"{base}/meta?path=input_files"))["data"]
        body = await content(service, href(entry))
        assert entry["length"] == str(len(body))
        assert json.loads(body)["path"] == "export-2024-03-01.json"
        assert json.loads(body)["records"] == 6
        (file,) = (await service.json("GET", f"{base}/files"))["data"]
        assert (file["dataSetFileId"], file["records"], file["isValid"]) == (f"{load.batch_id}-0", "3", True)
        (path,) = (service.lake / "events" / f"mp_date={DAY}").iterdir()
        assert file["size"] == str(path.stat().st_size)


async def test_the_files_of_rows_can_be_taken_whole_and_in_ranges(tmp_path: Path) -> None:
    async with serving(tmp_path) as service:
        load = written(service, run_of(), REJECTS)
        (listed,) = (await service.json("GET", f"{EXPORT}/batches/{load.batch_id}/files"))["data"]
        (entry,) = (await service.json("GET", href(listed)))["data"]
        (path,) = (service.lake / "events" / f"mp_date={DAY}").iterdir()
        body = await content(service, href(entry))
        assert body == path.read_bytes()
        assert (entry["name"], entry["length"]) == (path.name, str(len(body)))
        async with service.ask("GET", href(entry), headers={"Range": "bytes=4-9"}) as response:
            assert response.status == 206
            assert await response.read() == body[4:10]
            assert response.headers["Content-Range"] == f"bytes 4-9/{len(body)}"
        async with service.ask("HEAD", href(entry)) as response:
            assert (response.status, response.headers["Content-Length"]) == (200, str(len(body)))
            assert response.headers["Accept-Ranges"] == "bytes"
        for wrong in (
            f"{load.batch_id}-1",
            f"{load.batch_id}-x",
            f"{load.batch_id}",
            f"{load.batch_id}--0",
            "-0",
            "..",
            "%2e%2e-0",
        ):
            await service.json("GET", f"{EXPORT}/files/{wrong}", status=404)
        for name in ("x", "..%2f_delta_log%2f00000000000000000000.json", "%00", f"{path.name}%00"):
            await service.json("GET", f"{href(listed)}?path={name}", status=404)
        path.unlink()
        await service.json("GET", href(entry), status=503)


async def test_a_batch_without_rejects_and_without_rows(tmp_path: Path) -> None:
    async with serving(tmp_path) as service:
        load = written(service, run_of(), [], rows=0)
        base = f"{EXPORT}/batches/{load.batch_id}"
        for address in ("files", "failed", "meta?path=row_errors"):
            assert (await service.json("GET", f"{base}/{address}"))["data"] == []
        assert await service.json("GET", f"{base}/meta?path=row_error_samples.json") == []


async def test_a_batch_that_was_replaced_or_never_committed_has_no_files(tmp_path: Path) -> None:
    async with serving(tmp_path) as service:
        first = written(service, run_of(1), REJECTS)
        second = written(service, run_of(2), REJECTS[:1])
        waiting = begun(service.store, run_of(3))
        for load, count in ((first, 0), (second, 1), (waiting, 0)):
            listed = await service.json("GET", f"{EXPORT}/batches/{load.batch_id}/meta?path=row_errors")
            assert len(listed["data"]) == count
        address = f"{EXPORT}/batches/{first.batch_id}/meta?path=row_errors/parsing_errors_0.json"
        await service.json("GET", address, status=404)


async def test_other_days_are_left_aside(tmp_path: Path) -> None:
    from datetime import timedelta

    async with serving(tmp_path) as service:
        loads = [
            written(service, run_of(number), REJECTS[:number], DAY + timedelta(days=number)) for number in (1, 2, 3)
        ]
        for number, load in enumerate(loads, start=1):
            samples = await service.json("GET", f"{EXPORT}/batches/{load.batch_id}/meta?path=row_error_samples.json")
            assert len(samples) == number


async def test_files_that_somebody_has_rewritten(tmp_path: Path) -> None:
    async with serving(tmp_path) as service:
        first, second = written(service, run_of(1), REJECTS), written(service, run_of(2), REJECTS)
        for number in range(2):
            # two files, so that there is something to bring together
            table = DeltaTable(str(service.lake / "events_rejects"))
            rows = [dict(zip(REJECTS_SCHEMA.names, (number, *REJECTS[0][1:]), strict=True)) | {"mp_date": DAY}]
            from deltalake import write_deltalake

            write_deltalake(
                table, pa.Table.from_pylist(rows, pa.schema([*REJECTS_SCHEMA, ("mp_date", pa.date32())])), mode="append"
            )
        DeltaTable(str(service.lake / "events_rejects")).optimize.compact()
        path = "meta?path=row_error_samples.json"
        assert len(await service.json("GET", f"{EXPORT}/batches/{second.batch_id}/{path}")) == 5
        assert await service.json("GET", f"{EXPORT}/batches/{first.batch_id}/{path}") == []


async def test_many_rejects_make_several_files_and_pages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(data_access, "ROWS_A_FILE", 10)
    monkeypatch.setattr(data_access, "_PART_ROWS", 3)
    rejects = [(number, "decode", "INGEST-1401-400", "no", f"raw {number}") for number in range(1234)]
    async with serving(tmp_path) as service:
        load = written(service, run_of(), rejects)
        following: str | None = f"{EXPORT}/batches/{load.batch_id}/meta?path=row_errors"
        entries: list[dict[str, Any]] = []
        sizes = []
        while following:
            page = await service.json("GET", following)
            entries += page["data"]
            sizes.append(page["_page"]["count"])
            following = page.get("_links", {}).get("next", {}).get("href")
        assert sizes == [100, 24]
        assert [one["name"] for one in entries] == [f"parsing_errors_{number}.json" for number in range(124)]
        lines = []
        for entry in (entries[0], entries[77], entries[123]):
            body = await content(service, href(entry))
            assert entry["length"] == str(len(body))
            lines += [json.loads(line)["_line"] for line in body.splitlines()]
        assert lines == [*range(10), *range(770, 780), *range(1230, 1234)]
        page = await service.json("GET", f"{EXPORT}/batches/{load.batch_id}/failed?start=120&limit=2")
        assert [one["name"] for one in page["data"]] == ["parsing_errors_120.json", "parsing_errors_121.json"]


async def test_raw_lines_of_every_kind(tmp_path: Path) -> None:
    raws = [
        "",
        "\x00",
        "ünïcode \U0001f600",
        '{"a": NaN}',
        '{"cut": "',
        "[]",
        '{"_errors": 1}',
        "x" * 100_000,
        '{"a":1e999}',
    ]
    rejects = [(number, stage, "odd", "why", raw) for number, raw in enumerate(raws) for stage in ("map", "decode")]
    async with serving(tmp_path) as service:
        load = written(service, run_of(), rejects)
        base = f"{EXPORT}/batches/{load.batch_id}/failed?path="
        for name in ("parsing_errors_0.json", "conversion_errors_0.json"):
            found = [json.loads(line) for line in (await content(service, base + name)).split(b"\n")[:-1]]
            assert [one["_line"] for one in found] == list(range(len(raws)))
            for one, raw in zip(found, raws, strict=True):
                assert one["_errors"] == [{"code": "odd", "message": "why"}]
                if name.startswith("parsing"):
                    assert one["_corrupt_record"] == raw


async def test_F145_no_name_becomes_a_path(tmp_path: Path) -> None:
    (tmp_path / "secret.json").write_text("canary")
    names = (
        *("../secret.json", "..%2f..%2fsecret.json", "row_errors/../../secret.json", "/etc/passwd", "%2e%2e", "x", "."),
        *("row_errors/parsing_errors_1.json", "row_errors/parsing_errors_00.json", "row_errors//parsing_errors_0.json"),
        *("input_files/../x", "row_errors/x/y", "parsing_errors_0.json%00", "%00", "%ff", "a" * 2000),
    )
    async with serving(tmp_path) as service:
        load = written(service, run_of(), REJECTS)
        for part in ("meta", "failed"):
            for name in names:
                async with service.ask("GET", f"{EXPORT}/batches/{load.batch_id}/{part}?path={name}") as response:
                    assert response.status == 404, name
                    assert "canary" not in json.dumps(await problem_of(response))
        for batch_id in ("..", "%2e%2e", "..%2fevents", "x", load.batch_id.lower(), f"{load.batch_id}%00"):
            for part in ("meta", "failed", "files"):
                async with service.ask("GET", f"{EXPORT}/batches/{batch_id}/{part}") as response:
                    assert response.status == 404, batch_id
                    await problem_of(response)
        for wrong in ("limit=x", "start=-1", "limit=1e3"):
            await service.json("GET", f"{EXPORT}/batches/{load.batch_id}/files?{wrong}", status=400)


async def test_a_lake_that_is_broken_or_gone(tmp_path: Path) -> None:
    import shutil

    async with serving(tmp_path) as service:
        load = written(service, run_of(), REJECTS)
        address = f"{EXPORT}/batches/{load.batch_id}/meta?path=row_errors"
        for path in (service.lake / "events_rejects" / f"mp_date={DAY}").iterdir():
            path.unlink()
        await service.json("GET", address, status=503)
        await service.json("GET", f"{address}/parsing_errors_0.json", status=503)
        for path in (service.lake / "events_rejects" / "_delta_log").iterdir():
            path.write_bytes(b"nonsense")
        await service.json("GET", address, status=503)
        shutil.rmtree(service.lake)
        assert (await service.json("GET", address))["data"] == []


async def test_a_client_that_goes_away_leaves_nothing_behind(tmp_path: Path) -> None:
    rejects = [(number, "decode", "INGEST-1401-400", "no", "x" * 20_000) for number in range(2000)]
    async with serving(tmp_path) as service:
        load = written(service, run_of(), rejects)
        address = f"{EXPORT}/batches/{load.batch_id}/failed?path=parsing_errors_0.json"
        for _ in range(3):
            async with service.ask("GET", address) as response:
                assert len(await response.content.readexactly(10)) == 10
                response.close()
        await service.json("GET", "/healthz")
        assert not [event for event in service.events if "failed" in str(event)], service.events


async def test_a_file_that_cannot_be_read_to_its_end_breaks_off(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rejects = [(number, "decode", "INGEST-1401-400", "no", "x" * 1000) for number in range(2000)]
    async with serving(tmp_path) as service:
        load = written(service, run_of(), rejects)
        real = data_access._rows

        def broken(path: Path) -> Iterator[dict[str, Any]]:
            yield from islice(real(path), 1500)
            raise unavailable()

        monkeypatch.setattr(data_access, "_rows", broken)
        address = f"{EXPORT}/batches/{load.batch_id}/failed?path=parsing_errors_0.json"
        async with service.ask("GET", address) as response:
            assert response.status == 200
            with pytest.raises(ClientPayloadError):
                await response.read()
        await service.json("GET", "/healthz")
