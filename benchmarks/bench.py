"""The main job as a whole process, beside curl plus DuckDB's COPY of the same export in the same run.

Both read three project days as gzip over loopback HTTP from the simulated Mixpanel and leave compressed Parquet: the
worker as a committed Delta table, mapped by the tutorial's set and deduplicated; the peer as plain files with the same
eleven columns, unchecked, once with the duplicates and once without. Rounds alternate, medians are printed, all lies
under `.bench/`.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass
from datetime import date, timedelta
from pathlib import Path

from worker.mixpanel.simulator import DEMO_PASSWORD, DEMO_PROJECT_ID, DEMO_USERNAME, Simulator, SimulatorThread
from worker.mixpanel.synthetic import write_day

ROOT = Path(__file__).resolve().parent.parent
FIRST_DAY = date(2026, 3, 2)
DAYS = 3
SEED = 20260302
TUTORIAL = ROOT / "mappings" / "mixpanel-tutorial" / "mapping.json"

FLOW = """
baseConnection:
  auth:
    specName: Basic Authentication
    params: {{username: {username}, password: "${{BENCH_PASSWORD}}", host: "{url}"}}
sourceConnection: {{data: {{format: json}}, params: {{projectId: "{project}", timezone: UTC}}}}
targetConnection: {{data: {{format: delta}}, params: {{dataSetId: events}}}}
mappingSet: {mapping}
flow: {{name: benchmark}}
"""

PEER = """
import subprocess, sys
import duckdb
url, user, folder, condition, *days = sys.argv[1:]
connection = duckdb.connect()
columns = '''{event: 'VARCHAR', properties: 'STRUCT(distinct_id VARCHAR, "$import" BOOLEAN, "$insert_id" VARCHAR,
 item_id VARCHAR, item_name VARCHAR, item_price VARCHAR, "$mp_api_endpoint" VARCHAR, "$mp_api_timestamp_ms" BIGINT,
 mp_processing_time_ms BIGINT, "time" BIGINT)'}'''
for day in days:
    path = f"{folder}/{day}.jsonl.gz"
    query = f"{url}/api/2.0/export?project_id=2384945&from_date={day}&to_date={day}"
    subprocess.run(["curl", "-sf", "-u", user, "-H", "Accept-Encoding: gzip", "-o", path, query], check=True)
    connection.execute(f"copy (from (select event, unnest(properties) from read_ndjson('{path}', columns={columns})) "
                       f"{condition}) to '{folder}/{day}.parquet' (format parquet, compression zstd)")
"""


NO_DUPLICATES = """qualify "$insert_id" is null or row_number() over (
 partition by event, distinct_id, "time", "$insert_id" order by mp_processing_time_ms desc) = 1"""


@dataclass(frozen=True)
class Measure:
    wall_seconds: float
    cpu_seconds: float
    peak_mebibytes: float


def measure(command: list[str], environ: dict[str, str]) -> Measure:
    """Run `command` to its end and account for it and its children; it must succeed."""
    started = time.monotonic()
    process = subprocess.Popen(command, env=environ, stdout=subprocess.DEVNULL, cwd=ROOT)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"{command[:4]} ended with {process.returncode}")
    return Measure(time.monotonic() - started, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--rows", type=int, nargs="+", default=[1_000_000, 100_000], help="rows a day, one size or several"
    )
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    for rows in arguments.rows:
        run_size(rows, arguments.rounds)


def run_size(rows: int, rounds: int) -> None:
    folder = ROOT / ".bench" / f"{rows}"
    data = folder / "data"
    data.mkdir(parents=True, exist_ok=True)
    days = [FIRST_DAY + timedelta(days=number) for number in range(DAYS)]
    for day in days:
        if not (data / f"{day}.jsonl.gz").exists():
            print(f"making {rows:,} events of {day}", file=sys.stderr)
            write_day(data, day, rows, SEED)
    compressed = sum(path.stat().st_size for path in data.iterdir())
    measures: dict[str, list[Measure]] = {"mixpanel-worker": [], "curl + DuckDB COPY": [], "the same, deduplicated": []}
    ours, copied, deduplicated = measures.values()
    with SimulatorThread(Simulator(data_directory=data)) as simulated:
        for _ in range(rounds):
            copied.append(run_peer(folder, simulated.base_url, days, ""))
            deduplicated.append(run_peer(folder, simulated.base_url, days, NO_DUPLICATES))
            ours.append(run_worker(folder, simulated.base_url, days))
    total = rows * DAYS
    print(f"\n{DAYS} days of {rows:,} rows, {compressed / 1e6:,.0f} MB gzip, {rounds} rounds, medians")
    print(f"{'':24}{'wall s':>9}{'rows/s':>12}{'CPU s/1M rows':>15}{'peak MiB':>10}   ratio: its time / the worker's")
    for name, found in measures.items():
        wall = statistics.median(one.wall_seconds for one in found)
        cpu = statistics.median(one.cpu_seconds for one in found)
        peak = max(one.peak_mebibytes for one in found)
        ratios = [one.wall_seconds / own.wall_seconds for one, own in zip(found, ours, strict=True)]
        ratio = f"{statistics.median(ratios):.2f}, {min(ratios):.2f} to {max(ratios):.2f}"
        print(f"{name:24}{wall:>9.2f}{total / wall:>12,.0f}{cpu * 1e6 / total:>15.2f}{peak:>10.0f}   {ratio}")


def run_worker(folder: Path, url: str, days: list[date], mapping: Path = TUTORIAL) -> Measure:
    target = folder / "worker"
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir()
    flow = FLOW.format(username=DEMO_USERNAME, url=url, project=DEMO_PROJECT_ID, mapping=mapping)
    (target / "flow.yaml").write_text(flow)
    environ = os.environ | {
        "BENCH_PASSWORD": DEMO_PASSWORD,
        "WORKER_LAKE": str(target / "lake"),
        "WORKER_STATE": f"sqlite:///{target}/worker.db",
        "WORKER_SPOOL": str(target / "spool"),
        "WORKER_LOG_LEVEL": "warning",
    }
    command = [sys.executable, "-m", "worker", "run", str(target / "flow.yaml"), "--once"]
    return measure([*command, "--from", str(days[0]), "--to", str(days[-1])], environ)


def run_peer(folder: Path, url: str, days: list[date], condition: str) -> Measure:
    target = folder / "peer"
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir()
    user = f"{DEMO_USERNAME}:{DEMO_PASSWORD}"
    return measure([sys.executable, "-c", PEER, url, user, str(target), condition, *map(str, days)], dict(os.environ))


if __name__ == "__main__":
    main()
