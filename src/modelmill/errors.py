"""Every failure of the platform, each with a code.

The codes carry the meaning; `protocols` translates them to the status of its wire. Nothing here
knows HTTP or gRPC. A message says what was wrong and what would be right, in one line.
"""

from collections.abc import Iterable

SHOWN = 80
"""Characters of a name that is not known that a message repeats."""


class MillError(Exception):
    """A failure with a meaning. `code` is stable and part of the API; `str(error)` is one line for
    people.
    """

    code = "internal"

    def __init__(
        self, message: str, *, retry_after: float | None = None
    ) -> None:
        text = " ".join(message.split())
        super().__init__(
            text.encode("utf-8", "replace").decode()
        )  # a lone surrogate can't be sent to anyone
        self.retry_after = retry_after

    @property
    def message(self) -> str:
        """The line for people."""
        return str(self)


class InvalidInput(MillError):
    """The caller sent something that can't be right."""

    code = "invalid_input"


class TooLarge(InvalidInput):
    """The input exceeds a limit."""

    code = "too_large"


class Unauthenticated(MillError):
    """No key, or one that is not known."""

    code = "unauthenticated"


class Forbidden(MillError):
    """A known key that may not do this."""

    code = "forbidden"


class NotFound(MillError):
    """The named thing does not exist."""

    code = "not_found"


class MethodNotAllowed(MillError):
    """The thing exists, but not with this verb."""

    code = "method_not_allowed"


class Conflict(MillError):
    """The request contradicts what is there."""

    code = "conflict"


class Overloaded(MillError):
    """Too much is waiting; come back after `retry_after` seconds."""

    code = "overloaded"


class Unavailable(MillError):
    """Not now: loading, draining, or no worker."""

    code = "unavailable"


class Expired(MillError):
    """The answer did not come in the time the caller allowed."""

    code = "timeout"


class StorageFull(MillError):
    """The disk has no room left."""

    code = "storage_full"


class BundleCorrupt(MillError):
    """A model on disk is incomplete or was changed."""

    code = "bundle_corrupt"


class ModelFailed(MillError):
    """The model itself failed on an input that looked right."""

    code = "model_failed"


class NotInstalled(MillError):
    """A part of the platform needs an extra that is not installed."""

    code = "not_installed"


class Cancelled(MillError):
    """The caller has gone, or asked to stop."""

    code = "cancelled"


BY_CODE: dict[str, type[MillError]] = {
    kind.code: kind
    for kind in (
        MillError,
        InvalidInput,
        TooLarge,
        Unauthenticated,
        Forbidden,
        NotFound,
        MethodNotAllowed,
        Conflict,
        Overloaded,
        Unavailable,
        Expired,
        StorageFull,
        BundleCorrupt,
        ModelFailed,
        NotInstalled,
        Cancelled,
    )
}


def from_code(
    code: str, message: str, retry_after: float | None = None
) -> MillError:
    """The failure that another process described by its code and message."""
    return BY_CODE.get(code, MillError)(message, retry_after=retry_after)


def unknown(what: str, name: str, names: Iterable[str]) -> NotFound:
    """A `NotFound` that says which names exist and suggests the near one."""
    return NotFound(f"unknown {what} '{name[:SHOWN]}'{_near(name, names)}")


def unknown_setting(
    name: str, names: Iterable[str], what: str = "setting"
) -> InvalidInput:
    """An `InvalidInput` for an option that nothing reads."""
    return InvalidInput(f"unknown {what} '{name[:SHOWN]}'{_near(name, names)}")


def _near(name: str, names: Iterable[str]) -> str:
    """What else there is, and which of it may be meant."""
    # Only who mistypes a name waits for this module, not each start of the command line.
    from difflib import get_close_matches

    known = sorted(names)
    if not known:
        return "; there are none yet"
    close = get_close_matches(name[:SHOWN], known, n=1, cutoff=0.5)
    guess = f" did you mean '{close[0]}'?" if close else ""
    rest = ", ..." if len(known) > 60 else ""
    return f";{guess} there are: {', '.join(known[:60])}{rest}"


def from_os(error: OSError, doing: str) -> MillError:
    """The failure of a file operation in words: a full disk is `StorageFull`, the rest
    `MillError`.
    """
    import errno

    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return StorageFull(
            f"the disk is full: {doing} needs more room at {error.filename or 'the home'}"
        )
    return MillError(
        f"{doing} failed: {error.strerror or error} ({error.filename or 'no file'})"
    )


def reraise_exit(error: BaseException) -> None:
    """Raise again what ends a thread or a process; everything else is a failure of the code.

    A panic of a library written in Rust is a `BaseException`, as is the end of an interpreter: a
    thread that answers calls survives the first.
    """
    if isinstance(error, KeyboardInterrupt | SystemExit | GeneratorExit):
        raise error
