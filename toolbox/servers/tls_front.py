"""TLS in front of a server that speaks plain TCP on loopback, as a person's reverse proxy is."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
import threading
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from functools import partial

from toolbox.certificates import Authority

_BLOCK = 1 << 16


Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]


def to_port(port: int) -> Callable[[], Awaitable[Streams]]:
    """Return what connects to a port of loopback."""
    return partial(asyncio.open_connection, "127.0.0.1", port)


@contextmanager
def tls_front(
    connect: Callable[[], Awaitable[Streams]],
    authority: Authority,
    prepare: Callable[[], None] = lambda: None,
) -> Iterator[int]:
    """Accept TLS on a free port of loopback, and pass on what comes; the value is the port.

    Args:
        connect: connects to what is behind, once for each connection.
        authority: has the certificate.
        prepare: called in the thread that connects, before it does.
    """
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(authority.server_certificate, authority.server_key)
    loop = asyncio.new_event_loop()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        # Cancelled when the front closes: asyncio would write a stack trace of it.
        with contextlib.suppress(OSError, asyncio.CancelledError):
            try:
                behind_reader, behind_writer = await connect()
            except OSError:
                writer.transport.abort()
                return
            await asyncio.gather(_pass_on(reader, behind_writer), _pass_on(behind_reader, writer))

    def run() -> None:
        prepare()
        loop.run_forever()

    server = loop.run_until_complete(asyncio.start_server(serve, "127.0.0.1", 0, ssl=context))
    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    try:
        yield int(server.sockets[0].getsockname()[1])
    finally:
        asyncio.run_coroutine_threadsafe(_end(server), loop).result(20)
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


async def _pass_on(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Copy until the other side ends, then end this one: TLS knows no half-closed connection."""
    try:
        with contextlib.suppress(OSError):
            while block := await reader.read(_BLOCK):
                writer.write(block)
                await writer.drain()
    finally:
        with contextlib.suppress(OSError):
            writer.close()


async def _end(server: asyncio.Server) -> None:
    server.close()
    running = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
    for task in running:
        task.cancel()
    await asyncio.gather(*running, return_exceptions=True)
