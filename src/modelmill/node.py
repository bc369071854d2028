"""The composition root: `modelmill up`. A small supervisor whose children are the gateway, workers
and jobs.

It binds the port itself and hands it down, so that a taken port is found at once and a gateway that
dies is replaced without a refused connection.
"""

import errno
import fcntl
import ipaddress
import logging
import os
import shutil
import signal
import socket
import stat
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import IO, Any, cast

from setproctitle import setproctitle

from modelmill import __version__, plugins
from modelmill.cluster.base import Cluster, Handle, terminate_all
from modelmill.cluster.logs import LogLimits, keep
from modelmill.control.jobs import JobRunner
from modelmill.control.keys import ensure_admin_key
from modelmill.control.reconciler.canary import Tally
from modelmill.control.reconciler.launcher import Launcher
from modelmill.control.reconciler.loop import NodeLimits, Reconciler
from modelmill.control.reconciler.scaling import Signals
from modelmill.errors import Conflict, InvalidInput, MillError, from_os
from modelmill.serve.gossip import Ear, Load, News
from modelmill.serve.meter import Meter
from modelmill.settings import Settings, exposed_password, machine_memory
from modelmill.stores import Stores, run_folder
from modelmill.types import GatewaySpec

log = logging.getLogger("modelmill.node")

JOB = "modelmill.jobs.entry:main"
WORKER = "modelmill.serve.worker:main"
WARM = ("modelmill.engines.onnx", "PIL.Image", "simplejpeg")
"""What nearly every worker imports."""
TICK_SECONDS = 0.05
MEMORY_SHARE = 0.8
LOOK_SECONDS = 1.0


def up(
    settings: Settings, demo: Callable[[Settings], None] | None = None
) -> int:
    """Run the platform until SIGINT or SIGTERM; returns the exit status."""
    os.umask(0o077)  # what the platform writes is its owner's alone
    setproctitle("modelmill: supervisor")
    _make_home(settings.home)
    _refuse_settings(settings)
    with (
        _lock(settings.home),
        _bind(settings.host, settings.port) as listener,
        _bind_grpc(settings) as grpc_listener,
    ):
        # Halves of an earlier run
        shutil.rmtree(settings.home / "uploads", ignore_errors=True)
        ports = {
            "port": listener.getsockname()[1],
            "grpc_port": grpc_listener.getsockname()[1],
        }
        settings = settings.model_copy(update=ports)
        _log_to(settings.home / "logs" / "node.log", _kept(settings))
        _run_node(Node(settings, listener, grpc_listener), demo)
    return 0


def _refuse_settings(settings: Settings) -> None:
    """Raises `InvalidInput` for settings that can't go together."""
    if (settings.certificate is None) != (settings.certificate_key is None):
        raise InvalidInput(
            "TLS needs both settings: certificate and certificate_key"
        )
    if settings.shared_memory and settings.gateways > 1:
        raise InvalidInput(
            "shared_memory works with one gateway: a region is known to the one that registered it"
        )


def _run_node(node: "Node", demo: Callable[[Settings], None] | None) -> None:
    try:
        node.start()
        if demo is not None:
            threading.Thread(
                target=_demonstrate, args=(demo, node.settings), daemon=True
            ).start()
        node.run()
    finally:
        node.stop()


class Node:
    """The supervisor."""

    def __init__(
        self,
        settings: Settings,
        listener: socket.socket,
        grpc_listener: socket.socket,
    ) -> None:
        self.settings = settings
        self._listener = listener
        self._grpc_listener = grpc_listener
        self.stores = Stores(settings)
        self._cluster = cast(Cluster, plugins.load("cluster", "local"))
        self._cluster.keep_logs(_kept(settings))
        self._run = run_folder(settings.home)
        _clear(self._run)
        self._jobs = JobRunner(
            self.stores.of_jobs, self._cluster, JOB, settings.threads
        )
        self._cluster.warm(WORKER, *WARM)
        self._workers = self._reconciler()
        self._meter = Meter()
        self._ear = Ear(self._run, "node")
        self._gateways: list[Handle] = []
        self._gateway_started = self._again = 0.0
        self._stopping = threading.Event()

    def _reconciler(self) -> Reconciler:
        settings = self.settings
        launcher = Launcher(
            self._cluster,
            self.stores.registry,
            entry=WORKER,
            logs=settings.home / "logs",
            sockets=self._run,
        )
        memory = settings.memory_bytes or int(machine_memory() * MEMORY_SHARE)
        return Reconciler(
            self.stores.database,
            launcher,
            NodeLimits(settings.threads, memory, settings.limits.load_seconds),
            notify_gateways=self._notify_gateways,
            tally=self._tally,
        )

    def start(self) -> None:
        """Bring the database up to date, take over what an earlier run left, start the gateway."""
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, lambda *_: self._stopping.set())
        self.stores.database.migrate()
        key = ensure_admin_key(self.stores.database, self.settings.home)
        self._workers.recover()
        self._jobs.recover()
        self.stores.datasets.recover()
        self._gateways = [
            self._start_gateway() for _ in range(self.settings.gateways)
        ]
        self._workers.tick()
        self._wait_for_gateways()
        self._announce(key)

    def _announce(self, key: Path) -> None:
        """Leave the addresses in the home, and tell them to the person who started it."""
        home = self.settings.home
        url = address_of(self.settings)
        grpc_address = _with_port(self.settings.host, self.settings.grpc_port)
        (home / "grpc_address").write_text(grpc_address + "\n")
        (home / "address").write_text(url + "\n")
        say(
            f"modelmill {__version__} is ready at {url}  (admin API: {url}/docs, log in with any "
            "name and the key)"
        )
        say(f"gRPC (Open Inference Protocol v2): {grpc_address}")
        say(f"admin key: {key}")
        if warning := exposed_password(home):
            say(warning)
        if self.settings.certificate is None and not self._is_local():
            say(
                "warning: others can reach this address and nothing encrypts what they send: put "
                "TLS in front of it"
            )

    def _is_local(self) -> bool:
        """Whether only this machine can reach the address."""
        return ipaddress.ip_address(self._listener.getsockname()[0]).is_loopback

    def run(self) -> None:
        """The control loops, until asked to stop."""
        looked = 0.0
        while not self._stopping.is_set():
            self._ear.wait(TICK_SECONDS)
            try:
                self._keep_gateways()
                news = (
                    self._listen() or time.monotonic() - looked > LOOK_SECONDS
                )
                looked = time.monotonic() if news else looked
                for loop in (self._workers, self._jobs):
                    self._tick(loop, news)
            except MillError as error:
                # Such as a full disk: predictions go on, the loops try again.
                log.error("%s", error)
                self._stopping.wait(1)

    def _tick(self, loop: Reconciler | JobRunner, news: bool) -> None:
        """One round; a fault in one loop must neither end the platform nor stop the other loop."""
        try:
            loop.tick(news)
        except MillError as error:
            log.error("%s", error)
        except Exception:
            log.exception("a control loop failed")

    def stop(self) -> None:
        """Drain and end everything: the gateway answers what it has, then the workers go, jobs keep
        a checkpoint.
        """
        say("stopping: answering what was accepted ...")
        for name in ("address", "grpc_address"):
            (self.settings.home / name).unlink(missing_ok=True)
        self._listener.close()
        self._grpc_listener.close()
        self._stop_gateways()
        self._ear.close()
        patience = time.monotonic() + self.settings.drain_seconds
        with suppress(MillError):
            self._jobs.stop(patience)
        self._workers.stop()
        _clear(self._run)
        self.stores.database.close()
        say("stopped")

    def _stop_gateways(self) -> None:
        """Let them answer what they have, for as long as settings say."""
        patience = time.monotonic() + self.settings.drain_seconds + 2
        terminate_all(self._gateways, patience)
        for gateway in self._gateways:
            gateway.kill()

    def _start_gateway(self) -> Handle:
        self._gateway_started = time.monotonic()
        descriptors = self._listener.fileno(), self._grpc_listener.fileno()
        spec = GatewaySpec(
            settings=self.settings.model_dump(mode="json"),
            descriptor=descriptors[0],
            grpc_descriptor=descriptors[1],
        )
        return self._cluster.start(
            "modelmill.gateway_process:main",
            spec,
            title="modelmill: gateway",
            log=self.settings.home / "logs" / "gateway.log",
            env={"MALLOC_ARENA_MAX": "2", "OMP_NUM_THREADS": "1"},
            fds=descriptors,
        )

    def _wait_for_gateways(self) -> None:
        waiting = list(self._gateways)
        while waiting and not self._stopping.is_set():
            waiting = [
                one
                for one in waiting
                if not any(message.get("ready") for message in one.messages())
            ]
            if any(one.exit_code() is not None for one in waiting):
                where = self.settings.home / "logs" / "gateway.log"
                raise MillError(
                    f"the gateway ended as it started; {where} says why"
                )
            self._workers.tick()
            time.sleep(TICK_SECONDS / 5)

    def _keep_gateways(self) -> None:
        """Replace gateways that have ended; more slowly when they do not even start."""
        for place, gateway in enumerate(self._gateways):
            if gateway.exit_code() is None or time.monotonic() < self._again:
                continue
            log.error("a gateway (pid %d) ended; starting another", gateway.pid)
            gateway.kill()
            lived = time.monotonic() - self._gateway_started
            self._again = time.monotonic() + (
                0.0 if lived > LOOK_SECONDS * 5 else LOOK_SECONDS
            )
            self._gateways[place] = self._start_gateway()

    def _listen(self) -> bool:
        """What the gateways have said: how queues stand, which workers hang, what was counted, and
        (returned) whether they have changed the database.
        """
        changed = False
        for news in self._ear.news():
            changed |= news.changed
            self._meter.receive(news.gateway, news.series, {})
            for load in news.load:
                self._record_load(news.gateway, load)
            for path in news.hung:
                self._workers.end_hung(path)
        return changed

    def _record_load(self, gateway: str, load: Load) -> None:
        """Pass on how a queue stands; more workers of the main version help no canary and no
        shadow, whose waiting calls do not count.
        """
        signals = Signals(idle_seconds=load.idle_seconds)
        if load.slot == "main":
            signals = Signals(
                load.waiting, load.oldest, load.busy, load.idle_seconds
            )
        self._workers.record_signals(
            f"{gateway} {load.slot}", load.project, load.deployment, signals
        )

    def _notify_gateways(self) -> None:
        """Let the gateways look into the database now."""
        self._ear.tell(News(self._ear.name, {}, [], [], changed=True))

    def _tally(self, place: tuple[str, str, str]) -> Tally:
        series = self._meter.total(place)
        return Tally(series.success, series.failure, series.success_seconds)


def address_of(settings: Settings) -> str:
    """The URL of the platform; an IPv6 address goes into brackets."""
    scheme = "https" if settings.certificate else "http"
    return f"{scheme}://{_with_port(settings.host, settings.port)}"


def _with_port(host: str, port: int | None) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _clear(folder: Path) -> None:
    """Remove the sockets that processes leave behind."""
    for path in [*folder.glob("*.sock"), *folder.glob("*.gossip")]:
        path.unlink(missing_ok=True)


def say(line: str) -> None:
    """A line for the person who started the platform."""
    print(line, flush=True)


def _demonstrate(demo: Callable[[Settings], None], settings: Settings) -> None:
    try:
        demo(settings)
    except MillError as error:
        print(
            f"the demonstration stopped: {error}", file=sys.stderr, flush=True
        )


def _make_home(home: Path) -> None:
    try:
        home.mkdir(mode=stat.S_IRWXU, parents=True, exist_ok=True)
        for name in ("artifacts", "jobs", "logs"):
            (home / name).mkdir(exist_ok=True)
    except OSError as error:
        raise from_os(error, f"using {home} as the home") from error


def _lock(home: Path) -> IO[str]:
    """The home's lock, held until the process ends however that happens; raises `Conflict`."""
    file = (home / "lock").open("a+")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        file.seek(0)
        holder = file.read().strip() or "unknown"
        file.close()
        raise Conflict(
            f"a platform already runs on {home} (pid {holder}): stop it, or name another home "
            "with --home"
        ) from error
    file.truncate(0)
    file.write(str(os.getpid()))
    file.flush()
    return file


def _bind_grpc(settings: Settings) -> socket.socket:
    port = settings.grpc_port
    if port is None:
        port = settings.port + 1 if settings.port else 0
    return _bind(settings.host, port, "--grpc-port")


def _bind(host: str, port: int, option: str = "--port") -> socket.socket:
    """A listening socket; raises `Conflict` for a taken port and `InvalidInput` for an impossible
    address.
    """
    family, address = _address(host, port)
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind(address)
        listener.listen(2048)
    except OSError as error:
        listener.close()
        if error.errno == errno.EADDRINUSE:
            raise Conflict(
                f"port {port} of {host} is taken: choose another with {option} (0: any free one)"
            ) from error
        raise InvalidInput(
            f"can't listen on {host}:{port}: {error.strerror}"
        ) from error
    return listener


def _address(host: str, port: int) -> tuple[socket.AddressFamily, Any]:
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except OSError as error:
        raise InvalidInput(
            f"'{host}' is not an address to listen on: {error.strerror}"
        ) from error
    family, _, _, _, address = found[0]
    return family, address


def _kept(settings: Settings) -> LogLimits:
    return LogLimits(settings.logs.part_bytes, settings.logs.parts)


def _log_to(path: Path, limits: LogLimits) -> None:
    stream = path.open("a", encoding="utf-8")
    keep(path, limits, stream.fileno())
    logging.basicConfig(
        stream=stream,
        level=logging.INFO,
        format="%(asctime)s %(levelname)s %(name)s: %(message)s",
    )
    logging.getLogger("httpx2").setLevel(
        logging.WARNING
    )  # of the demonstration's client
