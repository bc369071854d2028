"""Trace and log settings of v2, in the names of Triton's JSON."""

import logging
from collections.abc import Mapping
from typing import Any

from modelmill.errors import InvalidInput, unknown_setting
from modelmill.serve.gateway import Gateway
from modelmill.types import Json, KeyInfo

TRACE: Json = {
    "trace_file": "",
    "trace_level": ["OFF"],
    "trace_rate": "1000",
    "trace_count": "-1",
    "log_frequency": "0",
    "trace_mode": "opentelemetry",
}
LEVELS = ("OFF", "TIMESTAMPS", "TENSORS")
FIXED = ("trace_file", "trace_mode", "log_file", "log_format")
LOG = logging.getLogger("modelmill")


def trace_settings(
    gateway: Gateway, caller: KeyInfo, name: str | None = None
) -> Json:
    """All trace settings: the server's, or a model's with the server's where it has none; raises
    `NotFound`.
    """
    kept = gateway.trace_settings
    own = kept.get(_owner(gateway, caller, name), {}) if name else {}
    return {**TRACE, **kept.get("", {}), **own}


def update_trace_settings(
    gateway: Gateway,
    caller: KeyInfo,
    changes: Mapping[str, Any],
    name: str | None = None,
) -> Json:
    """Change some (None: back to what it was) and return all; needs an admin key; raises
    `InvalidInput`.
    """
    gateway.require_admin(caller)
    checked = {key: _trace_value(key, value) for key, value in changes.items()}
    place = _owner(gateway, caller, name) if name else ""
    own = {**gateway.trace_settings.get(place, {}), **checked}
    gateway.trace_settings[place] = {
        key: value for key, value in own.items() if value is not None
    }
    return trace_settings(gateway, caller, name)


def _owner(gateway: Gateway, caller: KeyInfo, name: str) -> str:
    return f"{caller.project}/{gateway.route(caller, name).deployment}"


def _trace_value(key: str, value: Any) -> Any:
    """A setting as it is kept; None to go back to what it was. Raises `InvalidInput`."""
    if key not in TRACE:
        raise unknown_setting(key, TRACE)
    if key in FIXED:
        raise InvalidInput(
            f"the setting {key} can't be changed through this protocol"
        )
    if value is None or value == []:
        return None
    return _levels(value) if key == "trace_level" else _whole(key, value)


def _levels(value: Any) -> list[str]:
    """What is traced: a level or several."""
    levels = [value] if isinstance(value, str) else value
    if not isinstance(levels, list) or not all(
        level in LEVELS for level in levels
    ):
        raise InvalidInput(
            f"the setting trace_level is a list of {', '.join(LEVELS)}, not {value!r:.80}"
        )
    return sorted(set(levels), key=LEVELS.index)


def _whole(key: str, value: Any) -> str:
    """A whole number as a text, which may stand in a list."""
    text = _only(value)
    least = -1 if key == "trace_count" else 0
    if not _is_whole(text, least):
        raise InvalidInput(
            f"the setting {key} is a whole number from {least} as a text, not {value!r:.80}"
        )
    return str(int(text))


def _only(value: Any) -> Any:
    """The only value of a list, or the value itself; a number as its text."""
    only = value[0] if isinstance(value, list) and len(value) == 1 else value
    return str(only) if type(only) is int else only


def _is_whole(text: Any, least: int) -> bool:
    if not isinstance(text, str) or len(text) > 18:
        return False
    digits = text.removeprefix("-")
    return digits.isascii() and digits.isdecimal() and int(text) >= least


def log_settings(gateway: Gateway) -> Json:
    """All log settings; those that no one has changed follow the level of the logger
    `modelmill`.
    """
    level = LOG.getEffectiveLevel()
    return {
        "log_file": "",
        "log_info": level <= logging.INFO,
        "log_warning": level <= logging.WARNING,
        "log_error": level <= logging.ERROR,
        "log_verbose_level": int(level <= logging.DEBUG),
        "log_format": "default",
        **gateway.log_settings,
    }


def update_log_settings(
    gateway: Gateway, caller: KeyInfo, changes: Mapping[str, Any]
) -> Json:
    """Change some and return all; the logger `modelmill` follows. Needs an admin key; raises
    `InvalidInput`.
    """
    gateway.require_admin(caller)
    now = log_settings(gateway)
    for key, value in changes.items():
        _check_log_setting(now, key, value)
    new = {**now, **changes}
    gateway.log_settings = {key: new[key] for key in new if key not in FIXED}
    LOG.setLevel(_level(new))
    return log_settings(gateway)


def _check_log_setting(now: Json, key: str, value: Any) -> None:
    """Raises `InvalidInput` for a value that a setting can't have."""
    if key not in now:
        raise unknown_setting(key, now)
    if key in FIXED and value != now[key]:
        raise InvalidInput(
            f"the setting {key} can't be changed through this protocol"
        )
    if key == "log_verbose_level" and not _is_level(value):
        raise InvalidInput(
            f"the setting log_verbose_level is a whole number from 0, not {value!r:.80}"
        )
    if isinstance(now[key], bool) and not isinstance(value, bool):
        raise InvalidInput(
            f"the setting {key} is true or false, not {value!r:.80}"
        )


def _is_level(value: Any) -> bool:
    return type(value) is int and 0 <= value < 1 << 31


def _level(settings: Mapping[str, Any]) -> int:
    """The lowest that is wanted: the logger has one threshold, not a switch for each."""
    if settings["log_verbose_level"]:
        return logging.DEBUG
    wanted = (
        ("log_info", logging.INFO),
        ("log_warning", logging.WARNING),
        ("log_error", logging.ERROR),
    )
    return next(
        (level for key, level in wanted if settings[key]), logging.CRITICAL
    )
