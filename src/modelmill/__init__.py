"""modelmill: from a folder of data to a live API."""

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"
__all__ = ["Client", "__version__"]

if TYPE_CHECKING:
    from modelmill.client import Client


def __getattr__(name: str) -> Any:
    # The SDK is imported when it is asked for: workers and the command line start without it.
    if name == "Client":
        from modelmill.client import Client

        return Client
    raise AttributeError(f"module 'modelmill' has no attribute {name!r}")
