"""The demo: three days of a simulated Mixpanel into a Delta table, by the commands that a user would type.

Days, size and seed are fixed, so a second demo exports the same events and leaves the same rows. Everything lies in one
folder, and the simulated Mixpanel listens on a free port of loopback while the demo lasts.
"""

from __future__ import annotations

import argparse
import os
import shlex
import signal
import sys
from datetime import date
from pathlib import Path
from typing import NoReturn

from worker.cli import main as worker
from worker.mixpanel.simulator import DEMO_PASSWORD, DEMO_PROJECT_ID, DEMO_USERNAME, Simulator, SimulatorThread
from worker.mixpanel.synthetic import write_day

FLOW_FILE = Path("deploy/flow.example.yaml")
DAYS = (date(2024, 2, 28), date(2024, 2, 29), date(2024, 3, 1))
SEED = 1

COUNTS = (
    "SELECT mp_date, count(*) AS rows, to_hex(sum(hash(e))) AS fingerprint "
    "FROM mixpanel_events e GROUP BY mp_date ORDER BY mp_date"
)
FIRST_ROWS = (
    "SELECT mp_date, _extconndev.event_name, _extconndev.item_name, _extconndev.item_price, _extconndev.distinct_id "
    "FROM mixpanel_events ORDER BY mp_date, _extconndev.time, _extconndev.insert_id LIMIT 5"
)
EVENTS = "SELECT _extconndev.event_name, count(*) AS events FROM mixpanel_events GROUP BY ALL ORDER BY ALL"
REJECTS = "SELECT mp_date, code, reason, count(*) AS rejects FROM mixpanel_events_rejects GROUP BY ALL ORDER BY ALL"


def main() -> NoReturn:
    parser = argparse.ArgumentParser(prog="python -m worker.demo", description="Run the demo, here and now.")
    parser.add_argument("--folder", type=Path, default=Path(".demo"), help="where everything goes (default: .demo)")
    parser.add_argument("--events-per-day", type=int, default=100_000, help="how large a day is (default: 100000)")
    arguments = parser.parse_args()
    if not FLOW_FILE.is_file():
        parser.error(f"there is no {FLOW_FILE} here: run the demo from a checkout of the project")
    try:
        run_demo(arguments.folder, arguments.events_per_day)
    except KeyboardInterrupt:
        sys.exit(128 + signal.SIGINT)
    sys.exit()


def run_demo(folder: Path, events_per_day: int) -> None:
    """Serve the days, run the flow, and show what it left in `folder`. Raises SystemExit where a command fails."""
    _say(f"Making {len(DAYS)} project days of {events_per_day:,} events for the simulated Mixpanel …")
    exports = folder / "mixpanel"
    for day in DAYS:
        write_day(exports, day, events_per_day, SEED)
    lake, state = folder / "lake", f"sqlite:///{folder}/worker.db"
    with SimulatorThread(Simulator(data_directory=exports)) as mixpanel:
        _say(f"The simulated Mixpanel listens on {mixpanel.base_url}.")
        os.environ.update(
            MIXPANEL_HOST=mixpanel.base_url,
            MIXPANEL_PROJECT_ID=DEMO_PROJECT_ID,
            MIXPANEL_USERNAME=DEMO_USERNAME,
            MIXPANEL_PASSWORD=DEMO_PASSWORD,
            WORKER_SPOOL=str(folder / "spool"),
            # the simulated Mixpanel has no quota, and whoever plays with the demo should not wait for one
            WORKER_EXPORTS_PER_HOUR="100000",
        )
        if not sys.stderr.isatty():
            os.environ.setdefault("WORKER_LOG_LEVEL", "warning")
        span = ("--from", DAYS[0].isoformat(), "--to", DAYS[-1].isoformat())
        _show("run", str(FLOW_FILE), "--once", *span, "--lake", str(lake), "--state", state)
    _show("query", "--lake", str(lake), FIRST_ROWS)
    _show("query", "--lake", str(lake), COUNTS)
    _say(
        f"""
The rows are a Delta table in {lake / "mixpanel_events"}, what was rejected is in {lake / "mixpanel_events_rejects"}.
Look at them:

  {_command("query", "--lake", str(lake), EVENTS)}
  {_command("query", "--lake", str(lake), REJECTS)}
  {_command("runs", "--state", state)}

Do it again, and the same days are exported and replaced, the rows and fingerprints stay: make demo
Remove all of it: {shlex.join(["rm", "-r", str(folder)])}"""
    )


def _show(*arguments: str) -> None:
    """Print the command and do it in this process."""
    _say(f"\n$ {_command(*arguments)}")
    sys.argv = ["mixpanel-worker", *arguments]
    try:
        worker()
    except SystemExit as ended:
        if ended.code:
            raise


def _command(*arguments: str) -> str:
    """The command as the user can type it in the present folder."""
    program = Path(sys.executable).with_name("mixpanel-worker")
    if not program.exists():
        return shlex.join([sys.executable, "-m", "worker", *arguments])
    if program.is_relative_to(Path.cwd()):
        program = program.relative_to(Path.cwd())
    return shlex.join([str(program), *arguments])


def _say(text: str) -> None:
    print(text, flush=True)


if __name__ == "__main__":
    main()
