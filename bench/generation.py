"""Texts that grow, beside transformers, in one run: `python -m bench.generation`.

The same random decoder everywhere (6 layers, 384 wide), the same prompts, the likeliest token each
time, on all cores. Ours: the generator in a process of its own, then the whole platform with 16
streams of OpenAI's API. Theirs: `generate` on the static batch, and continuous batching, in an
environment of its own.
"""

import argparse
import asyncio
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np

from bench.measuring import ROOT
from bench.peers import CACHE, environment
from bench.running import Platform, table
from modelmill.client import Client

LAYERS = 6
WIDTH = 384
HEADS = 6
PLACES = 512
VOCABULARY = 8192
PROMPT = 32
TOKENS = 64
MANY = 16
ROUNDS = 7
TRANSFORMERS = [
    "transformers==5.23.0",
    "accelerate==1.15.0",
    "numpy==2.4.6",
    "torch==2.13.0",
]
FIRST = 0x4E00
"""The network's tokens are characters from here on."""


def weights() -> dict[str, Any]:
    """Of a decoder, by chance; what is special is never the likeliest."""
    rng = np.random.default_rng(0)

    def drawn(*shape: int) -> Any:
        return (rng.normal(size=shape) * 0.05).astype(np.float32)

    found: dict[str, Any] = {
        "embedding.weight": drawn(VOCABULARY, WIDTH),
        "last.weight": np.ones(WIDTH, np.float32),
        "last.bias": np.full(WIDTH, 0.2, np.float32),
    }
    found["embedding.weight"][:3] -= 1
    for layer in range(LAYERS):
        for name, shape in {
            "first.weight": (WIDTH,),
            "first.bias": (WIDTH,),
            "second.weight": (WIDTH,),
            "second.bias": (WIDTH,),
            "attention.inside.weight": (3 * WIDTH, WIDTH),
            "attention.inside.bias": (3 * WIDTH,),
            "attention.outside.weight": (WIDTH, WIDTH),
            "attention.outside.bias": (WIDTH,),
            "body.0.weight": (4 * WIDTH, WIDTH),
            "body.0.bias": (4 * WIDTH,),
            "body.2.weight": (WIDTH, 4 * WIDTH),
            "body.2.bias": (WIDTH,),
        }.items():
            found[f"blocks.{layer}.{name}"] = drawn(*shape)
    return found


def bundle_of(folder: Path, network: dict[str, Any]) -> Path:
    """The decoder as a sealed bundle that writes characters."""
    import onnx

    from modelmill import bundle
    from modelmill.engines.onnx import INT8
    from modelmill.predictor import Predictor, write_golden
    from modelmill.tasks.decoding import lossless_tokenizer
    from modelmill.tasks.decoding.tokenizer import TOKENIZER
    from modelmill.tasks.networks.decoder_graph import decoder
    from modelmill.types import Lineage, Manifest, TensorSpec

    draft = folder / "draft"
    draft.mkdir()
    tokenizer = lossless_tokenizer.train(
        [text_of(range(3, VOCABULARY))], lossless_tokenizer.Units()
    )
    tokenizer.save(draft / TOKENIZER)
    (draft / INT8).mkdir()
    for place in (draft, draft / INT8):
        graph = decoder(
            network,
            layers=LAYERS,
            heads=HEADS,
            positions=PLACES,
            int8=place != draft,
        )
        onnx.save(graph, place / "model.onnx")
    manifest = Manifest(
        task="text-generation",
        engine="onnx",
        inputs=[TensorSpec(name="ids", datatype="INT64", shape=[-1, -1])],
        outputs=[
            TensorSpec(
                name="logits", datatype="FP32", shape=[-1, -1, VOCABULARY]
            )
        ],
        labels=[],
        preprocessing={
            "units": "char",
            "context": PLACES,
            "tokens": VOCABULARY,
        },
        lineage=Lineage(
            dataset="",
            data_digest="",
            recipe="",
            settings={},
            seed=0,
            code_version="",
            job=0,
            created="",
        ),
        metrics={},
    )
    question = text_of([5, 6, 7])
    for precision, place in (("", draft), (INT8, draft / INT8)):
        write_golden(
            place,
            [question],
            Predictor(draft, manifest, precision=precision).predict([question]),
        )
    bundle.seal(draft, manifest, folder / "bundle")
    return folder / "bundle"


def text_of(ids: Sequence[int] | range) -> str:
    """Tokens as the characters that they stand for."""
    return "".join(chr(FIRST + one) for one in ids)


def prompts(count: int) -> list[str]:
    """Texts of random characters."""
    rng = np.random.default_rng(1)
    return [
        text_of(rng.integers(3, VOCABULARY, PROMPT).tolist())
        for _ in range(count)
    ]


# ---- contestants: each a process that answers jobs line by line


class Process:
    """A process that answers a line of JSON with another; stopped between its jobs by waiting for
    them.
    """

    def __init__(self, command: Sequence[str], env: dict[str, str]) -> None:
        self.process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=ROOT,
            env={**os.environ, **env},
        )
        self._read()

    def ask(self, kind: str, count: int) -> dict[str, Any]:
        """Seconds, and the tokens of each answer; raises `RuntimeError`."""
        assert self.process.stdin is not None
        job = {"kind": kind, "prompts": self.given[:count], "tokens": TOKENS}
        self.process.stdin.write(json.dumps(job) + "\n")
        self.process.stdin.flush()
        found = self._read()
        if "error" in found:
            raise RuntimeError(found["error"])
        return found

    given: list[Any]

    def _read(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        assert self.process.stderr is not None
        while line := self.process.stdout.readline():
            if line.startswith("{"):
                return dict(json.loads(line))
        raise RuntimeError(f"it ended: {self.process.stderr.read()[-400:]}")

    def end(self) -> None:
        """Let it go."""
        self.process.kill()
        self.process.communicate()


def _alone(bundle: Path, threads: int, precision: str) -> None:
    """Our generator in this process: jobs from the input, one a line."""
    from modelmill import predictor
    from modelmill.bundle import open_bundle

    model = predictor.Predictor(
        bundle, open_bundle(bundle), threads, precision=precision
    )
    print(json.dumps({"ready": True}), flush=True)
    for line in sys.stdin:
        job = json.loads(line)
        started = time.perf_counter()
        how = model.parameters({"max_tokens": job["tokens"]})
        pieces = model.pieces(
            [
                model.begin(number, prompt, how)
                for number, prompt in enumerate(job["prompts"])
            ]
        )
        seconds = time.perf_counter() - started
        found = [
            [piece.token for piece in pieces[number]]
            for number in range(len(job["prompts"]))
        ]
        print(json.dumps({"seconds": seconds, "tokens": found}), flush=True)


@contextmanager
def served(bundle: Path, home: Path) -> Iterator[Any]:
    """Our whole platform; yields what asks it for streams."""
    platform = Platform(home)
    try:
        client = Client(home=home)
        client.import_model("writer", bundle)
        client.deploy("writer", wait=True)
        key = client.add_key("bench")["key"]

        def ask(kind: str, count: int) -> dict[str, Any]:
            return asyncio.run(_streams(client.url, key, prompts(count)))

        yield ask
    finally:
        platform.stop()


async def _streams(url: str, key: str, texts: list[str]) -> dict[str, Any]:
    """Streams beside one another, read from bare sockets: a client takes time of the cores that it
    shares, too.
    """
    address = urlsplit(url)

    async def one(text: str) -> list[int]:
        body = {
            "model": "writer",
            "prompt": text,
            "max_tokens": TOKENS,
            "temperature": 0,
            "stream": True,
        }
        data = json.dumps(body).encode()
        head = (
            "POST /v1/completions HTTP/1.1\r\nHost: bench\r\nAuthorization: Bearer "
            f"{key}\r\nConnection: close\r\n"
        )
        reader, writer = await asyncio.open_connection(
            address.hostname, address.port
        )
        writer.write(
            f"{head}Content-Length: {len(data)}\r\n\r\n".encode() + data
        )
        reply = await reader.read()
        writer.close()
        said = [
            json.loads(line[6:])
            for line in reply.splitlines()
            if line.startswith(b"data: {")
        ]
        return [
            ord(letter) - FIRST
            for event in said
            for letter in event["choices"][0]["text"]
        ]

    started = time.perf_counter()
    found = await asyncio.gather(*map(one, texts))
    return {"seconds": time.perf_counter() - started, "tokens": list(found)}


# ---- the comparison


def measure(options: Sequence[str] = ()) -> str:
    """A Markdown table of tokens a second, with the bars."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--cache", type=Path, default=CACHE)
    told = parser.parse_args(options)
    threads = len(os.sched_getaffinity(0))
    with tempfile.TemporaryDirectory() as temporary, ExitStack() as stack:
        folder = Path(temporary)
        network = weights()
        bundle = bundle_of(folder, network)
        asks: dict[str, Any] = {}
        for kind, precision in (("ours", "fp32"), ("int8", "int8")):
            command = [
                sys.executable,
                "-m",
                "bench.generation",
                "alone",
                str(bundle),
                str(threads),
                precision,
            ]
            process = Process(command, {})
            stack.callback(process.end)
            process.given = prompts(MANY)
            asks[kind] = process.ask
        asks["served"] = stack.enter_context(served(bundle, folder / "home"))
        try:
            theirs = _theirs(folder, network, told.cache, threads)
            stack.callback(theirs.end)
            asks |= {"generate": theirs.ask, "continuous": theirs.ask}
        except RuntimeError as error:
            print(f"transformers: {error}", file=sys.stderr)
        return _told(_rounds(asks, told.rounds))


def _theirs(
    folder: Path, network: dict[str, Any], cache: Path, threads: int
) -> Process:
    python = environment(cache / "transformers", sys.executable, [TRANSFORMERS])
    np.savez(
        folder / "weights.npz",
        heads=HEADS,
        layers=LAYERS,
        places=PLACES,
        **network,
    )
    script = Path(__file__).parent / "apps" / "transformers_generate.py"
    process = Process(
        [str(python), str(script), str(folder / "weights.npz"), str(threads)],
        {"TQDM_DISABLE": "1"},
    )
    process.given = [
        [ord(letter) - FIRST for letter in text] for text in prompts(MANY)
    ]
    return process


Speeds = dict[tuple[str, int], list[float]]


def _rounds(asks: dict[str, Any], rounds: int) -> Speeds:
    """Tokens a second of all, in turns; all have to say the same."""
    speeds: Speeds = {}
    said: dict[int, Any] = {}
    for turn in range(rounds + 1):
        for kind, ask in asks.items():
            for count in (MANY, 1):
                try:
                    found = ask(kind, count)
                except RuntimeError as error:
                    if turn == 0:
                        print(f"{kind}, {count}: {error}", file=sys.stderr)
                    continue
                total = sum(map(len, found["tokens"]))
                said.setdefault(count, found["tokens"])
                if turn == 0:  # to warm up, and to see that all say the same
                    same = sum(
                        one == other
                        for one, other in zip(
                            found["tokens"], said[count], strict=True
                        )
                    )
                    print(
                        f"{kind}, {count}: {total} tokens, {same} of {count} texts as ours",
                        file=sys.stderr,
                    )
                else:
                    speeds.setdefault((kind, count), []).append(
                        total / found["seconds"]
                    )
    return speeds


def _told(speeds: Speeds) -> str:
    middle = {who: statistics.median(found) for who, found in speeds.items()}

    def ratio(one: str, other: str, count: int, bar: float) -> str:
        if (other, count) not in speeds:
            return "not measured"
        pairs = zip(speeds[one, count], speeds[other, count], strict=True)
        found = statistics.median(mine / theirs for mine, theirs in pairs)
        return f"**{found:.2f}** (>= {bar:g} {'met' if found >= bar else 'MISSED'})"

    rows = []
    for count in (MANY, 1):
        speed = [
            f"{middle[kind, count]:,.0f}" if (kind, count) in middle else "-"
            for kind in KINDS
        ]
        bars = (1.5, 1.0) if count == MANY else (1.0, 1.0)
        rows.append(
            [
                str(count),
                *speed,
                ratio("ours", "generate", count, bars[0]),
                ratio("ours", "continuous", count, bars[1]),
                ratio("served", "ours", count, 0.9),
                ratio("int8", "ours", count, 1.0),
            ]
        )
    heads = [
        "requests at a time",
        "ours, tokens/s",
        "ours, int8",
        "ours, streamed over HTTP",
        "transformers `generate`",
    ]
    heads += [
        "its continuous batching",
        "ours to `generate`",
        "ours to continuous",
        "streamed to ours",
        "int8 to ours",
    ]
    return table(heads, rows)


KINDS = ("ours", "int8", "served", "generate", "continuous")

if __name__ == "__main__":
    if sys.argv[1:2] == ["alone"]:
        _alone(Path(sys.argv[2]), int(sys.argv[3]), sys.argv[4])
    else:
        print(measure(sys.argv[1:]))
