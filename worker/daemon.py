"""The service, put together: state, API objects, scheduler, metrics, HTTP; for as long as the process lives."""

from __future__ import annotations

import asyncio
import re
import ssl
from contextlib import AsyncExitStack
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from worker import events
from worker.errors import ConfigurationError, place_of
from worker.flow_file import load_flow
from worker.http.app import make_app
from worker.http.auth import LOOPBACK_HOSTS, Gate
from worker.http.server import listening
from worker.keeper import Keeper
from worker.memory import keep_memory_small
from worker.metrics import Metrics
from worker.mixpanel.export import MixpanelExports
from worker.mixpanel.spool import own_spool
from worker.registry import Registry
from worker.secret_box import SecretBox, load_or_create_key
from worker.settings import is_loopback
from worker.store import open_store
from worker.telemetry import tell

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from worker.events import Listener
    from worker.settings import Settings

FLOW_FILES = re.compile(r"[^.].*\.(ya?ml|json)")


def flow_files(paths: Sequence[Path]) -> list[Path]:
    """The flow files that `paths` name, a folder meaning those in it, by name. Raises ConfigurationError."""
    found: list[Path] = []
    for path in paths:
        if path.is_dir():
            found += sorted(file for file in path.iterdir() if file.is_file() and FLOW_FILES.fullmatch(file.name))
        elif path.exists():
            found.append(path)
        else:
            raise ConfigurationError(f"There is no flow file and no folder at {path}.")
    return found


def check_exposure(settings: Settings) -> None:
    """Raises ConfigurationError when others could reach the service without a password, without TLS, without a key."""
    host, _ = settings.http
    if is_loopback(host):
        return
    if not settings.api_clients and not settings.api_tokens:
        raise ConfigurationError(
            f"The service would listen on {host}, where others can reach it, and nobody would need a password.",
            advice="Set WORKER_API_CLIENTS=id:secret or WORKER_API_TOKENS, or let WORKER_HTTP name 127.0.0.1.",
        )
    if not settings.tls_proxy and settings.tls_certificate is None:
        raise ConfigurationError(
            f"The service would listen on {host} without TLS.",
            advice="Set WORKER_TLS_CERTIFICATE and WORKER_TLS_KEY, or put a proxy in front that speaks TLS and set "
            "WORKER_TLS_PROXY=yes.",
        )
    if settings.key_file is None:
        raise ConfigurationError(
            "WORKER_KEY_FILE is needed where others can reach the service: credentials are encrypted with that key.",
            advice="Give it a file that holds a key, kept apart from the state database.",
        )


def tls_of(settings: Settings) -> ssl.SSLContext | None:
    """How the service speaks TLS itself, None if it does not. Raises ConfigurationError for files that do not do."""
    if settings.tls_certificate is None and settings.tls_key is None:
        return None
    if settings.tls_certificate is None or settings.tls_key is None:
        raise ConfigurationError("WORKER_TLS_CERTIFICATE and WORKER_TLS_KEY go together.")
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    try:
        # without a word from us the library would ask for a password on the terminal
        context.load_cert_chain(settings.tls_certificate, settings.tls_key, password="")
    except (OSError, ValueError) as error:
        raise ConfigurationError(
            f"{settings.tls_certificate} and {settings.tls_key} cannot be used as certificate and key ({error}).",
            advice="Give PEM files that belong together, the key without a password.",
        ) from None
    return context


def own_names(settings: Settings) -> frozenset[str] | None:
    """The names by which a request may call the service; None: any."""
    if is_loopback(settings.http[0]):
        return LOOPBACK_HOSTS
    # a check of health within the same container calls it by the loopback's name
    return settings.http_hosts | LOOPBACK_HOSTS if settings.http_hosts else None


def key_path(settings: Settings) -> Path:
    """Where the key is that secrets at rest are encrypted with."""
    if settings.key_file is not None:
        return settings.key_file
    if settings.state.startswith("sqlite:///"):
        return Path(settings.state.removeprefix("sqlite:///") + ".key")
    raise ConfigurationError("WORKER_KEY_FILE is needed with a state database that is not a file.")


async def serve(
    settings: Settings,
    paths: Sequence[Path],
    environ: Mapping[str, str],
    listener: Listener,
    *,
    on_ready: Callable[[str], None],
) -> None:
    """Run the service until cancelled; `on_ready` gets its address once it answers.

    The flow files that `paths` name are applied first; applying one again changes nothing. Raises ConfigurationError
    before anything is started, and RuntimeError when a part without which nothing is run has died. When this is
    cancelled, or raises, it is ready no more, and the runs under way end in order.
    """
    check_exposure(settings)
    tls = tls_of(settings)
    host, port = settings.http
    beyond = not is_loopback(host)
    files = [load_flow(path, environ, settings, listens_beyond_loopback=beyond) for path in flow_files(paths)]
    keep_memory_small()
    async with AsyncExitStack() as stack:
        store = stack.enter_context(await asyncio.to_thread(open_store, settings.state))
        box = SecretBox(await asyncio.to_thread(load_or_create_key, key_path(settings)))
        registry = Registry(store, box, settings, allow_loopback=not beyond)
        for file in files:
            await asyncio.to_thread(registry.apply_file, file)
        own = replace(settings, spool=stack.enter_context(own_spool(settings.spool)))
        exports = await stack.enter_async_context(MixpanelExports(own))
        # the keeper is made below
        metrics = Metrics(quota_left=lambda: keeper.quota_left())  # noqa: PLW0108
        told = tell(metrics, listener)
        keeper = Keeper(own, store, registry, exports, told)
        app = make_app(
            registry=registry,
            store=store,
            keeper=keeper,
            gate=Gate(store, clients=settings.api_clients, tokens=settings.api_tokens),
            lake=settings.lake,
            readiness=keeper.reasons_not_ready,
            metrics_text=metrics.text,
            listener=told,
            hosts=own_names(settings),
        )
        url = await stack.enter_async_context(
            listening(app, host, port, tls=tls, idle_seconds=settings.http_idle_seconds, listener=told)
        )
        watched = [
            asyncio.create_task(metrics.watch_loop(), name="the watch over the event loop"),
            asyncio.create_task(keeper.watch(), name="the scheduler"),
        ]
        stack.push_async_callback(_cancelled, watched)
        await stack.enter_async_context(keeper)
        on_ready(url)
        await _until_one_ends(watched, told)


async def _until_one_ends(tasks: Sequence[asyncio.Task[None]], listener: Listener) -> NoReturn:
    """Wait for the end of one of these tasks, none of which is to end, and raise what ended it (F80)."""
    done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    ended = done.pop()
    error = None if ended.cancelled() else ended.exception()
    place = "" if error is None else f": {place_of(error)}"
    message = f"The service ends, for {ended.get_name()} has ended{place}"
    listener(events.ServiceTrouble(None, message))
    raise RuntimeError(message) from error


async def _cancelled(tasks: Sequence[asyncio.Task[None]]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
