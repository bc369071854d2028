"""Bodies of multipart/form-data (RFC 7578), which hold files beside fields."""

import logging

from python_multipart import MultipartParser
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import parse_options_header

from modelmill.errors import InvalidInput

# It warns of every damaged form; we tell who sent it.
logging.getLogger("python_multipart").setLevel(logging.CRITICAL)
PARTS = 64
"""Most fields and files of a form."""
Form = dict[str, list[bytes]]


def read_form(body: bytes, content_type: str) -> Form:
    """Fields and files by name, each with its values in their order; raises `InvalidInput`.

    What a file is called and which type it claims say nothing that its content does not.
    """
    boundary = _boundary_of(content_type)
    parts = _Parts()
    try:
        parser = MultipartParser(boundary, parts.callbacks())  # type: ignore[arg-type]
        parser.write(body)
        parser.finalize()
    except FormParserError as error:
        raise InvalidInput(
            f"the form is damaged: {str(error)[:120]}"
        ) from error
    if not parts.ended:
        raise InvalidInput("the form ends before its last boundary")
    return parts.form


def _boundary_of(content_type: str) -> bytes:
    """What stands between the parts; raises `InvalidInput` where the body is no form."""
    kind, options = parse_options_header(
        content_type.encode("latin-1", "replace")
    )
    if kind != b"multipart/form-data" or not options.get(b"boundary"):
        raise InvalidInput(
            "the body wants to be multipart/form-data with its boundary (curl -F NAME=@FILE)"
        )
    return options[b"boundary"]


def field(form: Form, name: str) -> str:
    """The text of a field, or nothing; raises `InvalidInput` for several, or what is no text."""
    values = form.get(name, [b""])
    if len(values) > 1:
        raise InvalidInput(f"the form has '{name}' {len(values)} times")
    try:
        return values[0].decode("utf-8")
    except UnicodeDecodeError as error:
        raise InvalidInput(
            f"'{name}' of the form is not valid UTF-8"
        ) from error


class _Parts:
    """What the parser finds, put together."""

    def __init__(self) -> None:
        self.form: Form = {}
        self.ended = False
        self._header = b""
        self._value = b""
        self._name = ""
        self._data = list[bytes]()

    def callbacks(self) -> dict[str, object]:
        """By the names that the parser knows them by."""
        names = (
            "part_begin",
            "part_data",
            "part_end",
            "header_field",
            "header_value",
            "header_end",
            "end",
        )
        return {f"on_{name}": getattr(self, name) for name in names}

    def part_begin(self) -> None:
        self._name, self._data = "", []

    def header_field(self, data: bytes, start: int, end: int) -> None:
        self._header += data[start:end]

    def header_value(self, data: bytes, start: int, end: int) -> None:
        self._value += data[start:end]

    def header_end(self) -> None:
        if self._header.lower() == b"content-disposition":
            self._name = (
                parse_options_header(self._value)[1]
                .get(b"name", b"")
                .decode("utf-8", "replace")
            )
        self._header = self._value = b""

    def part_data(self, data: bytes, start: int, end: int) -> None:
        self._data.append(data[start:end])

    def part_end(self) -> None:
        if not self._name:
            raise InvalidInput("a part of the form has no name")
        if sum(map(len, self.form.values())) >= PARTS:
            raise InvalidInput(f"the form has more than {PARTS} parts")
        self.form.setdefault(self._name, []).append(b"".join(self._data))

    def end(self) -> None:
        self.ended = True


def file_of(form: Form, name: str) -> bytes:
    """The one file of a name, which clients also call `name[]`; raises `InvalidInput`."""
    files = [*form.get(name, []), *form.get(f"{name}[]", [])]
    if len(files) != 1 or not files[0]:
        raise InvalidInput(
            f"the form wants one file '{name}', not {len(files)}"
            if files
            else f"the form has no '{name}'"
        )
    return files[0]
