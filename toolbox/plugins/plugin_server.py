"""How a plugin process talks to the engine: its gRPC server, its lifetime, its log lines.

Source of fact: the engine's `sdk/go/common/resource/plugin` (the first line on standard output is
the port; the last argument is the engine's own address) and `sdk/proto/engine.proto`.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import grpc
from pulumi.runtime.proto import engine_pb2, engine_pb2_grpc

MESSAGE_LIMIT = 400 * 1024 * 1024
"""Bytes in the largest message either side accepts: the engine's own limit."""

CHANNEL_OPTIONS = [("grpc.max_receive_message_length", MESSAGE_LIMIT)]

WORKERS = 256
"""Calls served at once: more than the engine makes, so that Cancel is never left waiting."""


LAST_SECONDS = 2.0
"""How long calls may take to end once the engine has gone."""


class Engine:
    """The engine that started this plugin: where log lines go, and whose end is ours too."""

    def __init__(self, address: str) -> None:
        """`address` is the engine's `host:port`."""
        self.address = address
        self._channel = grpc.insecure_channel(address, options=CHANNEL_OPTIONS)
        self._stub = engine_pb2_grpc.EngineStub(self._channel)

    def log(
        self, message: str, *, urn: str = "", level: str = "INFO", passing: bool = False
    ) -> None:
        """Show `message` beside the resource `urn`; a `passing` one is seen only while it runs.

        `level` is DEBUG, INFO, WARNING or ERROR. An engine that is gone is not an error here.
        """
        severity = engine_pb2.LogSeverity.Value(level)
        request = engine_pb2.LogRequest(
            severity=severity, message=message, urn=urn, ephemeral=passing
        )
        with contextlib.suppress(grpc.RpcError):
            self._stub.Log(request)

    def when_gone(self, act: Callable[[], object]) -> None:
        """Call `act` as soon as the engine has gone, however it went."""

        def watch(state: grpc.ChannelConnectivity) -> None:
            if state is grpc.ChannelConnectivity.TRANSIENT_FAILURE:
                act()
            elif state is grpc.ChannelConnectivity.IDLE:
                # What ended the connection shows when it is made again.
                self._channel.subscribe(lambda _: None, try_to_connect=True)

        self._channel.subscribe(watch)


def serve(register: Callable[[grpc.Server, Engine], Callable[[], None]]) -> None:
    """Serve what `register` adds to the server until the engine ends it or has gone.

    What `register` returns is called at the end, to bring the calls still served to theirs. The
    engine's address is this process's last argument.
    """
    if len(sys.argv) < 2 or sys.argv[-1].startswith("-"):
        sys.exit(f"{sys.argv[0]} is a Pulumi plugin: the engine starts it, with its own address")
    engine = Engine(sys.argv[-1])
    server = grpc.server(ThreadPoolExecutor(WORKERS), options=CHANNEL_OPTIONS)
    end_calls = register(server, engine)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    # Whichever thread a signal reaches, a byte arrives here.
    told, tell = os.pipe()
    os.set_blocking(tell, False)
    signal.set_wakeup_fd(tell)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: None)
    engine.when_gone(lambda: os.write(tell, b"\0"))
    print(port, flush=True)
    os.read(told, 1)
    end_calls()
    server.stop(grace=LAST_SECONDS).wait(2 * LAST_SECONDS)
    # A call that does not end must not keep the process, which nobody waits for any more.
    os._exit(0)
