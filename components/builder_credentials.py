"""BuilderCredentials: what a builder needs for pushes of its own, in files on its disk."""

from __future__ import annotations

import shlex
from dataclasses import dataclass

import pulumi
import pulumi_command as command

FILES = ("secret-access-key", "signing-key")
"""The files of a credentials directory, in the order of the lines that fill them."""

OWNER = ".placed-by"
"""The file that says which deployment's resource placed the others."""

# Whoever owns what the directory lies in may put a link in its place at any time, so where this has
# led to is looked at from within. Links above it are the machine's own. A shell's own pwd may say
# what was there before; the program asks the system.
_ENTER = """\
cd -P -- "$(dirname -- "$directory")"
within=$(env pwd -P)
within=${within%/}/$(basename -- "$directory")
cd -P -- "$within"
"""

# $1 is the directory, $2 who places, the rest are the files' names. Each gets one line of standard
# input. A reader sees the old file or the new one, never a part. The directory becomes root's
# alone, so it must be one that was made for this: not there, empty, or this program's already. One
# that others may write to somebody uses, whatever lies in it: they may have put that there, a
# .placed-by too. A full disk has left .placed-by empty where it was written at once, and then it is
# nobody's.
_PLACE = f"""\
set -eu
fail() {{
  printf 'credentialsDirectory: %s\\n' "$1" >&2
  exit 1
}}
[ "$(id -u)" = 0 ] || fail 'only root can place them; log in as root, or set sudo: true'
umask 077
directory=$1 owner=$2
shift 2
[ ! -L "$directory" ] || fail "$directory is a link; name the directory itself"
[ ! -e "$directory" ] || [ -d "$directory" ] || fail "$directory is no directory; name another"
[ ! -e "$directory" ] || [ -O "$directory" ] || fail "$directory is not root's; name another"
(umask 022 && mkdir -p -- "$(dirname -- "$directory")")
mkdir -p -- "$directory"
{_ENTER}\
[ "$(env pwd -P)" = "$within" ] || fail "$directory is a link; name the directory itself"
[ -O . ] || fail "$directory is not root's; name another"
case $(ls -ld .) in
  ?????w* | ????????w*) fail "others may write to $directory; name a directory of its own, or, \
if it is one, run chmod go-w $directory" ;;
esac
if [ -L {OWNER} ] || [ -e {OWNER} ]; then
  [ ! -L {OWNER} ] && [ -f {OWNER} ] && [ -O {OWNER} ] ||
    fail "$directory/{OWNER} is no file of root's; remove it"
fi
if [ -s {OWNER} ]; then
  IFS= read -r other <{OWNER} || :
  [ "${{other%% *}}" = "${{owner%% *}}" ] ||
    fail "the files in $directory are those of the stack ${{other%% *}}; name another directory, \
or remove $directory/{OWNER} if that was this one"
else
  set -f
  for file in $(ls -A); do
    name=${{file#.}}
    case " $* {OWNER[1:]} " in
      *" ${{name%.new}} "*) ;;
      *) fail "$directory holds other things, such as $file; name a directory of its own" ;;
    esac
  done
fi
for name in {OWNER} "$@"; do
  [ ! -d "$name" ] || fail "$directory/$name is a directory; remove it"
done
chmod 700 .
place() {{
  rm -f -- ".${{1#.}}.new"
  printf '%s\\n' "$2" >".${{1#.}}.new"
  mv -f -- ".${{1#.}}.new" "$1"
}}
place {OWNER} "$owner"
for name in "$@"; do
  IFS= read -r line
  place "$name" "$line"
done
"""

# $0 and what follows is the command to run. sudo says in many languages that it wants a password.
_AS_ROOT = """\
command -v sudo >/dev/null || {
  echo 'credentialsDirectory: this machine has no sudo; log in as root' >&2
  exit 1
}
sudo -n true 2>/dev/null || {
  echo 'credentialsDirectory: sudo asks this user for a password; let it run sh without one \
(NOPASSWD in sudoers), or log in as root' >&2
  exit 1
}
exec sudo -n -- "$0" "$@"
"""

# What another resource has placed since is not this one's to remove: it may be the same builder,
# under another name or over another way.
_REMOVE = f"""\
set -eu
directory=$1 owner=$2
shift 2
[ -d "$directory" ] && [ ! -L "$directory" ] || exit 0
{_ENTER}\
[ "$(env pwd -P)" = "$within" ] || exit 0
if [ -s {OWNER} ]; then
  IFS= read -r other <{OWNER} || :
  [ "$other" = "$owner" ] || exit 0
fi
for name in {OWNER} "$@"; do
  rm -f -- "$name" ".${{name#.}}.new"
done
cd /
rmdir -- "$directory" 2>/dev/null || true
"""


def place_name(host: str, port: int | None, directory: str) -> str:
    """Return where a builder's files are, as their resource's name.

    Args:
        host: what SSH connects to; empty for the machine that runs Pulumi.
        port: the port of its SSH server, where the host alone does not tell one machine.
        directory: an absolute one.
    """
    return f"{host}{'' if port is None else f':{port}'}{directory}"


def place_command(directory: str, owner: str, *, sudo: bool = False) -> str:
    """Return the command line that writes the files from the lines on standard input.

    Args:
        directory: where.
        owner: the stack and, after a blank, the resource that places them.
        sudo: whether whoever runs it is not root, and becomes it by sudo.
    """
    return _line(sudo, "sh", "-c", _PLACE, "place-credentials", directory, owner, *FILES)


def remove_command(directory: str, owner: str, *, sudo: bool = False) -> str:
    """Return the command line that removes the files, and the directory once it is empty.

    Args:
        directory: where.
        owner: who placed them; what somebody else has placed since stays.
        sudo: whether whoever runs it is not root, and becomes it by sudo.
    """
    return _line(sudo, "sh", "-c", _REMOVE, "remove-credentials", directory, owner, *FILES)


def _line(sudo: bool, *words: str) -> str:
    return shlex.join([*(("sh", "-c", _AS_ROOT) if sudo else ()), *words])


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
    sudo: bool = False
    """Whether the user that SSH logs in as becomes root by `sudo -n`."""
    before_placing: pulumi.ResourceHook | None = None
    """Asked before the files are written; it refuses by raising."""


class BuilderCredentials(pulumi.ComponentResource):
    """Files, each readable by root alone, that a builder's own pushes read.

    Secrets reach the builder on standard input. Destroying it removes the files, so the builder
    must be reachable then.
    """

    def __init__(
        self, name: str, args: BuilderCredentialsArgs, opts: pulumi.ResourceOptions | None = None
    ) -> None:
        """Declare the files; `name` says where they are, and is the prefix of its child's name."""
        super().__init__("nixcache:index:BuilderCredentials", name, None, opts)
        owner = f"{pulumi.get_project()}/{pulumi.get_stack()} {name}"
        create = place_command(args.directory, owner, sudo=args.sudo)
        delete = remove_command(args.directory, owner, sudo=args.sudo)
        # Another host or directory is another set of files, and should have another name.
        triggers = ["" if args.connection is None else args.connection.host, args.directory]
        hooks = None
        if args.before_placing is not None:
            hook = args.before_placing
            hooks = pulumi.ResourceHookBinding(before_create=[hook], before_update=[hook])
        child = pulumi.ResourceOptions(parent=self, delete_before_replace=True, hooks=hooks)
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
