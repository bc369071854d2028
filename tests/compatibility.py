"""From the kit's report to docs/compatibility.md: the names of its tests in words, their outcomes
as they are.
"""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Literal, NamedTuple
from xml.etree import ElementTree

State = Literal["passed", "skipped", "failed"]

SECTIONS = {
    "Open Inference Protocol v2": {
        "test_triton_http": "tritonclient, HTTP",
        "test_triton_grpc": "tritonclient, gRPC",
    },
    "OpenAI API": {"test_openai": "openai"},
    "Hugging Face API": {"test_hf": "huggingface_hub"},
}
"""The module of the kit that drives each client."""

WORDS = {
    "test_live_and_ready": "health",
    "test_live_ready_metadata": "health",
    "test_model_ready": "is a model ready",
    "test_server_metadata": "metadata of the server",
    "test_model_metadata": "metadata of a model",
    "test_model_metadata_of_each_version": "metadata of each version",
    "test_model_config": "configuration of a model",
    "test_model_metadata_and_config": "metadata and configuration of a model",
    "test_unknown_model_is_404_with_a_message": "an unknown model is named in the error",
    "test_unknown_model_is_not_found": "an unknown model is named in the error",
    "test_infer_any_model": "infer, inputs made from the metadata",
    "test_all_four_encodings_agree": "JSON and binary tensors agree",
    "test_addsub": "infer with several inputs and outputs",
    "test_only_the_named_output_comes_back": "choose outputs",
    "test_one_output_binary_and_one_json": "choose the encoding of each output",
    "test_compressed_request_and_response": "compression, gzip and deflate",
    "test_compression": "compression, gzip and deflate",
    "test_priority_timeout_and_parameters_are_accepted": "priority, timeout and parameters",
    "test_options_are_accepted": "priority, timeout and parameters",
    "test_query_parameters_are_accepted": "parameters in the URL",
    "test_nested_json_data_is_accepted_like_flat": "nested JSON data",
    "test_what_mlservers_client_types_send": "what mlserver's client types send",
    "test_typed_contents_instead_of_raw": "typed contents instead of raw bytes",
    "test_batch_of_rows": "several rows at once",
    "test_many_at_once": "many requests at once",
    "test_large_tensor": "large tensors",
    "test_large_message": "large tensors",
    "test_bad_requests_are_4xx_with_a_message": "bad requests are refused with a message",
    "test_bad_requests_are_invalid_argument": "bad requests are refused with a message",
    "test_unknown_version_is_an_error": "an unknown version is refused",
    "test_identity": "every datatype, there and back",
    "test_bytes_that_are_not_text": "BYTES that are not text",
    "test_empty_batch": "an empty batch",
    "test_nan_and_infinity_in_json": "NaN and infinity in JSON",
    "test_classification": "classification: best classes with labels",
    "test_sequence": "sequences with state",
    "test_sequence_without_a_start_is_refused": "a sequence without a start is refused",
    "test_failing_model_is_500_with_its_message": "a failing model's message arrives",
    "test_failing_model_is_internal": "a failing model's message arrives",
    "test_queue_timeout_is_503": "time limit of a request",
    "test_deadline": "time limit of a request",
    "test_async_infer_and_cancel": "asynchronous requests, cancelling",
    "test_stream_of_ordinary_requests": "a stream of requests",
    "test_stream_reports_an_error_and_goes_on": "an error leaves a stream open",
    "test_decoupled_stream": "several answers to one request",
    "test_decoupled_model_needs_the_stream": "a model of several answers needs the stream",
    "test_statistics_count_requests": "statistics of a model",
    "test_statistics": "statistics of a model",
    "test_statistics_of_all_models": "statistics of all models",
    "test_repository_index": "list of models",
    "test_unload_and_load": "load and unload",
    "test_loading_an_unknown_model_is_an_error": "loading an unknown model is refused",
    "test_trace_and_log_settings": "trace and log settings",
    "test_system_shared_memory": "system shared memory",
    "test_standard_health_service": "the standard gRPC health service",
    "test_reflection": "gRPC reflection",
    "test_aio": "asyncio client",
    "test_async": "asyncio client",
    "test_a_wrong_key_is_refused": "a wrong key is refused",
    "test_wrong_key_is_401": "a wrong key is refused",
    "test_models": "list of models, one model",
    "test_unknown_model_is_404": "an unknown model is named in the error",
    "test_health_and_info": "health and information of a model",
    "test_asr": "automatic speech recognition",
    "test_asr_with_parameters": "automatic speech recognition with parameters",
}
"""What a test is about; a test that is not here is named after its function."""

HEAD = """# Compatibility

What published clients can do with modelmill, found by driving them against a platform that serves small reference
models, with a key set. `make compatibility` runs the tests again and writes this page.

**yes**: every test of it passes. **partly**: some pass, the others need what is not offered yet. **fails**: a test
fails. **not offered yet**: nothing answers to it so far.
"""


class Outcome(NamedTuple):
    """What became of one test of the kit; `case` is its name with its parameters."""

    module: str
    case: str
    state: State
    reason: str = ""

    @property
    def function(self) -> str:
        """The function's name."""
        return self.case.partition("[")[0]


def outcomes(report: Path) -> list[Outcome]:
    """The tests of a JUnit report, in their order."""
    found = []
    for case in ElementTree.parse(report).getroot().iter("testcase"):
        module = (
            case.get("classname", "").rpartition(".")[2]
            or case.get("name", "").rpartition(".")[2]
        )
        state: State = "passed"
        reason = ""
        for child in case:
            if child.tag in ("failure", "error"):
                state, reason = "failed", child.get("message", "")
            elif child.tag == "skipped" and state == "passed":
                state, reason = "skipped", child.get("message", "")
        found.append(Outcome(module, case.get("name", ""), state, reason))
    return found


def words(function: str) -> str:
    """What a test is about."""
    return WORDS.get(function) or function.removeprefix("test_").replace(
        "_", " "
    )


def verdict(found: Sequence[Outcome]) -> str:
    """One word for the tests of a feature.

    A skipped test names the variable of the kit that was not set; one that names none is of a case
    that can't exist, such as a datatype without a JSON form, and counts for nothing.
    """
    states = {outcome.state for outcome in found}
    if not found:
        return ""
    if "failed" in states:
        return "fails"
    if "passed" not in states:
        return "not offered yet"
    return (
        "partly"
        if any(o.state == "skipped" and "KIT_" in o.reason for o in found)
        else "yes"
    )


def page(found: Sequence[Outcome], versions: Mapping[str, str]) -> str:
    """The whole page."""
    clients = ", ".join(
        f"{name} {version}" for name, version in versions.items()
    )
    parts = [HEAD, f"Clients: {clients}.\n"]
    for title, columns in SECTIONS.items():
        parts.append(
            f"## {title}\n\n" + "\n".join(_table(found, columns)) + "\n"
        )
    return "\n".join(parts)


def _table(
    found: Sequence[Outcome], columns: Mapping[str, str]
) -> Iterable[str]:
    mine = [outcome for outcome in found if outcome.module in columns]
    features = list(dict.fromkeys(words(outcome.function) for outcome in mine))
    # What works comes first; within that, the order of the kit's own tests.
    order = {feature: number for number, feature in enumerate(features)}
    cells = {
        feature: [
            verdict(
                [
                    o
                    for o in mine
                    if o.module == module and words(o.function) == feature
                ]
            )
            for module in columns
        ]
        for feature in features
    }
    features.sort(
        key=lambda feature: (
            not {"yes", "partly", "fails"} & set(cells[feature]),
            order[feature],
        )
    )
    yield "| | " + " | ".join(columns.values()) + " |"
    yield "| --- |" + " --- |" * len(columns)
    for feature in features:
        yield f"| {feature} | " + " | ".join(cells[feature]) + " |"
