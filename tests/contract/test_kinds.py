"""Every kind of input and of output keeps the contract of `modelmill.tasks.kinds.base`."""

import struct

import msgspec
import pytest

from modelmill import plugins
from modelmill.errors import InvalidInput
from modelmill.tasks.kinds import (
    PLUGINS,
    from_parameters,
    input_kind,
    input_kinds,
    output_kind,
    output_kinds,
)
from modelmill.tasks.kinds.conversation import Conversation, Message
from modelmill.tasks.kinds.token_ids import TokenIds

INPUTS = [kind.name for kind in input_kinds()]
OUTPUTS = [kind.name for kind in output_kinds()]


def test_every_module_is_a_kind_under_its_own_name():
    files = {name.replace("-", "_") for name in plugins.names(PLUGINS)}
    assert {*INPUTS, *OUTPUTS} == files


@pytest.mark.parametrize("name", INPUTS)
def test_an_input_says_what_it_is(name):
    kind = input_kind(name)
    assert kind.article.startswith(("a ", "an ", "token"))
    assert kind.in_json
    assert "application/json" in kind.media
    assert all("/" in media for media in kind.media)
    assert kind.shown
    assert kind.is_text == (kind.sent_as in ("text", "number", "json"))


@pytest.mark.parametrize("name", INPUTS)
def test_an_example_is_valid_and_always_the_same(name):
    kind = input_kind(name)
    assert kind.sample() == kind.sample()
    made = kind.example()
    if kind.is_text:
        msgspec.json.encode(made)
        assert kind.read(kind.encoded(made, "inputs")) == kind.sample()
    else:
        assert isinstance(made, bytes)


@pytest.mark.parametrize("name", INPUTS)
@pytest.mark.parametrize("value", [True, 1.5, [["a"]], {"a": 1, "b": [None]}])
def test_what_is_no_such_input_is_refused_by_name(name, value):
    kind = input_kind(name)
    if (
        kind.sent_as == "json"
        and isinstance(value, dict)
        and name == "question"
    ):
        return  # the task says what a question wants
    with pytest.raises(InvalidInput):
        kind.encoded(value, "inputs")


@pytest.mark.parametrize("name", OUTPUTS)
def test_an_output_says_what_it_is(name):
    kind = output_kind(name)
    assert kind.meaning
    assert kind.media[0] == "application/json"
    assert (
        msgspec.json.decode(msgspec.json.encode(kind.example()))
        == kind.example()
    )


def test_a_kind_that_has_no_module_is_a_file_and_an_answer_of_json():
    cloud = input_kind("point_cloud")
    assert (cloud.sent_as, cloud.is_text, cloud.sample()) == (
        "file",
        False,
        b"",
    )
    assert cloud.encoded("AAE=", "inputs") == b"\x00\x01"
    with pytest.raises(
        InvalidInput, match="an input of the kind 'point_cloud' as base64"
    ):
        cloud.encoded(5, "inputs")
    assert output_kind("point_cloud").media == ("application/json",)


def test_the_video_is_whole():
    data = input_kind("video").example()
    assert (data[:4], data[8:12]) == (b"RIFF", b"AVI ")
    assert struct.unpack("<I", data[4:8])[0] == len(data) - 8
    assert data.count(b"\xff\xd8\xff") == 3  # each frame is a JPEG


def test_a_conversation_is_typed_and_its_parts_are_joined():
    kind = input_kind("conversation")
    parts = [{"type": "text", "text": "grind"}, {"type": "text", "text": "?"}]
    sent = kind.encoded(
        [{"role": "user", "content": parts, "name": "x"}], "messages"
    )
    assert sent == b'[{"role":"user","content":"grind?"}]'
    said = Message(role="user", content="grind?")
    assert kind.read(sent) == Conversation(messages=(said,))


@pytest.mark.parametrize(
    ("messages", "says"),
    [
        ([], "messages is a list of"),
        ("hello", "messages is a list of"),
        ([{"content": "x"}], "message 0 wants a role and a content"),
        ([{"role": "user"}], "message 0 has no content"),
        (
            [{"role": "user", "content": [{"image": "x"}]}],
            "parts that are no texts",
        ),
        (
            [{"role": "user", "content": "x" * 1_000_001}],
            "1,000,001 characters",
        ),
        ([{"role": "user", "content": "\ud83d"}], "half of a surrogate pair"),
    ],
)
def test_a_conversation_that_is_none_is_refused(messages, says):
    with pytest.raises(InvalidInput, match=says):
        input_kind("conversation").encoded(messages, "messages")


@pytest.mark.parametrize(
    "data", [b"", b"{", b"\xff", b"[" * 100_000, b"5", b"[]", b"[[]]"]
)
@pytest.mark.parametrize("name", ["conversation", "token_ids"])
def test_bytes_that_are_no_such_input_are_refused(name, data):
    with pytest.raises(InvalidInput):
        input_kind(name).read(data)


@pytest.mark.parametrize(
    "given", [[], [-1], [1 << 32], [True], [1.0], ["5"], 5, "5"]
)
def test_token_ids_that_are_none_are_refused(given):
    with pytest.raises(InvalidInput, match="token ids are"):
        input_kind("token_ids").encoded(given, "prompt")


def test_an_input_that_came_as_a_parameter_is_taken_out_of_them():
    kinds = ("conversation", "token_ids")
    found, rest = from_parameters(
        {"token_ids": [5], "top_k": 1, "messages": None}, kinds
    )
    assert (found, rest) == ((b"[5]", "token_ids"), {"top_k": 1})
    assert input_kind(found.kind).read(found.data) == TokenIds(ids=(5,))
    assert from_parameters({"top_k": 1}, kinds) == (None, {"top_k": 1})
    with pytest.raises(
        InvalidInput, match="messages and token_ids are two inputs"
    ):
        from_parameters({"token_ids": [5], "messages": []}, kinds)
    assert from_parameters({"messages": 5}, ("token_ids",)) == (
        None,
        {"messages": 5},
    )
