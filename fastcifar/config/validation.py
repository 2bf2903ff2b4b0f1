"""What the settings share: a field with its range, its flag and its condition, and the check of types and ranges.

`config` and `schedules` are made of such parts. Every value is checked whatever its origin, so that a config read from
a file is as safe as one from the command line.
"""

import math
from collections.abc import Callable
from dataclasses import MISSING, dataclass, field, fields
from typing import Any, ClassVar, Literal, NamedTuple, get_args, get_origin, get_type_hints


class Range(NamedTuple):
    """Allowed values: the text that an error shows, and the test."""

    text: str
    holds: Callable[[Any], bool]


class Need(NamedTuple):
    """Where a setting does something: the text that an error shows, and the test, of the Config and the Command."""

    text: str
    holds: Callable[[Any, Any], bool]


LARGEST_COUNT = 1_000_000_000
"""Of whatever a setting counts: more is a mistake, or a file that asks for all memory."""
ABOVE_0 = Range("above 0", lambda v: v > 0)
AT_LEAST_0 = Range("at least 0", lambda v: v >= 0)
FRACTION = Range("in [0, 1)", lambda v: 0 <= v < 1)
UP_TO_1 = Range("in (0, 1]", lambda v: 0 < v <= 1)


def setting(
    default: Any = MISSING,
    within: Range | None = None,
    flag: str | None = None,
    needs: Need | None = None,
    from_file: bool = True,
    in_python: bool = True,
) -> Any:
    """A dataclass field with a range, and with the name of its flag where that is not the name of the field.

    needs: where the setting does something; it is refused elsewhere.
    from_file: False for what runs a compiler or names a folder. In a file that is a note, which nothing reads back,
    because the file may be a stranger's: flags, environment and defaults alone set it.
    in_python: False for what `fastcifar.train` does not do.
    """
    metadata = {"within": within, "flag": flag, "needs": needs, "from_file": from_file, "in_python": in_python}
    return field(default=default, metadata=metadata)


def flag_of(name: str, metadata: Any) -> str:
    """The flag of a field, with underscores: `lr_peak` for --lr-peak."""
    return metadata.get("flag") or name


@dataclass(frozen=True, kw_only=True)
class Part:
    """Base of all settings. Raises ValueError, naming the flag, for a value of a wrong type or out of its range."""

    decides_weights: ClassVar[bool] = True
    """Whether another value may train other weights, so that a resumed run must keep it."""

    def __post_init__(self) -> None:
        hints = get_type_hints(type(self))
        for f in fields(self):
            flag, value = flag_of(f.name, f.metadata), getattr(self, f.name)
            _check_type(flag, value, hints[f.name])
            within = f.metadata.get("within")
            if within and value is not None and not within.holds(value):
                raise ValueError(f"{flag} is {value}; it must be {within.text}")


def _check_type(flag: str, value: Any, hint: Any) -> None:
    """ValueError unless `value` is of the annotated type: a Literal, a plain type or None, or a tuple of numbers."""
    options = get_args(hint) if type(None) in get_args(hint) else (hint,)
    if value is None and type(None) in options:
        return
    choices = [choice for option in options if get_origin(option) is Literal for choice in get_args(option)]
    if choices:
        if value not in choices:
            raise ValueError(f"{flag} is {value!r}; known: {', '.join(map(str, choices))}")
        return
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"{flag} is {value}; it must be finite")
    if isinstance(value, int) and flag != "seed" and value > LARGEST_COUNT:
        raise ValueError(f"{flag} is {value}; it must be at most {LARGEST_COUNT:,}")
    if any(get_origin(option) is tuple for option in options):
        if not isinstance(value, tuple) or not all(_is_number(v) and math.isfinite(v) for v in value):
            raise ValueError(f"{flag} is {value!r}; it must be a list of numbers")
        return
    plain = [t for t in (bool, int, float, str) if t in options]
    allowed = (*plain, int) if float in plain else tuple(plain)
    if plain and (not isinstance(value, allowed) or (isinstance(value, bool) and bool not in plain)):
        raise ValueError(f"{flag} is {value!r}; it must be {' or '.join(t.__name__ for t in plain)}")


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)
