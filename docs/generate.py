"""Writes the reference pages from the code: `python docs/generate.py`; with `--check` only says
which are old.
"""

import ast
import re
import sys
from collections.abc import Iterable, Iterator
from inspect import cleandoc, getdoc
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import msgspec
from pydantic import BaseModel

from modelmill import client, errors, plugins, settings
from modelmill.cli import app
from modelmill.control.api import make_api
from modelmill.data.formats import fitting
from modelmill.protocols.app import http_protocols
from modelmill.protocols.base import STATUS
from modelmill.protocols.v2.grpc.call import STATUS as GRPC_STATUS
from modelmill.tasks.base import describe, plan, recipe_named, task_named
from modelmill.tasks.kinds import input_kinds, output_kinds
from modelmill.tasks.parameters import describe_parameters

DOCS = Path(__file__).parent
NOTE = "<!-- Written by docs/generate.py from the code: change the code, then run `make docs`. -->"
Json = dict[str, Any]


def page(title: str, *blocks: str) -> str:
    """A whole page: title, then blocks between empty lines."""
    return (
        "\n\n".join(
            [
                NOTE,
                f"# {title}",
                *(block.strip() for block in blocks if block.strip()),
            ]
        )
        + "\n"
    )


def table(heads: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """A Markdown table; empty when there are no rows."""
    heads, rows = (
        list(heads),
        [
            [cell.replace("|", "\\|").replace("\n", " ") for cell in row]
            for row in rows
        ],
    )
    lines = [heads, ["---"] * len(heads), *rows]
    return (
        "\n".join(f"| {' | '.join(line)} |" for line in lines) if rows else ""
    )


def code(text: Any) -> str:
    """Text as inline code; nothing for nothing."""
    return f"`{text}`" if str(text) else ""


# ---- the command line


def cli_page() -> str:
    """Every command with its arguments and options."""
    text = app.generate_docs(output_format="markdown").strip()
    body = text.partition("\n")[2]
    environment = (
        "## Environment\n\n"
        "`MODELMILL_URL` and `MODELMILL_KEY` name a platform and a key; `MODELMILL_HOME` names "
        "the home whose "
        "platform is meant when they are not set. A command exits with 0, or with 1 after one "
        "line on stderr."
    )
    return page(
        "The command line",
        body.replace("## Table of Contents", "## Contents"),
        environment,
    )


# ---- the REST API

API_INTRO = """
Everything under `/api/v1` needs an admin key: `Authorization: Bearer KEY`. A running platform describes these
routes at `/docs` (for people) and `/openapi.json` (for programs). A refusal is JSON,
`{"error": "one line", "code": "not_found"}`; the codes and their HTTP status are listed in [errors.md](errors.md).
A request that does not fit its shape is answered 400 with the code `invalid_input`. Times are ISO 8601.
"""

PREDICTION_INTRO = """
Served by the gateway itself, from memory. "Key" says whether a key is needed. `HEAD` works wherever `GET` does.
A refusal is `{"error": "one line"}`, but below `/v1` it is OpenAI's, `{"error": {"message", "type", "param", "code"}}`,
which KServe's clients read as well. How to call them is shown in [the tutorial](tutorial.md#7-call-it).
"""


def api_page() -> str:
    """Prediction routes, admin routes and the shapes they speak."""
    nothing = cast(
        Any,
        SimpleNamespace(
            datasets=None,
            registry=None,
            jobs=None,
            indexes=None,
            deployments=None,
        ),
    )
    document = make_api(nothing, lambda error: STATUS[error.code]).openapi()
    groups: dict[str, list[str]] = {}
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            groups.setdefault(operation["tags"][0], []).append(
                _operation(document, path, method, operation)
            )
    routes = [
        block
        for tag, blocks in groups.items()
        for block in (f"## Admin: {tag}", *blocks)
    ]
    shapes = [
        _shape(name, schema)
        for name, schema in sorted(_shapes(document).items())
    ]
    return page(
        "The REST API",
        API_INTRO,
        *_prediction_routes(),
        *_kinds(),
        *routes,
        "## Shapes of the admin API",
        *shapes,
    )


KINDS_INTRO = """
What a model takes (`input` and `also` of `GET /models/{name}`) and what it answers (`output`). In JSON an input has the
form of the protocol, and a file is base64; a body of another media type is the input itself.
"""


def _kinds() -> Iterator[str]:
    """The kinds of input and output, with an example of each."""
    yield "## Kinds of input and output"
    yield KINDS_INTRO
    inputs = [
        (
            code(kind.name),
            kind.in_json,
            _media(kind.media),
            _example(kind.example()),
        )
        for kind in input_kinds()
    ]
    yield table(("input", "in JSON", "media types", "example"), inputs)
    outputs = [
        (
            code(kind.name),
            kind.meaning,
            _media(kind.media),
            _example(kind.example()),
        )
        for kind in output_kinds()
    ]
    yield table(("output", "what it is", "media types", "example"), outputs)


def _media(types: Iterable[str]) -> str:
    return ", ".join(map(code, types))


def _example(value: Any) -> str:
    """An example as JSON, base64 left out; nothing for a file."""
    text = (
        "" if isinstance(value, bytes) else msgspec.json.encode(value).decode()
    )
    return code(re.sub(r'"[\w+/]{60,}=*"', '"..."', text))


def _prediction_routes() -> Iterator[str]:
    yield "## Prediction, health and metrics"
    yield PREDICTION_INTRO
    for name, protocol in http_protocols().items():
        yield f"### `{name}`"
        yield _first_paragraph(protocol)
        rows = [
            (
                route.method,
                code(route.pattern),
                "no" if route.public else "yes",
                _line(route.handler),
            )
            for route in protocol.ROUTES
        ]
        yield table(("method", "path", "key", "what it does"), rows)


def _operation(document: Json, path: str, method: str, operation: Json) -> str:
    blocks = [
        f"### {method.upper()} `{path}`",
        operation.get("description", ""),
    ]
    rows = [
        (
            code(p["name"]),
            p["in"],
            _type(_schema(p)),
            *_need(p["required"], _schema(p)),
            p.get("description", ""),
        )
        for p in operation.get("parameters", [])
    ]
    blocks.append(
        table(
            ("parameter", "in", "type", "required", "default", "meaning"), rows
        )
    )
    for parameter in operation.get("parameters", []):
        if "properties" in _schema(parameter):
            blocks += [
                f"`{parameter['name']}` holds:",
                _fields(_schema(parameter)),
            ]
    if "requestBody" in operation:
        blocks += _body(document, operation["requestBody"])
    for status, response in operation["responses"].items():
        if status < "400":
            blocks.append(f"Answers {status}: {_answer(response)}.")
    return "\n\n".join(block for block in blocks if block)


def _schema(parameter: Json) -> Json:
    """A parameter's own, or that of what it holds as JSON."""
    schema: Json = parameter.get("schema") or _content(parameter)
    return schema


def _body(document: Json, body: Json) -> list[str]:
    schema = _content(body)
    name = schema.get("$ref", "").rpartition("/")[2]
    if "properties" in schema:
        return [f"Body: {schema['description']}", _fields(schema)]
    if not name:
        what = body.get("description", "a file")
        return [f"Body: {what}, {' or '.join(map(code, body['content']))}"]
    return [
        f"Body: [`{name}`](#{name.lower()})",
        _fields(document["components"]["schemas"][name]),
    ]


def _answer(response: Json) -> str:
    if "content" not in response:
        return "no body"
    schema = _content(response)
    many, name = (
        "items" in schema,
        schema.get("items", schema).get("$ref", "").rpartition("/")[2],
    )
    return (
        f"{'a list of ' if many else ''}[`{name}`](#{name.lower()})"
        if name
        else "the file"
    )


def _content(part: Json) -> Json:
    return cast(Json, next(iter(part["content"].values()))["schema"])


def _shapes(document: Json) -> Json:
    """All but FastAPI's own errors, which this API translates."""
    return {
        name: schema
        for name, schema in document["components"]["schemas"].items()
        if "Validation" not in name
    }


def _shape(name: str, schema: Json) -> str:
    return f"### {name}\n\n{schema.get('description', '')}\n\n{_fields(schema)}"


def _fields(schema: Json) -> str:
    required = schema.get("required", [])
    rows = [
        (
            code(name),
            _type(field),
            *_need(name in required, field),
            field.get("description", ""),
        )
        for name, field in schema["properties"].items()
    ]
    return table(("field", "type", "required", "default", "meaning"), rows)


def _need(required: bool, schema: Json) -> tuple[str, str]:
    default = schema.get("default")
    known = not required and default is not None
    return "yes" if required else "no", code(
        msgspec.json.encode(default).decode()
    ) if known else ""


def _type(schema: Json) -> str:
    if "anyOf" in schema:
        return " or ".join(map(_type, schema["anyOf"]))
    if schema.get("type") == "array":
        return f"list of {_type(schema['items'])}"
    values = schema.get("additionalProperties")
    if isinstance(values, dict):
        return f"object of {_type(values)}"
    limits = [
        f"{word} {schema[key]:g}"
        for key, word in (("minimum", "from"), ("maximum", "to"))
        if key in schema
    ]
    return " ".join(
        [schema.get("format") or schema.get("type", "any"), *limits]
    )


# ---- tasks, formats and recipes

RECIPES_INTRO = """
A setting is given as `--set NAME=VALUE` on the command line, or in `settings` in Python and REST; all settings of
a recipe share one flat space of names. A name that nothing reads and a value out of range are refused before the
job is queued. `modelmill recipes TASK` prints the same tables.

A parameter belongs to a call of a model: `parameters` in the body of a request, `--set NAME=VALUE` of `modelmill
predict`. `modelmill model NAME` lists those of a model.
"""


def recipes_page() -> str:
    """Every task with its formats and recipes."""
    return page(
        "Tasks and recipes",
        RECIPES_INTRO,
        *(b for task in plugins.names("tasks") for b in _task(task)),
    )


def _task(name: str) -> Iterator[str]:
    task = task_named(name)
    yield f"## {name}"
    yield (
        f"{task.SUMMARY[0].upper()}{task.SUMMARY[1:]}. Input: {task.takes}. Default recipe: "
        f"`{task.RECIPE}`."
    )
    yield f"### Data formats of {name}"
    yield table(("format", "what it reads", "options"), _formats(task))
    parameters = list(_parameters_of(task.PARAMETERS))
    if parameters:
        yield f"### Parameters of {name}"
        yield table(("parameter", "default", "allowed", "meaning"), parameters)
    for recipe in plugins.names(plugins.recipes_of(name)):
        module = recipe_named(name, recipe)
        yield f"### {name} / {recipe}"
        yield f"{module.SUMMARY[0].upper()}{module.SUMMARY[1:]}."
        rows = [
            row
            for part in plan(module, {}).sections().values()
            for row in _settings_of(part)
        ]
        yield table(("setting", "default", "allowed", "meaning"), rows)


def _formats(task: Any) -> Iterator[tuple[str, str, str]]:
    for name, module in fitting(task).items():
        options = "; ".join(
            f"`{option}`: {meaning}"
            for option, meaning in module.OPTIONS.items()
        )
        yield code(name), module.SUMMARY, options


def _parameters_of(kind: Any) -> Iterator[tuple[str, str, str, str]]:
    for row in describe_parameters(kind):
        default = msgspec.json.encode(row["default"]).decode().strip('"')
        yield (
            code(row["name"]),
            code(default) if default != "null" else "",
            row["allowed"],
            row["help"],
        )


def _settings_of(part: Any) -> Iterator[tuple[str, str, str, str]]:
    types = {
        field.name: field.type for field in msgspec.structs.fields(type(part))
    }
    for row in describe(part):
        default = msgspec.json.encode(row["default"]).decode().strip('"')
        yield (
            code(row["name"]),
            code(default),
            _allowed(types[row["name"]]),
            row["help"],
        )


def _allowed(kind: Any) -> str:
    info = msgspec.inspect.type_info(kind)
    while isinstance(info, msgspec.inspect.Metadata):
        info = info.type
    if isinstance(info, msgspec.inspect.LiteralType):
        return ", ".join(code(value) for value in info.values)
    if isinstance(info, msgspec.inspect.VarTupleType):
        return "numbers, with commas between them"
    words = {"ge": "from", "gt": "above", "le": "to", "lt": "below"}
    limits = [
        f"{word} {getattr(info, key)}"
        for key, word in words.items()
        if getattr(info, key, None) is not None
    ]
    name = {
        "IntType": "whole number",
        "FloatType": "number",
        "BoolType": "true or false",
    }
    return " ".join([name.get(type(info).__name__, "text"), *limits])


# ---- the Python SDK

SDK_INTRO = """
```python
from modelmill import Client

with Client() as mill:
    print(mill.models())
```

The SDK speaks the [REST API](api.md). Rows are plain dictionaries; their fields are listed at the end.
"""


def sdk_page() -> str:
    """`Client`: signatures and docstrings, in the order of the source."""
    sources = sorted(Path(client.__file__).parent.glob("*.py"))
    nodes = [
        node
        for path in sources
        for node in ast.parse(path.read_text("utf-8")).body
    ]
    classes = {
        node.name: node for node in nodes if isinstance(node, ast.ClassDef)
    }
    parts = [
        classes[name].body
        for name in ("Connection", "Client", "Texts", "Indexes")
    ]
    methods = [
        node
        for body in parts
        for node in body
        if isinstance(node, ast.FunctionDef)
    ]
    shown = [
        _method(node)
        for node in methods
        if node.name == "__init__" or not node.name.startswith("_")
    ]
    rows = [
        _row_type(node)
        for node in classes.values()
        if any(_name(base) == "TypedDict" for base in node.bases)
    ]
    return page(
        "The Python SDK",
        SDK_INTRO,
        "## Client",
        getdoc(client.Client) or "",
        *shown,
        "## Rows",
        *rows,
    )


def _method(node: ast.FunctionDef) -> str:
    made = node.name == "__init__"
    name = "Client" if made else node.name
    returns = (
        ""
        if made or node.returns is None
        else f" -> {ast.unparse(node.returns)}"
    )
    arguments = list(_arguments(node.args))[1:]
    text = f"{name}({', '.join(arguments)}){returns}"
    if len(text) > 100:
        text = f"{name}(\n    " + ",\n    ".join(arguments) + f",\n){returns}"
    return f"### {name if made else f'Client.{name}'}\n\n```python\n{text}\n```\n\n{ast.get_docstring(node) or ''}"


def _arguments(given: ast.arguments) -> Iterator[str]:
    """One argument at a time, as the source has them."""
    defaults: list[ast.expr | None] = [None] * (
        len(given.args) - len(given.defaults)
    )
    yield from map(_argument, given.args, [*defaults, *given.defaults])
    if given.vararg or given.kwonlyargs:
        yield f"*{_argument(given.vararg, None) if given.vararg else ''}"
    yield from map(_argument, given.kwonlyargs, given.kw_defaults)


def _argument(given: ast.arg, default: ast.expr | None) -> str:
    return ast.unparse(given) + (
        f" = {ast.unparse(default)}" if default is not None else ""
    )


def _row_type(node: ast.ClassDef) -> str:
    fields = [field for field in node.body if isinstance(field, ast.AnnAssign)]
    rows = [
        (code(_name(field.target)), code(ast.unparse(field.annotation)))
        for field in fields
    ]
    return f"### {node.name}\n\n{ast.get_docstring(node) or ''}\n\n{table(('field', 'type'), rows)}"


def _name(node: ast.expr) -> str:
    return node.id if isinstance(node, ast.Name) else ""


# ---- errors and settings

ERRORS_INTRO = """
Every failure has a code, which is stable, and one line of text for people, which is not. The admin API sends both,
`{"error": "...", "code": "..."}`; the prediction routes send it in the shape of their protocol: `{"error": "..."}`, or
below `/v1` OpenAI's object. In Python every method raises `modelmill.errors.MillError` or the class named here; a
refusal that is worth repeating carries `Retry-After`, in seconds; over gRPC `grpc-retry-pushback-ms`, in milliseconds.
"""


def errors_page() -> str:
    """Codes with their meaning and their status over HTTP and gRPC."""
    rows = [
        (
            code(name),
            str(STATUS[name]),
            str(GRPC_STATUS[name]),
            code(kind.__name__),
            _line(kind),
        )
        for name, kind in errors.BY_CODE.items()
    ]
    return page(
        "Errors",
        ERRORS_INTRO,
        table(("code", "HTTP", "gRPC", "Python", "meaning"), rows),
    )


SETTINGS_INTRO = """
Settings are read once, when the platform starts: from the arguments of `modelmill up`, else from variables, else
from `modelmill.toml` in the home. A wrong value stops the start with one line that names the setting. A file that holds
the password of the database should be readable by its owner alone (`chmod 600`): else the start warns.

```toml
# modelmill.toml
port = 9000

[limits]
queue = 500
```
"""
IN_WORDS = {
    "home": "`~/.modelmill`",
    "threads": "the number of cores that the platform may use",
    "tracing.endpoint": "what `OTEL_EXPORTER_OTLP_ENDPOINT` says",
}
"""Defaults that depend on the machine."""


def settings_page() -> str:
    """Every setting with its variable."""
    rows = list(_settings(settings.Settings, ""))
    return page(
        "Settings",
        SETTINGS_INTRO,
        table(("setting", "default", "variable", "meaning"), rows),
    )


def _settings(model: Any, prefix: str) -> Iterator[tuple[str, str, str, str]]:
    for name, field in model.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(
            field.annotation, BaseModel
        ):
            yield from _settings(field.annotation, f"{name}.")
            continue
        path = f"{prefix}{name}"
        variable = f"MODELMILL_{path.upper().replace('.', '__')}"
        yield (
            code(path),
            IN_WORDS.get(path) or _default(path, field.default),
            code(variable),
            field.description,
        )


def _default(name: str, value: Any) -> str:
    if value == ():
        return "empty"
    if not name.endswith("bytes") or value == 0:
        return code(value) or "empty"
    step, unit = next(
        (step, unit)
        for step, unit in ((30, "GiB"), (20, "MiB"), (10, "KiB"))
        if value % (1 << step) == 0
    )
    return f"`{value}` ({value >> step} {unit})"


def _line(documented: Any) -> str:
    return " ".join((getdoc(documented) or "").split())


def _first_paragraph(module: Any) -> str:
    return cleandoc(module.__doc__ or "").partition("\n\n")[0]


PAGES = {
    "cli.md": cli_page,
    "api.md": api_page,
    "recipes.md": recipes_page,
    "sdk.md": sdk_page,
    "errors.md": errors_page,
    "settings.md": settings_page,
}


def main(arguments: list[str]) -> int:
    """Write the pages that differ; with `--check`, name them and return 1 instead."""
    pages = {DOCS / name: make() for name, make in PAGES.items()}
    old = [
        path
        for path, text in pages.items()
        if not path.exists() or path.read_text("utf-8") != text
    ]
    for path in old:
        if "--check" in arguments:
            print(
                f"docs/{path.name} is out of date: run `make docs`",
                file=sys.stderr,
            )
        else:
            path.write_text(pages[path], "utf-8")
            print(f"wrote docs/{path.name}")
    return int(bool(old) and "--check" in arguments)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
