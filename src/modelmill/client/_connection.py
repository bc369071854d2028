"""The connection to a platform: its address and key, calls, uploads, and jobs."""

import os
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Self, cast

import httpx2
import msgspec

from modelmill.client.rows import Job, Json, OnEvent
from modelmill.errors import (
    BY_CODE,
    InvalidInput,
    MillError,
    NotFound,
    Unauthenticated,
    Unavailable,
    from_code,
)

ADDRESS = "address"
"""The file of a home that holds the URL of its platform."""
POLL_SECONDS = 0.2
KEY_SECONDS = 5.0
"""Longest wait until gateways accept a new key."""
ENDED = ("succeeded", "failed", "cancelled", "interrupted")
CODES = {
    400: "invalid_input",
    401: "unauthenticated",
    403: "forbidden",
    404: "not_found",
    409: "conflict",
    413: "too_large",
    429: "overloaded",
    503: "unavailable",
    504: "timeout",
    507: "storage_full",
}


def home_of(home: str | os.PathLike[str] | None = None) -> Path:
    """The given home, `MODELMILL_HOME`, or `~/.modelmill`."""
    return (
        Path(
            home
            or os.environ.get("MODELMILL_HOME")
            or Path.home() / ".modelmill"
        )
        .expanduser()
        .absolute()
    )


class Connection:
    """HTTP calls to one platform, uploads, and waiting for jobs."""

    def __init__(
        self,
        url: str | None = None,
        key: str | None = None,
        home: str | os.PathLike[str] | None = None,
    ) -> None:
        """Defaults: `MODELMILL_URL` and `MODELMILL_KEY`, else address and admin key in the local
        home.

        Raises `Unavailable` where there is no URL, `InvalidInput` for a malformed one.
        """
        folder = home_of(home)
        self.url = _url_of(url, folder)
        self.key = _key_of(key, self.url, folder)
        headers = {"Authorization": f"Bearer {self.key}"} if self.key else {}
        self._http = httpx2.Client(
            base_url=self.url,
            headers=headers,
            timeout=httpx2.Timeout(120, connect=5),
        )

    def __enter__(self) -> Self:
        """Use as a context manager to close the connections."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close the connections."""
        self.close()

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def wait(self, number: int, on_event: OnEvent | None = None) -> Job:
        """Wait until a job has ended; `on_event` gets its events (stage, progress, step, epoch) as
        they come.
        """
        for text in self._follow(number, "events", follow=True):
            for event in _events(text):
                if on_event is not None:
                    on_event(event)
        return cast(Job, self._get(f"/api/v1/jobs/{number}"))

    def _submit(
        self, path: str, body: Json, wait: bool, on_event: OnEvent | None
    ) -> Job:
        return self._ended(self._call("POST", path, json=body), wait, on_event)

    def _ended(self, job: Job, wait: bool, on_event: OnEvent | None) -> Job:
        return (
            raise_unless_done(self.wait(job["job"], on_event)) if wait else job
        )

    def _follow(self, number: int, part: str, *, follow: bool) -> Iterator[str]:
        path = f"/api/v1/jobs/{number}/{part}"
        offset = 0
        while True:
            chunk = self._get(path, params={"offset": offset})
            grew = chunk["offset"] != offset
            offset = chunk["offset"]
            if chunk["text"]:
                yield chunk["text"]
            if not grew and (not follow or chunk["state"] in ENDED):
                return
            if not grew:
                time.sleep(POLL_SECONDS)

    def _send_file(self, path: str, place: Path, parameters: Json) -> Json:
        """Send a file as it is, or a folder packed."""
        if not place.is_file():
            return self._upload(path, place, parameters)
        return cast(Json, self._send_bytes(path, read_file(place), parameters))

    def _send_bytes(self, path: str, data: bytes, parameters: Json) -> Any:
        headers = {"Content-Type": "application/octet-stream"}
        return self._call(
            "POST", path, params=parameters, content=data, headers=headers
        )

    def _upload(self, path: str, data: Path, parameters: Json) -> Json:
        """Send a file or a folder packed, piece by piece."""
        from modelmill.data.pack import pack

        with tempfile.TemporaryFile() as file:
            pack(data, cast(Any, file))
            size = file.tell()
            file.seek(0)
            headers = {
                "Content-Type": "application/zip",
                "Content-Length": str(size),
            }
            chunks = iter(lambda: file.read(1 << 20), b"")
            answer = self._call(
                "POST", path, params=parameters, content=chunks, headers=headers
            )
            return cast(Json, answer)

    def _get(self, path: str, **options: Any) -> Any:
        return self._call("GET", path, **options)

    def _call(self, method: str, path: str, **options: Any) -> Any:
        with self._network_errors():
            response = self._http.request(method, path, **options)
        if response.is_success:
            return (
                msgspec.json.decode(response.content)
                if response.content
                else None
            )
        raise self._failure(response)

    @contextmanager
    def _network_errors(self) -> Iterator[None]:
        """Raises `Unavailable` for failures of the network, `InvalidInput` for text that can't be
        sent.
        """
        try:
            yield
        except UnicodeEncodeError as error:
            half = error.object[error.start : error.end]
            raise InvalidInput(
                f"the text holds {half!a}, half a surrogate, which is no character"
            ) from error
        except httpx2.TimeoutException as error:
            raise Unavailable(f"{self.url} did not answer in time") from error
        except httpx2.TransportError as error:
            message = (
                f"no platform answers at {self.url} ({error}): is it running? (`modelmill "
                "up`)"
            )
            raise Unavailable(message) from error

    def _failure(self, response: "httpx2.Response") -> MillError:
        message, code = _error_in(response)
        failure = from_code(
            code
            if code in BY_CODE
            else CODES.get(response.status_code, "internal"),
            message,
        )
        if isinstance(failure, Unauthenticated) and not self.key:
            return Unauthenticated(
                f"{self.url} needs a key: set MODELMILL_KEY, or MODELMILL_HOME to its home"
            )
        return failure


def _url_of(given: str | None, home: Path) -> str:
    """The URL of the platform, without a slash at its end; raises `InvalidInput`, `Unavailable`."""
    own = _first_line(home / ADDRESS)
    url = (given or os.environ.get("MODELMILL_URL") or own).rstrip("/")
    if not url:
        raise Unavailable(
            f"no platform was started in {home}: run `modelmill up`, or set MODELMILL_URL"
        )
    if "://" not in url:
        raise InvalidInput(f"'{url}' is not a URL: write http://{url}")
    return url


def _key_of(given: str | None, url: str, home: Path) -> str:
    """The key, empty without any; the home's key is for the home's platform alone."""
    key = given or os.environ.get("MODELMILL_KEY") or ""
    if not key and url == _first_line(home / ADDRESS):
        return _first_line(home / "admin.key")
    return key


def _error_in(response: "httpx2.Response") -> tuple[str, str]:
    """The message and code of a response; the code is empty where it has none."""
    try:
        document = msgspec.json.decode(response.content)
        return str(document["error"]), document.get("code", "")
    except (msgspec.DecodeError, KeyError, TypeError):
        return f"HTTP {response.status_code} from {response.url}", ""


def _events(text: str) -> Iterator[Json]:
    """The events of some lines; an unfinished line of a killed job is skipped."""
    for line in text.splitlines():
        with suppress(msgspec.DecodeError):
            yield msgspec.json.decode(line)


def raise_unless_done(job: Job) -> Job:
    if job["state"] != "succeeded":
        why = f": {job['error']}" if job["error"] else ""
        raise MillError(f"job {job['job']} {job['state']}{why}")
    return job


def quoted(name: str) -> str:
    from urllib.parse import quote

    if not name or "/" in name:
        raise InvalidInput(f"'{name}' is not a name")
    return quote(name, safe=":@")


def _first_line(path: Path) -> str:
    try:
        return path.read_text("utf-8").strip()
    except OSError:
        return ""


def read_file(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError as error:
        raise NotFound(f"there is no file '{path}'") from error
    except OSError as error:
        raise InvalidInput(
            f"'{path}' can't be read: {error.strerror}"
        ) from error


def text_of(value: str | os.PathLike[str]) -> str:
    """The content of the file of this name, or the text itself."""
    try:
        return (
            Path(value).read_text("utf-8")
            if Path(value).is_file()
            else str(value)
        )
    except (OSError, ValueError):  # too long, or otherwise not a file name
        return str(value)
