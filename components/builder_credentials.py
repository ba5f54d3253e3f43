"""BuilderCredentials: what a builder needs for pushes of its own, in files on its disk."""

from __future__ import annotations

import shlex
from dataclasses import dataclass

import pulumi
import pulumi_command as command

FILES = ("secret-access-key", "signing-key")
"""The files of a credentials directory, in the order of the lines that fill them."""

# $1 is the directory, the rest are the files' names. Each gets one line of standard input. A
# reader sees the old file or the new one, never a part.
_PLACE = """\
set -eu
if [ "$(id -u)" != 0 ]; then
  echo "credentialsDirectory: only root can place them; log in as root" >&2
  exit 1
fi
umask 077
directory=$1
shift
mkdir -p -- "$directory"
chmod 700 -- "$directory"
for name in "$@"; do
  IFS= read -r line
  printf '%s\\n' "$line" >"$directory/.$name.new"
  mv -f -- "$directory/.$name.new" "$directory/$name"
done
"""

_REMOVE = """\
set -eu
directory=$1
shift
[ -d "$directory" ] || exit 0
cd -- "$directory"
for name in "$@"; do
  rm -f -- "$name" ".$name.new"
done
cd /
rmdir -- "$directory" 2>/dev/null || true
"""


def place_command(directory: str) -> str:
    """Return the command line that writes the files from the lines on standard input."""
    return shlex.join(["sh", "-c", _PLACE, "place-credentials", directory, *FILES])


def remove_command(directory: str) -> str:
    """Return the command line that removes the files, and the directory once it is empty."""
    return shlex.join(["sh", "-c", _REMOVE, "remove-credentials", directory, *FILES])


@dataclass(frozen=True, kw_only=True)
class BuilderCredentialsArgs:
    """What is placed where."""

    directory: str
    """The directory on the builder; it is made, readable by root alone."""
    secret_access_key: pulumi.Input[str]
    """The secret of the builder's user on the S3 server."""
    signing_key: pulumi.Input[str]
    """The secret key that signs, in Nix's format."""
    connection: command.remote.ConnectionArgs | None = None
    """How SSH reaches the builder; None where it is the machine that runs Pulumi."""


class BuilderCredentials(pulumi.ComponentResource):
    """Files, each readable by root alone, that a builder's own pushes read.

    Secrets reach the builder on standard input. Destroying it removes the files, so the builder
    must be reachable then.
    """

    def __init__(
        self, name: str, args: BuilderCredentialsArgs, opts: pulumi.ResourceOptions | None = None
    ) -> None:
        """Declare the files; `name` is the prefix of its child's name."""
        super().__init__("nixcache:index:BuilderCredentials", name, None, opts)
        create = place_command(args.directory)
        delete = remove_command(args.directory)
        # Another host or directory is another set of files: the old one is removed first, because
        # two names may be one machine.
        triggers = ["" if args.connection is None else args.connection.host, args.directory]
        child = pulumi.ResourceOptions(parent=self, delete_before_replace=True)
        stdin: pulumi.Output[str] = pulumi.Output.secret(
            pulumi.Output.format("{0}\n{1}\n", args.secret_access_key, args.signing_key)
        )
        if args.connection is None:
            command.local.Command(
                f"{name}-files",
                create=create,
                delete=delete,
                stdin=stdin,
                triggers=triggers,
                add_previous_output_in_env=False,
                opts=child,
            )
        else:
            command.remote.Command(
                f"{name}-files",
                connection=args.connection,
                create=create,
                delete=delete,
                stdin=stdin,
                triggers=triggers,
                add_previous_output_in_env=False,
                opts=child,
            )
        self.register_outputs({})
