"""ClosurePush: a builder pushes closures to the cache, as part of a deployment."""

from __future__ import annotations

import base64
import hashlib
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pulumi
import pulumi_command as command

import push
from components.access import Credential
from components.text_object import declare_text_object

PUSH_SCRIPT = Path(push.__file__).with_name("push.sh")
"""What pushes. It lies in the bucket."""
FETCH_SCRIPT = Path(push.__file__).with_name("fetch_push.sh")
"""What a builder is sent: it fetches push.sh, checks it, and becomes it."""
PUSH_SCRIPT_KEY = "tools/push.sh"
"""Where push.sh lies in the bucket. No narinfo's name begins with a t, so no rule expires it."""

_LOADER = 'IFS= read -r -d "" script && exec bash <(printf %s "$script") "$@"'
"""Runs the script that standard input begins with, up to a NUL, and leaves it what follows.

A script that arrives incomplete is not run at all, so settings are never taken for commands. A
shell of its own runs it, from a file: `bash -c` itself forgets jobs that end while another command
runs (bash 5.2, `notify_of_job_status`), and a push that waits for such a job waits for ever.
"""


@cache
def bare_script(path: Path) -> str:
    """Return a script as it travels: without comments, indentation and empty lines.

    No text in it may have lines that begin with `#`, or mean something by their blanks.
    """
    lines = (line.lstrip() for line in path.read_text(encoding="utf-8").splitlines())
    return "".join(f"{line}\n" for line in lines if line and not line.startswith("#"))


def script_command(arguments: Sequence[str]) -> str:
    """Return the command line, for a login shell, of a script that standard input begins with."""
    return shlex.join(["bash", "-c", _LOADER, "push.sh", *arguments])


def push_command(store_paths: Sequence[str]) -> str:
    """Return the command line that a builder's login shell is given.

    It names what is pushed, and the SHA-256 of what pushes it, so that a preview shows both, and
    nothing that is secret.
    """
    program = hashlib.sha256(bare_script(PUSH_SCRIPT).encode()).hexdigest()
    return script_command([program, "--config", "-", *store_paths])


def push_settings(
    values: Mapping[str, str | int | None], lists: Mapping[str, Sequence[str]]
) -> str:
    """Return settings as push.sh reads them: `name=value` lines, unset ones left out.

    Raises:
        ValueError: a value has a line break; the message names the setting only.
    """
    lines = [(name, str(value)) for name, value in values.items() if value is not None]
    lines += [(name, value) for name, elements in lists.items() for value in elements]
    for name, value in lines:
        if "\n" in value or "\r" in value:
            raise ValueError(f"{name} has a line break")
    return "".join(f"{name}={value}\n" for name, value in lines)


@dataclass(frozen=True, kw_only=True)
class BuilderPush:
    """What one builder pushes, and as whom."""

    closures: pulumi.Input[Sequence[str]]
    """Store paths, or links to them, on the builder."""
    credential: Credential
    """The builder's user on the server."""
    connection: command.remote.ConnectionArgs | None = None
    """How SSH reaches the builder; None where it is the machine that runs Pulumi."""


@dataclass(frozen=True, kw_only=True)
class ClosurePushArgs:
    """What is pushed, from where, to where, and signed by which key."""

    builders: Mapping[str, BuilderPush]
    """The builders that push, by name."""
    endpoint: pulumi.Input[str]
    """The S3 server: scheme, host and port."""
    bucket: pulumi.Input[str]
    """The bucket."""
    signing_keys: pulumi.Input[Sequence[pulumi.Input[str]]]
    """Secret keys in Nix's format; the last one signs."""
    upstream_keys: pulumi.Input[Sequence[str]]
    """Names of keys whose paths are not ours to store."""
    region: pulumi.Input[str] = "us-east-1"
    """The server's region."""
    ca_certificate: pulumi.Input[str] | None = None
    """PEM text of the private CA that signed the server's certificate."""
    retention_days: pulumi.Input[int] | None = 7
    """Days after which an entry expires; a push renews all that it finds. None is for ever."""
    compression: pulumi.Input[str] = "zstd"
    """`zstd`, `xz` or `none`."""
    compression_level: pulumi.Input[int] | None = None
    """The compression's level; None leaves it to Nix."""
    parallelism: pulumi.Input[int] = 1
    """How many `nix copy` run side by side, each on all cores."""
    staging_limit: pulumi.Input[int] | None = None
    """Bytes of compressed NARs that may wait on the builder's disk; None leaves it to push.sh."""


class ClosurePush(pulumi.ComponentResource):
    """Runs push.sh on a builder whenever what it is to push, or how, has changed.

    push.sh itself is in the bucket once, not in each command: the engine keeps what a command is
    given twice in the state, and handles each byte of it dozens of times in a preview. The signing
    key and the users' secrets reach the builders on standard input only. Destroying it runs
    nothing: what was pushed stays until it expires.
    """

    summaries: dict[str, pulumi.Output[str]]
    """Each builder's last push in one line, by the builder's name: what was pushed, reused,
    skipped, renewed and repaired."""

    def __init__(
        self, name: str, args: ClosurePushArgs, opts: pulumi.ResourceOptions | None = None
    ) -> None:
        """Declare the pushes; their resources carry the builders' names."""
        super().__init__("nixcache:index:ClosurePush", name, None, opts)
        program = declare_text_object(
            f"{name}-push.sh",
            bucket=args.bucket,
            key=PUSH_SCRIPT_KEY,
            content_type="text/x-shellscript; charset=utf-8",
            content=bare_script(PUSH_SCRIPT),
            opts=pulumi.ResourceOptions(parent=self),
        )
        child = pulumi.ResourceOptions(parent=self, depends_on=[program])
        shared = _shared_settings(args)
        self.summaries = {
            builder: _declare_push(builder, push, shared, child)
            for builder, push in args.builders.items()
        }
        self.register_outputs({})


def _shared_settings(args: ClosurePushArgs) -> pulumi.Output[str]:
    """Return what standard input begins with on every builder: a script, and most settings."""
    return pulumi.Output.all(
        values={
            "endpoint": args.endpoint,
            "region": args.region,
            "bucket": args.bucket,
            "ca-certificate": (
                None
                if args.ca_certificate is None
                else pulumi.Output.from_input(args.ca_certificate).apply(
                    lambda pem: base64.b64encode(pem.encode()).decode()
                )
            ),
            "retention-days": args.retention_days,
            "compression": args.compression,
            "compression-level": args.compression_level,
            "parallelism": args.parallelism,
            "staging-limit": args.staging_limit,
        },
        lists={"signing-key": args.signing_keys, "upstream-key": args.upstream_keys},
    ).apply(
        lambda given: (
            bare_script(FETCH_SCRIPT)
            + "\0"
            + push_settings(_whole_numbers(given["values"]), given["lists"])
        )
    )


def _declare_push(
    builder: str, push: BuilderPush, shared: pulumi.Output[str], opts: pulumi.ResourceOptions
) -> pulumi.Output[str]:
    """Declare the command that pushes from one builder, and return what it prints."""
    create = pulumi.Output.from_input(push.closures).apply(push_command)
    credential = pulumi.Output.all(
        **{
            "access-key-id": push.credential.access_key_id,
            "secret-access-key": push.credential.secret_access_key,
        }
    )
    stdin: pulumi.Output[str] = pulumi.Output.secret(
        pulumi.Output.concat(shared, credential.apply(lambda values: push_settings(values, {})))
    )
    if push.connection is None:
        return command.local.Command(
            f"{builder}-command",
            create=create,
            stdin=stdin,
            add_previous_output_in_env=False,
            logging=command.local.Logging.STDERR,
            opts=opts,
        ).stdout
    return command.remote.Command(
        f"{builder}-command",
        connection=push.connection,
        create=create,
        stdin=stdin,
        add_previous_output_in_env=False,
        logging=command.remote.Logging.STDERR,
        opts=opts,
    ).stdout


def _whole_numbers(values: Mapping[str, str | float | None]) -> dict[str, str | int | None]:
    """Return `values` with the engine's floating-point numbers as the integers they were."""
    return {
        name: int(value) if isinstance(value, float) else value for name, value in values.items()
    }
