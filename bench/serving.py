"""The data plane beside its peers, one table in one run: `python -m bench.serving [MEASUREMENT
...]`.

Without `--url` it starts a modelmill platform with a home of its own, and the peers of
`bench.peers`; figures are medians of interleaved repeats. `--url URL --model NAME --key KEY [--grpc
HOST:PORT]` drives any other V2 server. The load generators share the machine's cores with the
servers, so only figures of one run can be compared.
"""

import argparse
import signal
import sys
import traceback
from collections.abc import Callable

import httpx2

from bench import life, peers, rates
from bench.measuring import MACHINE, end_orderly
from bench.running import table
from bench.subject import Bench, Foreign, Modelmill, Row
from modelmill.errors import MillError

MEASUREMENTS: dict[str, Callable[[Bench], list[Row]]] = {
    "cnn": rates.cnn,
    "json": rates.v2_json,
    "grpc": rates.grpc,
    "resnet50": rates.resnet50,
    "bert": rates.bert,
    "openvino": rates.openvino,
    "task": rates.task,
    "deploy": life.deploy,
    "memory": life.resident,
    "many": life.many,
    "kill": life.kill,
    "bert-base": rates.bert_base,
}
OUTSIDE = ("cnn", "json", "grpc")
"""What can be measured of a server that others started."""
USUAL = [name for name in MEASUREMENTS if name != "bert-base"]


def options() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "measurements",
        nargs="*",
        metavar="MEASUREMENT",
        help=f"of {', '.join(MEASUREMENTS)}",
    )
    peers.arguments(parser)
    parser.add_argument(
        "--precision", default="bf16", help="of the OpenVINO rows (bf16)"
    )
    parser.add_argument(
        "--models",
        type=int,
        default=200,
        help="idle models of the measurement 'many'",
    )
    parser.add_argument(
        "--keys",
        type=int,
        default=10_000,
        help="keys of the measurement 'many'",
    )
    parser.add_argument(
        "--url", default="", help="a V2 server that runs already"
    )
    parser.add_argument("--model", default="cnn", help="its model")
    parser.add_argument(
        "--key", default="", help="sent to it as a bearer token"
    )
    parser.add_argument("--grpc", default="", help="HOST:PORT of its gRPC")
    return parser


def measure(arguments: list[str]) -> str:
    """Measure what is named, or all; returns a Markdown table."""
    told = options().parse_args(arguments)
    names = told.measurements or (list(OUTSIDE) if told.url else USUAL)
    if unknown := [name for name in names if name not in MEASUREMENTS]:
        raise SystemExit(
            f"there is no measurement {', '.join(unknown)}; there are: {', '.join(MEASUREMENTS)}"
        )
    MACHINE.patience = told.patience
    bench = Bench(told, Foreign(told) if told.url else Modelmill(told.cache))
    rows = []
    try:
        for name in names:
            for row in _rows(bench, name):
                rows.append(row.cells())
                print(
                    f"| {' | '.join(rows[-1])} |", file=sys.stderr, flush=True
                )
    finally:
        # Nothing that was started may be left behind
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        bench.close()
    return f"{table(['what', 'measured', 'bar'], rows)}\n\n{MACHINE.told()}"


def _rows(bench: Bench, name: str) -> list[Row]:
    """One measurement; one that fails is told of in the table and does not end the others."""
    try:
        return MEASUREMENTS[name](bench)
    except Exception as error:
        if not isinstance(error, RuntimeError | MillError | httpx2.HTTPError):
            traceback.print_exc()
        return [
            Row(
                name,
                f"not measured: {' '.join(str(error).split())[-300:] or type(error).__name__}",
            )
        ]


if __name__ == "__main__":
    end_orderly()
    print(measure(sys.argv[1:]))
