"""Access keys."""

from typing import Annotated

from cyclopts import Parameter

from modelmill.cli._app import connect, key, screen, show


@key.command(name="add")
def key_add(
    name: Annotated[str, Parameter(help="who or what will use it")],
    /,
    *,
    role: Annotated[
        str, Parameter(help="user: predict and look; admin: everything")
    ] = "user",
    rate: Annotated[
        float, Parameter(help="requests a second; 0: no limit")
    ] = 0,
    burst: Annotated[
        int,
        Parameter(help="requests that may come at once; 0: a second's worth"),
    ] = 0,
) -> None:
    """Make an access key and print it, this once."""
    row = connect().add_key(name, role, rate, burst)
    show(row, lambda: print(row["key"]))


@key.command(name="list")
def key_list() -> None:
    """All access keys, without the keys themselves."""
    rows = connect().keys()
    show(
        rows,
        lambda: screen().table(
            rows, ("name", "role", "rate", "burst", "created")
        ),
    )


@key.command(name="remove")
def key_remove(name: str, /) -> None:
    """Revoke an access key."""
    connect().remove_key(name)
    show({"removed": name}, lambda: print(f"removed {name}"))
