"""The command line: a thin layer on the SDK. Heavy modules are imported by the command that needs
them.
"""

# The order of imports is that of the commands in the documentation.
# isort: off
from modelmill.cli import platform, data, jobs, models, serving, index, keys
from modelmill.cli._app import app, main
# isort: on

__all__ = [
    "app",
    "data",
    "index",
    "jobs",
    "keys",
    "main",
    "models",
    "platform",
    "serving",
]
