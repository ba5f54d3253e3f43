"""Shows on one screen what is known of a stack's cache: builders, pins, what expires when.

It lists the bucket once, and reads what each builder has left there of its last push, and what pins
keep. It changes nothing. Exit code 1: a builder has not pushed all it has for half of the
retention and for 26 hours, what it tells cannot be read, or a pin is incomplete; 0: none of it; 2:
it could not be told.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import datetime, timezone
from pathlib import Path

from components.retention import NAR_FOLDER, expirations, is_folder
from formats.push_status import LARGEST_STATUS
from formats.s3 import ListedObject
from operations.cache_client import CACHE_INFO
from operations.cache_status import Rules, Seen, Status, asked_for, evaluate
from operations.command_line import DONE, FOUND, Parser, Progress, run
from operations.deployed_stack import DeployedStack, read_deployed
from operations.output_file import STANDARD_OUTPUT, write_whole
from operations.pinned_closures import PinnedClosures, is_about_one_object
from operations.pulumi_cli import OperationError
from operations.status_text import as_json, as_prometheus, screen
from program.checks.deployment import server_of
from program.checks.recorded import COMMANDS, RETENTION_OUTPUT, SIGNING_KEY, Recorded
from program.checks.s3_client import Server
from program.checks.server_error import ServerError
from program.outputs.machines import retention_in_words
from program.settings.stack import Settings

_AT_ONCE = 8


def status_of(stack: DeployedStack, state: Recorded, operation: str) -> Status:
    """Return what is known of a stack's cache.

    Args:
        stack: the stack.
        state: its state, as the last deployment left it.
        operation: who asks, for what is said meanwhile.

    Raises:
        OperationError: the server does not answer, or refuses the user.
    """
    try:
        seen = _seen(stack, state, Progress(operation))
    except ServerError as error:
        raise OperationError(f"{error.setting}: {error}") from None
    rules = rules_in_force(stack.settings, state)
    status = evaluate(
        stack.name,
        stack.substituter,
        [key.name for key in stack.public_keys],
        stack.builders,
        {**stack.signed_by, **signers(state)},
        rules,
        seen,
        datetime.now(timezone.utc),
    )
    meant = rules_of(stack.settings)
    return replace(
        status,
        public_keys=tuple(str(key) for key in stack.public_keys),
        pending=None if meant == rules else meant,
    )


def rules_of(settings: Settings) -> Rules:
    """Return how long a stack's cache is to keep what nobody pushes, by its settings."""
    return Rules(
        settings.retention_days,
        settings.rule_days,
        settings.grace_days,
        settings.expires_at_midnight,
    )


def rules_in_force(settings: Settings, state: Recorded) -> Rules:
    """Return how long a stack's cache keeps what nobody pushes, by the last deployment.

    A setting that was changed since takes and keeps nothing. Where the state does not tell, the
    settings do.

    Args:
        settings: the stack's settings.
        state: its state.
    """
    meant = rules_of(settings)
    days = expirations(state.lifecycle_rules(settings.bucket))
    entries = min((n for prefix, n in days.items() if not is_folder(prefix)), default=None)
    if entries is None:
        never = retention_in_words(replace(settings, retention_days=None))
        if state.stack_output(RETENTION_OUTPUT) != never:
            return meant
        return replace(meant, retention_days=None, rule_days=None)
    # When expiry is rounded up is the server's way, which no deployment changes.
    promised = entries if settings.expires_at_midnight else max(1, entries - 1)
    grace = days.get(NAR_FOLDER, entries + meant.grace_days) - entries
    return Rules(promised, entries, grace, settings.expires_at_midnight)


def signers(state: Recorded) -> dict[str, str]:
    """Return the name of the key that builders have been given to sign with, by the builder's name.

    The outputs name the key that the next deployment gives them, where one has made keys alone. Of
    a builder that no command reaches they alone tell.
    """
    secrets = {
        str(key["secret_key"]): str(key["key_name"])
        for key in state.outputs(SIGNING_KEY)
        if "secret_key" in key
    }
    given = [str(one.get("stdin")) for type_ in COMMANDS for one in state.outputs(type_)]
    found = {}
    for name, builder in (state.stack_output("builders") or {}).items():
        own = str(builder.get("secretAccessKey"))
        for secret, key in secrets.items():
            if any(own in text and secret in text for text in given):
                found[str(name)] = key
    return found


def _seen(stack: DeployedStack, state: Recorded, progress: Progress) -> Seen:
    settings = stack.settings
    server = server_of(settings)
    objects: list[ListedObject] = []
    for one in server.listing(settings.bucket):
        objects.append(one)
        progress(f"{len(objects):,} objects listed")

    def read(name: str, most: int) -> bytes | None:
        try:
            return server.read(settings.bucket, name, most)
        except ServerError as error:
            # Where it finds the damage only as it answers, it can but hang up.
            if error.reachable or not _answers(server, settings.bucket):
                raise
            raise ServerError("endpoint", "the server does not give it; see its log") from None

    def status(name: str) -> bytes:
        try:
            return read(name, LARGEST_STATUS) or b""
        except ServerError as error:
            if not is_about_one_object(error):
                raise
            return b""

    with ThreadPoolExecutor(_AT_ONCE) as threads:
        told = asked_for(objects, stack.builders.values())
        statuses = dict(zip(told, threads.map(status, told.values()), strict=True))
        sizes = {one.key: one.size for one in objects}
        closures = PinnedClosures(read, sizes, stack.public_keys, threads)
        return Seen(objects, statuses, closures.all(), closures.path_of, state.users_since)


def _answers(server: Server, bucket: str) -> bool:
    """Return whether the server answers another question, whatever it says."""
    try:
        server.etag(bucket, CACHE_INFO)
    except ServerError as error:
        return error.reachable
    return True


def main(arguments: Sequence[str] | None = None) -> int:
    """Show the status of the stack that the command line names; return the exit code."""
    parser = Parser("status", "[--json FILE] [--prometheus FILE]", __doc__)
    what = "; - prints it in place of the screen"
    parser.add_argument("--json", metavar="FILE", help=f"write all of it as JSON{what}")
    parser.add_argument(
        "--prometheus", metavar="FILE", help=f"write metrics for node_exporter{what}"
    )
    chosen = parser.parse_args(arguments)
    return run(lambda: _status(chosen.stack, chosen.json, chosen.prometheus))


def _status(stack: str, json_file: str | None, prometheus_file: str | None) -> int:
    status = status_of(*read_deployed(stack), "status")
    wanted = [(json_file, as_json), (prometheus_file, as_prometheus)]
    printed = [render(status) for file, render in wanted if file == STANDARD_OUTPUT]
    print("".join(printed) if printed else f"{screen(status)}\n", end="")
    # Afterwards: what cannot be written has not been looked at for nothing.
    for file, render in wanted:
        if file not in (None, STANDARD_OUTPUT):
            write_whole(Path(file), render(status))
    return FOUND if status.findings else DONE


if __name__ == "__main__":
    sys.exit(main())
