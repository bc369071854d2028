"""One tokenizer for every `tokenizer.json`: ours of both kinds, and those of the Hugging Face hub."""

import msgspec
import pytest
from tokenizers import Tokenizer as Inner
from tokenizers import decoders, models, normalizers, pre_tokenizers, trainers

from modelmill.errors import BundleCorrupt
from modelmill.streams import STOP, Piece
from modelmill.tasks.base import Context, task_named
from modelmill.tasks.decoding import lossless_tokenizer, text_tokenizer
from modelmill.tasks.decoding.tokenizer import (
    TOKENIZER,
    Tokenizer,
    load_tokenizer,
)

TEXT = "the mill grinds corn, and Müller 磨坊 😀"
END = "<|endoftext|>"


def words():
    how = text_tokenizer.Preprocessing(minimum_count=1)
    return text_tokenizer.train_tokenizer([TEXT], how)


def lossless(units):
    return lossless_tokenizer.train(
        [TEXT], lossless_tokenizer.Units(units=units)
    )


def byte_level():
    """As GPT-2's: one special token, behind all others."""
    inner = Inner(models.BPE())
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=300, initial_alphabet=alphabet, show_progress=False
    )
    inner.train_from_iterator([TEXT], trainer)
    inner.add_special_tokens([END])
    return Tokenizer(inner)


def sentence_pieces():
    """As Llama's: a blank is a letter, and what is unknown is bytes."""
    special = ["<unk>", "<s>", "</s>"]
    letters = {
        letter: 3 + number for number, letter in enumerate("▁abcdefghijklmno")
    }
    unwritten = {f"<0x{byte:02X}>": 100 + byte for byte in range(256)}
    vocabulary = {name: number for number, name in enumerate(special)}
    model = models.BPE(
        {**vocabulary, **letters, **unwritten},
        [],
        unk_token="<unk>",
        byte_fallback=True,
    )
    inner = Inner(model)
    inner.normalizer = normalizers.Replace(" ", "▁")
    inner.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    inner.add_special_tokens(special)
    return Tokenizer(inner)


def test_our_own_have_their_special_tokens_first():
    for tokenizer in (words(), lossless("char"), lossless("bpe")):
        assert tokenizer.special == {0, 1, 2}
        assert (tokenizer.pad, tokenizer.unknown) == (0, 1)
    assert words().mask == 2
    assert lossless("char").end == 2
    assert lossless("char").ends == {0, 2}


def test_what_is_not_in_the_file_is_missed_in_words():
    with pytest.raises(
        BundleCorrupt, match=r"no special token that ends a text.*\[END\]"
    ):
        print(words().end)
    with pytest.raises(
        BundleCorrupt, match=r"no special token that hides a word"
    ):
        print(byte_level().mask)


def test_the_hubs_name_theirs_otherwise_and_put_them_anywhere():
    gpt, llama = byte_level(), sentence_pieces()
    assert gpt.special == gpt.ends == {gpt.end} == {gpt.size - 1}
    assert gpt.unknown is None
    assert (llama.special, llama.ends, llama.end) == ({0, 1, 2}, {2}, 2)
    assert llama.unknown == 0


@pytest.mark.parametrize(
    "tokenizer",
    [lossless("char"), lossless("bpe"), byte_level(), sentence_pieces()],
)
def test_texts_come_back_whole_at_once_and_token_by_token(tokenizer, tmp_path):
    tokenizer.save(tmp_path / TOKENIZER)
    for one in (tokenizer, load_tokenizer(tmp_path / TOKENIZER)):
        ids = one.encode(TEXT)
        assert one.decode(ids) == TEXT
        stream = one.stream()
        assert "".join(stream(token) for token in ids) == TEXT
        assert b"".join(one.bytes_of(token) for token in ids).decode() == TEXT
        assert all(one.bytes_of(token) is None for token in one.special)
        assert one.encode_all([TEXT, "", TEXT]) == [ids, [], ids]


def test_a_mark_stands_for_a_token_and_its_name_for_letters():
    tokenizer = byte_level()
    marked = tokenizer.encode("corn\0 mill\0", {"\0": tokenizer.end})
    assert [token == tokenizer.end for token in marked].count(True) == 2
    assert marked[-1] == tokenizer.end
    assert tokenizer.end not in tokenizer.encode(f"corn{END}")
    assert tokenizer.decode(marked) == "corn mill"
    assert tokenizer.decode(marked, special=True) == f"corn{END} mill{END}"


def test_places_and_half_characters():
    found = lossless("char").encode_with_places("mi\ud800ll")
    assert found.places == [(at, at + 1) for at in range(5)]
    assert found.ids[2] == 1


def test_a_model_that_writes_ends_where_the_tokenizer_of_the_hub_says(tmp_path):
    tokenizer, task = byte_level(), task_named("text-generation")
    tokenizer.save(tmp_path / TOKENIZER)
    how = msgspec.structs.replace(
        task.PREPROCESSING(), units="bpe", tokens=tokenizer.size, context=64
    )
    context = Context(preprocessing=how, labels=[], folder=tmp_path)
    details = task.parameters({"details": True})
    text = task.begin("x", "the mill", context, details)
    assert text.prompt == tokenizer.encode("the mill")
    assert text.ends == {tokenizer.end}
    pieces = [
        Piece("x", text.pieces(tokenizer.encode(" corn")[0]), 3, tokens=1),
        Piece("x", "", tokenizer.end, STOP, tokens=2),
    ]
    answer = task.stream_answer(text, pieces, details, context)
    assert answer["details"]["finish_reason"] == "eos_token"
    assert [one["special"] for one in answer["details"]["tokens"]] == [
        False,
        True,
    ]
