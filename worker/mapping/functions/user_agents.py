"""Functions that tell what a user agent string says of the browser, the system and the device.

The strings are recognised by the expressions that the ua-parser project keeps, in its linear-time engine: no string can
make it run away. Names and classes are brought near to those of YAUAA, which Adobe's examples show.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.compute
from ua_parser import Domain
from ua_parser.loaders import load_lazy_builtins
from ua_parser.regex import Resolver

from worker.mapping.functions.base import Example, Parameter, function
from worker.mapping.values import Values

if TYPE_CHECKING:
    from collections.abc import Callable

    from ua_parser import OS, Device, UserAgent

    from worker.mapping.functions.base import Call

# The stubs of pyarrow refuse arguments that its functions take, such as a scalar beside an array.
pc: Any = pyarrow.compute

USER_AGENTS = "User agent"

_MOST_CHARACTERS = 4096
"""What comes after them in a string is not looked at."""


@dataclass(frozen=True, slots=True)
class Product:
    """A browser or an operating system: `Safari`, `5.1`."""

    name: str | None
    version: str | None

    @property
    def name_version(self) -> str | None:
        return self._with(self.version)

    @property
    def name_version_major(self) -> str | None:
        return self._with(None if self.version is None else self.version.partition(".")[0])

    def _with(self, version: str | None) -> str | None:
        return self.name if self.name is None or version is None else f"{self.name} {version}"


@dataclass(frozen=True, slots=True)
class Agent:
    """What a user agent string says."""

    browser: Product
    system: Product
    device_class: str


# Recognising

_BROWSERS = {
    "Mobile Safari": "Safari",
    "Mobile Safari UI/WKWebView": "Safari",
    "Chrome Mobile": "Chrome",
    "Chrome Mobile iOS": "Chrome",
    "Chrome Mobile WebView": "Chrome Webview",
    "Edge Mobile": "Edge",
    "Firefox Mobile": "Firefox",
    "Firefox iOS": "Firefox",
    "IE": "Internet Explorer",
    "IE Mobile": "Internet Explorer",
    "Opera Mobile": "Opera",
}
_SYSTEMS = {"Mac OS X": "Mac OS"}

_PROGRAMS = frozenset({"curl", "Wget", "Go-http-client", "Java", "Python Requests", "Python-urllib"})
_SPIDERS = {"Smartphone": "Robot Mobile", "Feature Phone": "Robot Mobile"}

# tried in this order on the whole string; the first of which all expressions are found says the class
_DEVICES = tuple(
    (tuple(map(re.compile, expressions)), device_class)
    for *expressions, device_class in (
        (r"OculusBrowser|\bQuest\b", "Virtual Reality"),
        (r"Tesla|QtCarBrowser|CarPlay|Android Automotive", "Car"),
        (r"\bAlexa\b|Amazon Echo", "Voice"),
        (r"Nintendo (?:3DS|DSi|Switch)|PlayStation (?:Portable|Vita)", "Handheld Game Console"),
        (r"Xbox|P(?:lay[Ss]tation|LAYSTATION)|Nintendo", "Game Console"),
        (r"AppleTV|Apple TV|tvOS|Roku|CrKey|\bAFT[A-Z]", "Set-top box"),
        (r"S(?:mart|MART)-?TV|HbbTV|NetCast|Web0S|GoogleTV|Google TV|Android TV|BRAVIA", "TV"),
        (r"Tizen", r"TV", "TV"),
        (r"watchOS|Apple ?Watch|Watch OS|SM-R[0-9]", "Watch"),
        (r"Kindle|Kobo|\bNook\b", "eReader"),
        (r"iPad|PlayBook|Tablet(?! PC)", "Tablet"),
        (r"iPhone|iPod|Windows Phone|BlackBerry|BB10|Opera Mini", "Phone"),
        (r"Android", r"Mobile", "Phone"),
        # apps do not say whether they run on a phone, browsers do
        (r"Android", r"Dalvik", "Mobile"),
        (r"Android", "Tablet"),
        (r"Windows NT|Macintosh|X11|CrOS|Windows 9|Linux (?:x86_64|i[3-6]86)", "Desktop"),
        (r"Mobi", "Mobile"),
    )
)


@lru_cache(maxsize=1)
def _resolver() -> Resolver:
    # a third of a second and 26 MB, for those only who use these functions
    return Resolver(load_lazy_builtins())


@lru_cache(maxsize=8192)
def recognise(text: str) -> Agent:
    """What a user agent string says."""
    found = _resolver()(text, Domain.ALL)
    return Agent(_browser(found.user_agent), _system(found.os), _device_class(text, found.user_agent, found.device))


def _browser(browser: UserAgent | None) -> Product:
    if browser is None:
        return Product(None, None)
    parts = (browser.major, browser.minor, browser.patch, browser.patch_minor)
    return Product(_BROWSERS.get(browser.family, browser.family), _version(parts))


def _system(system: OS | None) -> Product:
    if system is None:
        return Product(None, None)
    parts = (system.major, system.minor, system.patch, system.patch_minor)
    return Product(_SYSTEMS.get(system.family, system.family), _version(parts))


def _version(parts: tuple[str | None, ...]) -> str | None:
    """The parts up to the first that is missing."""
    known = parts[: parts.index(None)] if None in parts else parts
    return ".".join(part for part in known if part is not None) or None


def _device_class(text: str, browser: UserAgent | None, device: Device | None) -> str:
    if device is not None and device.brand == "Spider":
        return _SPIDERS.get(device.model or "", "Robot")
    if browser is not None and browser.family in _PROGRAMS:
        return "Robot"
    return next((name for expressions, name in _DEVICES if all(one.search(text) for one in expressions)), "Unknown")


def _taking(take: Callable[[Agent], str | None]) -> Callable[[Call, Values], Values]:
    """A function that gives one fact of each row's user agent, looked up once for equal strings."""

    def evaluate(call: Call, user_agent: Values) -> Values:
        texts = pc.utf8_slice_codeunits(call.texts(user_agent, "USER_AGENT"), 0, _MOST_CHARACTERS)
        encoded = pc.dictionary_encode(texts)
        facts = [take(recognise(text)) for text in encoded.dictionary.to_pylist()]
        return Values.of(pc.take(pa.array(facts, pa.string()), encoded.indices))

    return evaluate


# Functions

_DECISIONS = (
    "Strings are recognised by the expressions of the ua-parser project, where Adobe probably uses YAUAA: rare "
    "browsers and systems can have other names or versions than there.",
    "Mobile forms of a browser have its plain name, `Safari` for `Mobile Safari`; Mac OS X is `Mac OS`; Windows is "
    "`Windows` with the version people know it by, `10`.",
    "What is not recognised is null, but for the device class, which is `Unknown`.",
    f"Only the first {_MOST_CHARACTERS} characters of a string count.",
)
_LOOP = "each different string is recognised once, by expressions that take one string at a time"
_SAMPLE = (
    "Mozilla/5.0 (iPhone; CPU iPhone OS 5_1_1 like Mac OS X) AppleWebKit/534.46 (KHTML, like Gecko) "
    "Version/5.1 Mobile/9B206 Safari/7534.48.3"
)


def _enter(
    name: str,
    description: str,
    value: str,
    take: Callable[[Agent], str | None],
    *decisions: str,
    note: str | None = None,
) -> None:
    """Enter the function that gives what `take` takes, and `value` for the sample."""
    function(
        name,
        category=USER_AGENTS,
        description=description,
        parameters=(Parameter("USER_AGENT", "the user agent string"),),
        returns="string",
        examples=(Example(f'{name}("{_SAMPLE}")', value, note=note),),
        row_loop=_LOOP,
        decisions=(*_DECISIONS, *decisions),
    )(_taking(take))


_SYSTEM_ALONE = "A system whose version is not known has its name alone."

_enter("ua_os_name", "The name of the operating system.", "iOS", lambda agent: agent.system.name)
_enter(
    "ua_os_version_major",
    "The name of the operating system and the first number of its version.",
    "iOS 5",
    lambda agent: agent.system.name_version_major,
    _SYSTEM_ALONE,
    note="Adobe's page has ua_os_version_majors in its example.",
)
_enter("ua_os_version", "The version of the operating system.", "5.1.1", lambda agent: agent.system.version)
_enter(
    "ua_os_name_version",
    "The name and version of the operating system.",
    "iOS 5.1.1",
    lambda agent: agent.system.name_version,
    _SYSTEM_ALONE,
)
_enter("ua_agent_version", "The version of the browser or program.", "5.1", lambda agent: agent.browser.version)
_enter(
    "ua_agent_version_major",
    "The name of the browser or program and the first number of its version.",
    "Safari 5",
    lambda agent: agent.browser.name_version_major,
    "A program whose version is not known has its name alone.",
)
_enter("ua_agent_name", "The name of the browser or program.", "Safari", lambda agent: agent.browser.name)
_enter(
    "ua_device_class",
    "What kind of device it is: Desktop, Phone, Tablet, TV, Robot and others.",
    "Phone",
    lambda agent: agent.device_class,
    "Classes are Desktop, Phone, Tablet, Mobile, Watch, Virtual Reality, eReader, Set-top box, TV, Game Console, "
    "Handheld Game Console, Voice, Car, Robot, Robot Mobile and Unknown; no string is taken for Anonymized, Hacker "
    "or any other class that YAUAA has.",
)
