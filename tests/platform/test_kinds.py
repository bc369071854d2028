"""A kind of jobs is a file: the one that the documentation shows is installed and used over all
ways in.
"""

import json
import os
import re
from collections.abc import Iterator
from pathlib import Path

import httpx2
import pytest

from modelmill.errors import Conflict, InvalidInput, MillError, NotFound
from tests.platform.conftest import Platform, write_reviews

GUIDE = Path(__file__).parents[2] / "docs" / "extending.md"
EXAMPLE = "jobs/kinds/lengths.py"


def install(site: Path) -> Path:
    """The example of the guide as an installed package in a folder of its own."""
    after = GUIDE.read_text().partition(f"`{EXAMPLE}`:")[2]
    block = re.search(r"```python\n(.*?)```", after, re.DOTALL)
    assert block is not None
    site.mkdir()
    (site / "lengths.py").write_text(block[1])
    facts = site / "lengths-1.0.dist-info"
    facts.mkdir()
    (facts / "METADATA").write_text(
        "Metadata-Version: 2.1\nName: lengths\nVersion: 1.0\n"
    )
    (facts / "entry_points.txt").write_text(
        "[modelmill.jobs.kinds]\nlengths = lengths\n"
    )
    return site


@pytest.fixture(scope="module")
def extended(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Platform]:
    """A platform with the example, and a data set that came as a job of the kind `import`."""
    folder = tmp_path_factory.mktemp("extended")
    paths = [str(install(folder / "site")), os.environ.get("PYTHONPATH", "")]
    running = Platform(
        folder / "home",
        PYTHONPATH=os.pathsep.join(path for path in paths if path),
    )
    write_reviews(folder / "reviews")
    asked = {"name": "reviews", "task": "text-classification"}
    running.client.submit("import", asked, file=folder / "reviews", wait=True)
    yield running
    running.end()


def test_what_came_as_a_job_is_a_data_set(extended: Platform) -> None:
    row = extended.client.dataset("reviews")
    assert (row["state"], row["items"], row["format"]) == ("ready", 300, "csv")
    with pytest.raises(Conflict, match="there is another data set 'reviews'"):
        extended.client.submit(
            "import",
            {"name": "reviews", "task": "fill-mask"},
            file=extended.home.parent / "reviews",
        )
    with pytest.raises(Conflict, match="there is nothing to do"):
        extended.client.submit(
            "import",
            {"name": "reviews", "task": "text-classification"},
            file=extended.home.parent / "reviews",
        )


def test_the_example_runs_as_a_job(extended: Platform) -> None:
    events: list[str] = []
    row = extended.client.submit(
        "lengths",
        {"data": "reviews", "split": "train", "most": 10},
        wait=True,
        on_event=lambda event: events.append(event["event"]),
    )
    assert (row["kind"], row["state"], row["dataset"]) == (
        "lengths",
        "succeeded",
        "reviews",
    )
    assert row["metrics"]["items"] == 10
    assert row["metrics"]["longest"] >= row["metrics"]["mean"] > 10
    assert "stage" in events


def test_the_command_line_takes_its_fields(extended: Platform) -> None:
    done = extended.run(
        "job", "submit", "lengths", "data=reviews", "most=7", "--wait", "--json"
    )
    assert done.returncode == 0, done.stderr
    row = json.loads(done.stdout)
    assert (row["settings"], row["metrics"]["items"]) == (
        {"split": "test", "most": 7},
        7,
    )
    shown = extended.run("job", str(row["job"]), "--json")
    assert json.loads(shown.stdout)["kind"] == "lengths"
    wrong = extended.run("job", "submit", "lengths", "data")
    assert wrong.returncode == 1
    assert "write NAME=VALUE" in wrong.stderr


def test_kinds_are_listed_with_their_fields(extended: Platform) -> None:
    kinds = {row["name"]: row for row in extended.client.kinds()}
    assert {
        "train",
        "evaluate",
        "import",
        "register",
        "lengths",
    } <= kinds.keys()
    assert kinds["lengths"]["file"] == ""
    assert "zip" in kinds["import"]["file"]
    shown = extended.run("kinds", "lengths").stdout
    for said in (
        "Measure how long",
        "most",
        "items to look at",
        "1000",
        "(needed)",
    ):
        assert said in shown
    missing = extended.run("kinds", "widths")
    assert missing.returncode == 1
    assert "lengths" in missing.stderr


def test_openapi_says_what_may_be_requested(extended: Platform) -> None:
    paths = httpx2.get(
        f"{extended.url}/openapi.json", headers=extended.headers
    ).json()["paths"]
    operation = paths["/api/v1/jobs/lengths"]["post"]
    schema = operation["requestBody"]["content"]["application/json"]["schema"]
    assert schema["required"] == ["data"]
    assert schema["properties"]["most"]["maximum"] == 100_000
    (parameter,) = [
        one
        for one in paths["/api/v1/jobs/import"]["post"]["parameters"]
        if one["name"] == "request"
    ]
    assert (
        "name"
        in parameter["content"]["application/json"]["schema"]["properties"]
    )


@pytest.mark.parametrize(
    ("kind", "asked", "error", "says"),
    [
        ("lengths", {}, InvalidInput, "data: it is missing"),
        (
            "lengths",
            {"data": "x", "most": 0},
            InvalidInput,
            "most: expected `int` >= 1",
        ),
        (
            "lengths",
            {"data": "x", "split": "all"},
            InvalidInput,
            "split: invalid enum",
        ),
        (
            "lengths",
            {"data": "x", "mosst": 1},
            InvalidInput,
            "did you mean 'most'",
        ),
        ("lengths", {"data": "pets"}, NotFound, "unknown data set 'pets'"),
        ("widths", {}, NotFound, "unknown kind of jobs 'widths'"),
        ("import", {"name": "a"}, InvalidInput, "request is a JSON object"),
    ],
)
def test_what_is_wrong_is_refused_at_once(
    extended: Platform,
    kind: str,
    asked: dict[str, object],
    error: type[MillError],
    says: str,
) -> None:
    before = len(extended.client.jobs())
    with pytest.raises(error, match=says):
        extended.client.submit(kind, asked)
    assert len(extended.client.jobs()) == before


def test_a_file_is_refused_before_it_is_sent_where_the_request_is_wrong(
    extended: Platform,
) -> None:
    with pytest.raises(InvalidInput, match="unknown option 'colour'"):
        extended.client.submit(
            "import",
            {
                "name": "more",
                "task": "text-classification",
                "options": {"colour": "red"},
            },
            file=extended.home.parent / "reviews",
        )
    with pytest.raises(NotFound, match="unknown data set"):
        extended.client.dataset("more")
