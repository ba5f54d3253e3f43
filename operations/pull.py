"""Pulls what a stack's builders pushed into an empty store, as a client does, and verifies it.

The client is this machine's Nix, or the one that a shell command reaches (`--over`). It trusts the
stack's keys alone, and the `upstreamKeys` of the caches that paths are left to. Nothing of it
stays. Prints one line. Exit code 0: all was pulled and verified; 2: it was not.
"""

from __future__ import annotations

import re
import secrets
import shlex
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote

from components.retention import is_cache_file
from formats.keys import PublicKey
from formats.printable import printable
from operations.bucket import Bucket
from operations.command_line import DONE, Parser, run
from operations.deployed_stack import DeployedStack, read_stack
from operations.pulumi_cli import OperationError
from operations.upstream import substituter

_LONGEST_REASON = 300

# Follows assignments to NIX_CONFIG, `ca` and the parameters, which are store paths; these are
# read-only, so they are opened before they go. Nix must not read the rest of the script.
_CLIENT = """\
set -eu
directory=$(mktemp -d)
trap 'chmod -R u+w "$directory"; rm -rf "$directory"' EXIT
trap 'exit 130' INT TERM HUP
export HOME=$directory XDG_CACHE_HOME=$directory/cache NIX_CONFIG
printf '%s' "$ca" >"$directory/ca.pem"
[ -z "$ca" ] || export NIX_SSL_CERT_FILE=$directory/ca.pem
began=$(date +%s%N)
nix-store --store "$directory/store" --realise "$@" </dev/null >/dev/null
ended=$(date +%s%N)
nix store verify --store "$directory/store" --recursive --sigs-needed 1 "$@" </dev/null
echo $(((ended - began) / 1000000))
nix path-info --store "$directory/store" --recursive --sigs "$@" </dev/null
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Pull from the stack that the command line names; return the exit code."""
    parser = Parser("pull", "", __doc__)
    parser.add_argument(
        "--over", metavar="COMMAND", default="", help="a shell command that reaches the client"
    )
    chosen = parser.parse_args(arguments)
    return run(lambda: _pull(chosen.stack, shlex.split(chosen.over)))


def _pull(name: str, over: Sequence[str]) -> int:
    stack = read_stack(name)
    paths = sorted({path for pushed in stack.closures.values() for path in pushed})
    if not paths:
        raise OperationError(
            f"stack {name} has pushed nothing yet; give a builder closures, and run make up "
            f"STACK={name}"
        )
    with _substituter(stack) as url:
        lines = _client(over, stack, url, paths)
    seconds = int(lines[0]) / 1000
    print(f"pulled {len(lines) - 1:,} paths in {seconds:.1f} s, {signers(stack, lines[1:])}")
    return DONE


def signers(stack: DeployedStack, paths: Sequence[str]) -> str:
    """Return in words whose signatures stand on paths.

    Args:
        stack: whose keys count first.
        paths: lines of a path, and the signatures on it (`nix path-info --sigs`).
    """
    named = [{word.partition(":")[0] for word in line.split()[1:] if ":" in word} for line in paths]
    trusted = [key.name for key in stack.public_keys]
    upstream = [PublicKey.parse(key).name for key in stack.settings.upstream_keys]
    everywhere = [name for name in trusted if all(name in names for names in named)]
    if everywhere:
        return f"all signed by {' and '.join(everywhere)}"
    counts = {name: sum(name in names for names in named) for name in (*trusted, *upstream)}
    return ", ".join(f"{count:,} signed by {name}" for name, count in counts.items() if count)


def _client(over: Sequence[str], stack: DeployedStack, url: str, paths: Sequence[str]) -> list[str]:
    """Let a client pull `paths` from `url`; return what it printed of them."""
    upstream = stack.settings.upstream_keys
    urls = [url, *filter(None, map(substituter, upstream))]
    keys = [*map(str, stack.public_keys), *upstream]
    configuration = (
        "experimental-features = nix-command\n"
        f"substituters = {' '.join(urls)}\n"
        f"trusted-public-keys = {' '.join(keys)}\n"
        "build-users-group =\n"
    )
    script = (
        f"NIX_CONFIG={shlex.quote(configuration)}\n"
        f"ca={shlex.quote(stack.settings.ca_certificate or '')}\n"
        f"set -- {shlex.join(paths)}\n{_CLIENT}"
    )
    command = [*over, "bash -s"] if over else ["bash", "-s"]
    try:
        done = subprocess.run(command, input=script, capture_output=True, text=True, check=False)
    except OSError as error:
        raise OperationError(f"{command[0]} cannot be run ({error.strerror})") from None
    if done.returncode != 0:
        raise OperationError(
            f"the client could not pull what {stack.name} has pushed: {_reason(done)}; "
            f"make audit STACK={stack.name} says what clients do not get"
        )
    return done.stdout.splitlines()


def _reason(done: subprocess.CompletedProcess[str]) -> str:
    lines = [line.strip() for line in done.stderr.splitlines() if line.strip()]
    errors = [line for line in lines if re.match(r"(error|warning):", line)]
    reason = (errors or lines or [f"exit code {done.returncode}"])[-1]
    # What Nix prints may hold a narinfo's text, which is anybody's.
    plain = re.sub(r"\x1b\[[0-9;]*m", "", reason).removeprefix("error: ")
    return printable(plain, _LONGEST_REASON)


@contextmanager
def _substituter(stack: DeployedStack) -> Iterator[str]:
    """Give the URL to pull from, one of our own for a private cache.

    Not every Nix can sign requests to S3. Each of its requests is answered with where the reader
    would send it, signed. Other users of this machine reach it as well, and do not know its path,
    which is in no process's arguments.
    """
    if stack.reader is None:
        yield stack.substituter
        return
    bucket = Bucket(stack.settings, stack.reader)
    path = f"/{secrets.token_urlsafe()}"

    class Redirect(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            place, _, name = unquote(self.path).removeprefix("/").partition("/")
            known = secrets.compare_digest(f"/{place}".encode(), path.encode())
            if known and is_cache_file(name):
                self.send_response(307)
                self.send_header("Location", bucket.url(self.command, name))
            else:
                self.send_response(404)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def do_HEAD(self) -> None:
            self.do_GET()

        def log_message(self, *_: object) -> None:
            pass

    class Server(ThreadingHTTPServer):
        def handle_error(self, *_: object) -> None:
            # Whoever asks oddly, or hangs up, is not the operator's business.
            pass

    with Server(("127.0.0.1", 0), Redirect) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}{path}"
        finally:
            server.shutdown()
            thread.join()


if __name__ == "__main__":
    sys.exit(main())
