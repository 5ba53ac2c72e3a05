r"""From a mapping's source to the places in an export line that it means.

An export line is `{"event": …, "properties": {…}}`. The Mixpanel tutorial's mapping set names the same record in
another way (`data.event_name`, `data.insert_id`), so there are two views of a record, and a source may use either:

| source                            | means, best first                                                     |
|-----------------------------------|-----------------------------------------------------------------------|
| `event`, `event_name`             | the event's name                                                      |
| `data.event_name`                 | the event's name                                                      |
| `properties.X`                    | the property `X`, letter for letter                                   |
| `data.X`, `X`                     | the property `X`; where a row has none or a null, the property `$X`   |
| `data.$X`, `$X`                   | the property `$X`                                                     |
| `properties`, `data`              | all properties, as JSON text                                          |
| `_flow.projectId`, `_flow.…`      | what the flow knows of its source, see `worker.mapping.context`       |

Every row takes the first alternative that is not null, so an exact name wins over one that lost its `$`. A property
that is itself called `event_name` is reached by `properties.event_name`; `data.event` is the property `event`, since
the wrapper view calls the event's name `event_name`. More dots go into nested objects: `properties.cart.total`.

A name starts with a letter, `$` or `_` and goes on with these and digits. Any other name is wrapped, `${First Name}`. A
dot that belongs to a name is escaped, `street\.name` or `${street\.name}`; in a wrapped name `\` takes the next
character as it is. Wrapping changes nothing else. Reserved words and names of functions, which Adobe wants wrapped, may
stand bare: a source is a path and never an expression. (Data Prep, "Data Prep functions", special characters.)
"""

from __future__ import annotations

import re

from worker.errors import ConfigurationError
from worker.mapping.context import FACTS, FLOW

SourcePath = tuple[str, ...]
"""The keys that lead to a value from the top of an export line: `("event",)`, `("properties", "$insert_id")`.

One that starts with `FLOW` leads to a fact of the flow instead.
"""

_BARE = re.compile(r"(?:[^\W\d]|\$)(?:[\w$]|\\\.)*")
_WRAPPED = re.compile(r"\$\{((?:[^\\{}]|\\.)+)\}")
_NAME_IN_WRAP = re.compile(r"(?:[^\\.]|\\.)+")
_EXPRESSION = re.compile(r"[()+\-*/%&|^=<>!?:~,\"']")


def resolve(source: str) -> tuple[SourcePath, ...]:
    """The places that `source` means, best first: a row takes the first that is neither absent nor null.

    Raises `ConfigurationError` for anything but a path of names.
    """
    return alternatives_of(names_of(source))


def alternatives_of(names: SourcePath) -> tuple[SourcePath, ...]:
    """The same for a path that has been read already.

    Raises `ConfigurationError` for a field of the event's name, and for a fact that there is not.
    """
    match names:
        case ("properties", *_):
            return (names,)
        case ("data",):
            return (("properties",),)
        case ("_flow", *rest):
            if len(rest) == 1 and rest[0] in FACTS:
                return (names,)
            raise ConfigurationError(
                f"source `{'.'.join(names)}`: there is no such fact of a flow.",
                advice=f"There are {', '.join(f'{FLOW}.{name}' for name in FACTS)}.",
            )
        case ("event" | "event_name", *rest) | ("data", "event_name", *rest):
            if rest:
                path = ".".join(names)
                raise ConfigurationError(
                    f"source `{path}`: the event's name is a text and has no fields.",
                    advice=f"A property is reached by its exact name: `properties.{path.removeprefix('data.')}`.",
                )
            return (("event",),)
        case ("data", *rest):
            names = tuple(rest)
    exact = ("properties", *names)
    if names[0].startswith("$"):
        return (exact,)
    return (exact, ("properties", f"${names[0]}", *names[1:]))


def names_of(source: str) -> SourcePath:
    """The names of a path. Raises `ConfigurationError` for anything else."""
    names: list[str] = []
    position = 0
    while True:
        if wrapped := _WRAPPED.match(source, position):
            parts = _split_wrapped(wrapped[1])
            if not parts:
                raise _not_a_path(source)
            names += parts
            position = wrapped.end()
        elif bare := _BARE.match(source, position):
            names.append(bare[0].replace(r"\.", "."))
            position = bare.end()
        else:
            raise _not_a_path(source)
        if position == len(source):
            return tuple(names)
        if source[position] != ".":
            raise _not_a_path(source)
        position += 1


def _split_wrapped(content: str) -> list[str]:
    """The names between the dots that are not escaped; empty when a name is empty."""
    names = _NAME_IN_WRAP.findall(content)
    if len(".".join(names)) != len(content):
        return []
    return [re.sub(r"\\(.)", r"\1", name) for name in names]


def _not_a_path(source: str) -> ConfigurationError:
    if not source.strip():
        return ConfigurationError("the source is empty.", advice="Name a property, for example `data.item_id`.")
    if _EXPRESSION.search(_WRAPPED.sub("", source)):
        return ConfigurationError(
            f"source `{source}` is not a path of names.",
            advice='An expression needs "sourceType": "EXPRESSION"; a name with other characters than letters, digits, '
            "$ and _ is wrapped: ${first-name}.",
        )
    return ConfigurationError(
        f"source `{source}` is not a path of names.",
        advice="Wrap a name with other characters than letters, digits, $ and _: data.${First Name}.",
    )
