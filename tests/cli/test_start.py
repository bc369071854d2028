"""What the command line imports before it knows the command: it starts for each of them."""

import os
import subprocess
import sys

HELP = """
import sys
from modelmill.cli import main
main(["--help"])
print(*sys.modules, file=sys.stderr)
"""


def test_help_waits_for_nothing_that_a_command_needs():
    done = subprocess.run(
        [sys.executable, "-c", HELP],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
        env=os.environ | {"COLUMNS": "100"},
    )
    assert "Serve a version" in done.stdout
    imported = set(done.stderr.split())
    own = {
        name
        for name in imported
        if name.startswith("modelmill.")
        and not name.startswith("modelmill.cli")
    }
    assert own <= {"modelmill.errors"}
    assert "modelmill.cli.screen" not in imported
    heavy = {
        "difflib",
        "httpx2",
        "msgspec",
        "numpy",
        "PIL",
        "rich.progress",
        "zipfile",
    }
    assert not heavy & imported
