"""A loopback proxy that makes a server as far away as its round trip says.

Whatever comes is passed on half a round trip later, in each direction. A connection's first bytes
wait a round trip more, as they would for TCP's handshake.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Iterator
from contextlib import contextmanager

_BLOCK = 1 << 18


@contextmanager
def distant(host: str, port: int, round_trip: float) -> Iterator[int]:
    """Run a proxy to a server, `round_trip` seconds away; the value is the proxy's port."""
    loop = asyncio.new_event_loop()
    started = threading.Event()
    ports: list[int] = []
    tasks: set[asyncio.Task[None]] = set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            far_reader, far_writer = await asyncio.open_connection(host, port, limit=_BLOCK)
        except OSError:
            writer.close()
            return
        await asyncio.gather(
            _pass_on(reader, far_writer, round_trip / 2, first=round_trip),
            _pass_on(far_reader, writer, round_trip / 2, first=0.0),
        )

    async def run() -> None:
        server = await asyncio.start_server(serve, "127.0.0.1", 0, backlog=256, limit=_BLOCK)
        ports.append(server.sockets[0].getsockname()[1])
        started.set()
        async with server:
            await server.serve_forever()

    def main() -> None:
        asyncio.set_event_loop(loop)
        task = loop.create_task(run())
        tasks.add(task)
        with contextlib.suppress(asyncio.CancelledError):
            loop.run_until_complete(task)
        for left in asyncio.all_tasks(loop):
            left.cancel()
        loop.run_until_complete(asyncio.sleep(0))

    thread = threading.Thread(target=main, daemon=True)
    thread.start()
    started.wait()
    try:
        yield ports[0]
    finally:
        loop.call_soon_threadsafe(lambda: [task.cancel() for task in tasks])
        thread.join()


async def _pass_on(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, delay: float, first: float
) -> None:
    """Pass on what is read, each piece `delay` seconds later, the first ones by `first` more."""
    loop = asyncio.get_running_loop()
    pieces: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue(maxsize=256)
    opened = loop.time() + first

    async def read() -> None:
        data = b"-"
        while data:
            try:
                data = await reader.read(_BLOCK)
            except OSError:
                data = b""
            await pieces.put((max(loop.time(), opened) + delay, data))

    reading = loop.create_task(read())
    with contextlib.suppress(OSError):
        while True:
            due, data = await pieces.get()
            if due > loop.time():
                await asyncio.sleep(due - loop.time())
            if not data:
                break
            writer.write(data)
            await writer.drain()
    reading.cancel()
    with contextlib.suppress(OSError):
        writer.close()
