"""The table of compatibility says what the kit's report says."""

from pathlib import Path

import pytest

from tests.compatibility import Outcome, outcomes, page, verdict

REPORT = """<testsuites><testsuite>
<testcase classname="test_triton_http" name="test_addsub[True]"/>
<testcase classname="test_triton_http" name="test_identity[JSON-FP16]"><skipped message="no JSON form"/></testcase>
<testcase classname="test_triton_http" name="test_identity[JSON-FP32]"/>
<testcase classname="test_triton_grpc" name="test_addsub"><skipped message="KIT_GRPC is not set"/></testcase>
<testcase classname="test_openai" name="test_wrong_key_is_401"><failure message="no"/></testcase>
<testcase classname="test_hf" name="test_something_new"><error message="no"/></testcase>
</testsuite></testsuites>"""


def test_every_test_of_the_report_is_read(tmp_path: Path) -> None:
    (tmp_path / "report.xml").write_text(REPORT)
    assert [
        (o.module, o.function, o.state)
        for o in outcomes(tmp_path / "report.xml")
    ] == [
        ("test_triton_http", "test_addsub", "passed"),
        ("test_triton_http", "test_identity", "skipped"),
        ("test_triton_http", "test_identity", "passed"),
        ("test_triton_grpc", "test_addsub", "skipped"),
        ("test_openai", "test_wrong_key_is_401", "failed"),
        ("test_hf", "test_something_new", "failed"),
    ]


@pytest.mark.parametrize(
    ("cases", "says"),
    [
        ([], ""),
        ([("passed", "")], "yes"),
        ([("passed", ""), ("failed", "")], "fails"),
        ([("skipped", "KIT_MODEL_CHAT is not set")], "not offered yet"),
        ([("passed", ""), ("skipped", "KIT_SHM=1 is not set")], "partly"),
        ([("passed", ""), ("skipped", "no JSON form")], "yes"),
    ],
)
def test_a_feature_is_as_good_as_its_tests(cases, says):
    assert (
        verdict(
            [
                Outcome("test_hf", "test_x", state, reason)
                for state, reason in cases
            ]
        )
        == says
    )


def test_the_page_shows_each_client_beside_the_other(tmp_path: Path) -> None:
    (tmp_path / "report.xml").write_text(REPORT)
    text = page(outcomes(tmp_path / "report.xml"), {"openai": "3.54.0"})
    assert "Clients: openai 3.54.0." in text
    assert (
        "| infer with several inputs and outputs | yes | not offered yet |"
        in text
    )
    assert "| a wrong key is refused | fails |" in text
    assert "| something new | fails |" in text
