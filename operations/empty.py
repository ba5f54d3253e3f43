"""Removes what a stack's bucket holds, every version of it, for good.

What the program itself keeps in the bucket stays, unless `--all` is given: the cache goes on as an
empty one, or `pulumi destroy --run-program` removes it with the stack. With NAMES, only the objects
of those names go. A bucket of the stack that the settings do not name any more is about to go:
where it holds anything, it is emptied, and not the cache's. A person confirms it by typing the
bucket's name, on standard input. Exit code 0: it is done; 1: it was not confirmed; 2: it could not
be done.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import replace

from formats.printable import SHOWN, listed, printable
from formats.s3 import ListedVersion
from operations.bucket import Bucket, Credential
from operations.command_line import DONE, FOUND, Parser, Progress, run
from operations.deployed_stack import read_settings
from operations.pulumi_cli import OperationError
from operations.state import read_state
from program.checks import same_server
from program.checks.deployment import server_of
from program.checks.server_error import ServerError
from program.outputs.counted import counted
from program.settings.reader import SettingError
from program.settings.stack import Settings


def main(arguments: Sequence[str] | None = None) -> int:
    """Empty the bucket of the stack that the command line names; return the exit code."""
    parser = Parser("empty", "[--all] [NAMES]", __doc__)
    parser.add_argument("names", nargs="*", metavar="NAMES", help="only the objects of these names")
    parser.add_argument("--all", action="store_true", help="what the program keeps there, too")
    chosen = parser.parse_args(arguments)
    return run(lambda: _empty(chosen.stack, frozenset(chosen.names), everything=chosen.all))


def _empty(stack: str, names: Collection[str], *, everything: bool) -> int:
    settings, state = read_settings(stack), read_state(stack)

    def emptied(bucket: str) -> int | None:
        kept = () if everything else state.objects(bucket)
        return empty_one(stack, replace(settings, bucket=bucket), names, kept)

    try:
        server = server_of(settings)
        same_server.check(settings, server, state)
        # Whoever is told to empty what goes must not be asked for the cache in its place.
        going = [one for one in state.going(settings.bucket) if server.lifecycle(one) is not None]
        done = [code for code in map(emptied, going) if code is not None]
        if not done and settings.bucket in state.buckets:
            code = emptied(settings.bucket)
            if code is None and names:
                raise OperationError(
                    f"bucket {settings.bucket} has no object of the name {listed(sorted(names))}"
                )
            done = [code or DONE]
    except ServerError as error:
        raise OperationError(f"{error.setting}: {error}") from None
    except SettingError as error:
        raise OperationError(str(error)) from None
    return max(done, default=DONE)


def empty_one(
    stack: str, settings: Settings, names: Collection[str], kept: Collection[str]
) -> int | None:
    """Empty the bucket of these settings; return the exit code, None where it holds nothing.

    Args:
        stack: the stack's name, for messages.
        settings: name the bucket, its server and the deploying user.
        names: of the objects that are to go; without any, all of them.
        kept: of the objects that stay even then, but for the versions of before.

    Raises:
        ServerError: no answer, no such bucket, or the server refuses to.
        OperationError: more came meanwhile.
    """
    bucket = Bucket(settings, Credential(settings.minio_user, settings.minio_password))
    wanted = _Wanted(names, kept, Progress("empty"))
    count, size = wanted.measure(bucket.versions())
    if count == 0:
        if not names:
            print(f"bucket {settings.bucket} holds nothing to remove")
        return None
    objects = counted(count, "object or version", "objects and versions")
    of_names = " of these names" if names else ""
    unknown = sorted(set(names) - wanted.found)
    nothing_of = f" It has none of the name {listed(unknown)}." if unknown else ""
    print(
        f"stack {stack}: bucket {settings.bucket} at {settings.endpoint} holds "
        f"{objects}{of_names}, {counted(size, 'byte')}, to remove for good.{nothing_of}\n"
        "Type the bucket's name to remove them: ",
        end="",
        file=sys.stderr,
        flush=True,
    )
    if sys.stdin.readline().strip() != settings.bucket:
        print("error: that is not its name; nothing was removed", file=sys.stderr)
        return FOUND
    _remove(bucket, wanted, count, settings)
    left, _ = wanted.measure(bucket.versions())
    if left:
        raise OperationError(
            f"{counted(left, 'object')} came while the others went; stop what pushes to "
            f"{settings.bucket}, and run it again"
        )
    print(f"removed {counted(count, 'object')} from bucket {settings.bucket}")
    return DONE


def _remove(bucket: Bucket, wanted: _Wanted, count: int, settings: Settings) -> None:
    """Remove what is wanted, `count` versions of objects when they were counted.

    Raises:
        OperationError: some or all of them are still there; it says how many have gone.
    """
    gone, refused = 0, dict[str, str]()
    try:
        for removal in bucket.remove(wanted.of(bucket.versions())):
            gone += removal.gone
            refused |= removal.refused
            wanted.tell(gone, count)
    except ServerError as error:
        raise OperationError(
            f"{error.setting}: {error}; at least {gone:,} of {counted(count, 'object')} went "
            "before that, and the rest goes when it is run again"
        ) from None
    if refused:
        why = printable(next(iter(refused.values())), SHOWN)
        raise OperationError(
            f"the server removed {gone:,} of {counted(count, 'object')} and not "
            f"{listed(list(refused))} ({why}); let {settings.minio_user} delete it, lift what "
            "locks it, or see the server's log, and run it again"
        )


class _Wanted:
    """Which of a bucket's objects are to go."""

    def __init__(
        self, names: Collection[str], kept: Collection[str], progress: Callable[[str], None]
    ) -> None:
        self._names = names
        self._kept = kept
        self._progress = progress
        self.found: set[str] = set()
        """The names that were asked for and that `measure` has come upon."""

    def __contains__(self, version: ListedVersion) -> bool:
        if self._names:
            return version.key in self._names
        return not (version.current and version.key in self._kept)

    def measure(self, versions: Iterator[ListedVersion]) -> tuple[int, int]:
        """Return how many versions are to go, and how many bytes they have."""
        count = size = 0
        for version in versions:
            if version in self:
                count, size = count + 1, size + version.size
                if self._names:
                    self.found.add(version.key)
                self._progress(f"{count:,} objects counted")
        return count, size

    def of(self, versions: Iterator[ListedVersion]) -> Iterator[ListedVersion]:
        """Yield the versions that are to go."""
        return (version for version in versions if version in self)

    def tell(self, gone: int, count: int) -> None:
        """Say how many have gone."""
        self._progress(f"{gone:,} of {count:,} objects removed")


if __name__ == "__main__":
    sys.exit(main())
