"""Small real data sets in the formats that tasks are trained on."""

import json
from pathlib import Path
from typing import Any

import numpy as np

from modelmill.data.base import open_source
from modelmill.data.check import examine
from modelmill.data.formats import detect, labelled, labels
from modelmill.data.pack import pack
from modelmill.plugins import load
from modelmill.tasks.base import task_named
from modelmill.tasks.decoding import audio_decoder
from tests.helpers.pictures import png


def picture_folder(root: Path, count: int = 40, side: int = 8) -> Path:
    """Pictures in folders `left` and `right`, after the half that is bright; no two are the
    same.
    """
    rng = np.random.default_rng(0)
    for number in range(count):
        kind = ("left", "right")[number % 2]
        pixels = rng.integers(0, 60, (side, side), np.uint8)
        half = slice(0, side // 2) if kind == "left" else slice(side // 2, side)
        pixels[:, half] += 150
        path = root / kind / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(png(pixels))
    return root


def box_folder(root: Path, count: int = 40, side: int = 64) -> Path:
    """Pascal VOC: a `red` or a `blue` rectangle on grey noise in each picture; no two are the
    same.
    """
    rng = np.random.default_rng(0)
    for number in range(count):
        label = ("red", "blue")[number % 2]
        pixels = rng.integers(70, 110, (side, side, 3), np.uint8)
        width, height = rng.integers(side // 4, side // 2, 2).tolist()
        left, top = (
            rng.integers(0, side - width),
            rng.integers(0, side - height),
        )
        pixels[top : top + height, left : left + width] = (
            (220, 40, 40) if label == "red" else (40, 40, 220)
        )
        voc_picture(
            root,
            f"{number}",
            png(pixels),
            (side, side),
            [(label, left, top, left + width, top + height)],
        )
    return root


def voc_picture(
    root: Path,
    name: str,
    data: bytes,
    size: tuple[int, int],
    boxes: list[Any],
    kind: str = "png",
) -> None:
    """A picture and its XML; boxes are (label, xmin, ymin, xmax, ymax) from 0, the far corner
    excluded.
    """
    objects = "".join(
        f"<object><name>{label}</name><bndbox><xmin>{xmin + 1}</xmin><ymin>{ymin + 1}</ymin>"
        f"<xmax>{xmax}</xmax><ymax>{ymax}</ymax></bndbox></object>"
        for label, xmin, ymin, xmax, ymax in boxes
    )
    width, height = size
    xml = (
        f"<annotation><filename>{name}.{kind}</filename><size><width>{width}</width><height>{height}</height></size>"
        f"{objects}</annotation>"
    )
    for folder, file, content in (
        ("JPEGImages", f"{name}.{kind}", data),
        ("Annotations", f"{name}.xml", xml.encode()),
    ):
        (root / folder).mkdir(parents=True, exist_ok=True)
        (root / folder / file).write_bytes(content)


def mask_folder(root: Path, count: int = 40, side: int = 24) -> Path:
    """Bright boxes on dark ground, with masks of the classes `ground` and `shape`; no two are the
    same.
    """
    rng = np.random.default_rng(0)
    for place in ("images", "masks"):
        (root / place).mkdir(parents=True, exist_ok=True)
    for number in range(count):
        pixels = rng.integers(0, 60, (side, side, 3), np.uint8)
        mask = np.zeros((side, side), np.uint8)
        top, left = rng.integers(1, side // 2, 2)
        box = np.s_[top : top + side // 2 - 1, left : left + side // 2 - 1]
        pixels[box] += 150
        mask[box] = 1
        (root / "images" / f"{number}.png").write_bytes(png(pixels))
        (root / "masks" / f"{number}.png").write_bytes(png(mask))
    (root / "classes.txt").write_text("ground\nshape\n")
    return root


def text_table(root: Path, count: int = 60) -> Path:
    """A CSV table of texts that their words give away."""
    rng = np.random.default_rng(0)
    words = {
        "good": ["fine", "warm", "lovely"],
        "bad": ["dull", "cold", "broken"],
    }
    rows = ["text,label"]
    for number in range(count):
        label = ("good", "bad")[number % 2]
        chosen = " ".join(
            rng.choice([*words[label], "film", "story", "the"], 6)
        )
        rows.append(f"{chosen} number {number},{label}")
    root.mkdir(parents=True, exist_ok=True)
    (root / "reviews.csv").write_text("\n".join(rows) + "\n")
    return root


def book(root: Path, count: int = 60) -> Path:
    """A text file in which every line goes on like the one before."""
    root.mkdir(parents=True, exist_ok=True)
    lines = [
        f"line {number}: the mill turns and turns, and grinds the corn of {number % 7} men.\n"
        for number in range(20 * count)
    ]
    (root / "book.txt").write_text("".join(lines))
    return root


def pairs_table(root: Path, count: int = 120) -> Path:
    """Sentences of two or three colours with their translations, in one table."""
    words = {
        "red": "rot",
        "blue": "blau",
        "green": "gruen",
        "black": "schwarz",
        "white": "weiss",
    }
    root.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    seen: dict[str, str] = {}
    while len(seen) < count:
        said = rng.choice(list(words), rng.integers(2, 4))
        seen[" ".join(said)] = " ".join(words[word] for word in said)
    (root / "colours.txt").write_text(
        "".join(f"{one}\t{other}\n" for one, other in seen.items())
    )
    return root


def scored_table(root: Path, count: int = 120) -> Path:
    """Pairs of colours, and how many of them are the same."""
    words = ["red", "blue", "green", "black", "white", "grey", "pink"]
    root.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    rows = {
        " ".join(rng.choice(words, 4)): " ".join(rng.choice(words, 4))
        for _ in range(count)
    }
    lines = [
        f"{one},{other},{len({*one.split()} & {*other.split()})}"
        for one, other in rows.items()
    ]
    (root / "pairs.csv").write_text(
        "\n".join(["sentence1,sentence2,score", *lines]) + "\n"
    )
    return root


def questions(root: Path, count: int = 60) -> Path:
    """SQuAD's JSON: who has which thing, in passages of three sentences."""
    names = ("Ann", "Bob", "Cleo", "Dan", "Eve")
    things = ("cup", "hat", "key", "pen", "map")
    rng = np.random.default_rng(0)
    paragraphs = []
    for number in range(count):
        owners, owned = rng.permutation(names)[:3], rng.permutation(things)[:3]
        context = " ".join(
            f"{who} has the {what} in room {number}."
            for who, what in zip(owners, owned, strict=True)
        )
        place = int(rng.integers(3))
        answer = {
            "text": str(owners[place]),
            "answer_start": context.index(owners[place]),
        }
        question = {
            "id": str(number),
            "question": f"Who has the {owned[place]}?",
            "answers": [answer],
        }
        paragraphs.append({"context": context, "qas": [question]})
    root.mkdir(parents=True, exist_ok=True)
    (root / "questions.json").write_text(
        json.dumps({"data": [{"title": "rooms", "paragraphs": paragraphs}]})
    )
    return root


def tones(letters: str, rate: int = 8000) -> bytes:
    """A WAV file with a tone of a tenth of a second for each letter, higher for b than for a, and
    pauses between.
    """
    time = np.arange(rate // 10) / rate
    pieces = [np.zeros(rate // 20)]
    for letter in letters:
        pieces += [
            0.5 * np.sin(2 * np.pi * {"a": 400, "b": 1500}[letter] * time),
            np.zeros(rate // 20),
        ]
    return audio_decoder.wav(np.concatenate(pieces).astype(np.float32), rate)


def sound_folder(root: Path, count: int = 40) -> Path:
    """Recordings of two classes, one tone each, no two alike."""
    for number in range(count):
        label = "ab"[number % 2]
        path = root / label / f"{number}.wav"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(tones(label, rate=8000 + number))
    return root


def speech_folder(root: Path, count: int = 40) -> Path:
    """Recordings of words of the letters a and b, and what is said in metadata.csv."""
    root.mkdir(parents=True, exist_ok=True)
    rows = ["file_name,transcription"]
    for number in range(count):
        word = f"{number % 8:03b}".replace("0", "a").replace("1", "b")
        (root / f"{number}.wav").write_bytes(tones(word, rate=8000 + number))
        rows.append(f"{number}.wav,{word}")
    (root / "metadata.csv").write_text("\n".join(rows) + "\n")
    return root


TINY = {
    ("audio", "label"): sound_folder,
    ("audio", "text"): speech_folder,
    ("image", "label"): picture_folder,
    ("image", "boxes"): box_folder,
    ("image", "none"): picture_folder,
    ("image", "mask"): mask_folder,
    ("text", "label"): text_table,
    ("text", "none"): book,
    ("text", "texts"): pairs_table,
    ("question", "answers"): questions,
}
"""Makers of a tiny data set of two classes, by the kind of its items and their targets."""


def dataset(folder: Path, task: str, home: Path) -> dict[str, Any]:
    """A folder as a job gets it: packed, checked, sorted into splits."""
    home.mkdir(parents=True, exist_ok=True)
    archive, index = home / "archive.zip", home / "index"
    pack(folder, archive)
    module = task_named(task)
    with open_source(archive) as source:
        format = detect(source, module)
        reader = load("data.formats", format)
        found, report = examine(
            reader.read(source, {}),
            lambda item: module.fingerprint(item.data),
            lambda _: None,
            labelled=labelled(reader, module),
            declared=labels(reader, source, {}),
            whole_classes=module.SPLIT == "classes",
            group_key=lambda item: module.group_key(item.data),
        )
    assert not report.findings
    found.save(index)
    return {
        "name": folder.name,
        "format": format,
        "options": {},
        "digest": "0" * 64,
        "archive": str(archive),
        "index": str(index),
        "strict": False,
    }
