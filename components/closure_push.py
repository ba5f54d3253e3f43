"""ClosurePush: a builder pushes closures to the cache, as part of a deployment."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import pulumi
import pulumi_command as command

from components.access import Credential
from components.push_program import PROGRAM_KEY, archive, bootstrap, push_command
from components.text_object import declare_binary_object
from push.settings import format_settings


@dataclass(frozen=True, kw_only=True)
class BuilderPush:
    """What one builder pushes, and as whom."""

    closures: pulumi.Input[Sequence[str]]
    """Store paths, or links to them, on the builder."""
    credential: Credential
    """The builder's user on the server."""
    signing_key: pulumi.Input[str]
    """The secret key that signs what it pushes, in Nix's format."""
    connection: command.remote.ConnectionArgs | None = None
    """How SSH reaches the builder; None where it is the machine that runs Pulumi."""


@dataclass(frozen=True, kw_only=True)
class ClosurePushArgs:
    """What is pushed, from where, and to where."""

    builders: Mapping[str, BuilderPush]
    """The builders that push, by name."""
    bucket_name: str
    """The name of the bucket, which the program's resource is named after."""
    bucket: pulumi.Input[str]
    """The same, once the bucket is there."""
    settings: Mapping[str, str | int | Sequence[str]]
    """What is the same for all builders, by the names that `push.settings` has: where the server
    answers, what is left to upstream caches, how NARs are compressed, …"""
    trusted_keys: pulumi.Input[Sequence[str]] = ()
    """The public keys that clients trust, each builder's among them: a push that signs with another
    is refused, and what others have signed is known by them."""
    ca_certificate: str | None = None
    """PEM text of the private CA that signed the server's certificate."""
    comparable_etags: bool = True
    """Find, by its ETag, what others write over the program; not where the server encrypts."""
    uploaded: bytes = b""
    """The push's program as the last deployment uploaded it; nothing where none did."""
    before_pushing: pulumi.ResourceHook | None = None
    """Asked before anything is pushed, the program included; it refuses by raising."""


class ClosurePush(pulumi.ComponentResource):
    """Runs the push on a builder whenever what it is to push, or how, has changed.

    The program itself is in the bucket once, not in each command: the engine keeps what a command
    is given twice in the state, and handles each byte of it dozens of times in a preview. The
    signing key and the users' secrets reach the builders on standard input only. Destroying it
    runs nothing: what was pushed stays until it expires.
    """

    summaries: dict[str, pulumi.Output[str]]
    """Each builder's last push in one line, by the builder's name: what was pushed, reused,
    skipped, renewed and repaired."""

    def __init__(
        self, name: str, args: ClosurePushArgs, opts: pulumi.ResourceOptions | None = None
    ) -> None:
        """Declare the pushes, named after the builders, and the program, after the bucket."""
        super().__init__("nixcache:index:ClosurePush", name, None, opts)
        hooks = None
        if args.before_pushing is not None:
            hook = args.before_pushing
            hooks = pulumi.ResourceHookBinding(before_create=[hook], before_update=[hook])
        travels = archive(args.uploaded)
        program = declare_binary_object(
            args.bucket_name,
            PROGRAM_KEY,
            bucket=args.bucket,
            content_type="application/zip",
            content=travels,
            comparable=args.comparable_etags,
            opts=pulumi.ResourceOptions(parent=self, hooks=hooks),
        )
        child = pulumi.ResourceOptions(parent=self, depends_on=[program], hooks=hooks)
        shared = _shared_settings(args, travels)
        self.summaries = {
            builder: _declare_push(builder, push, travels, shared, child)
            for builder, push in args.builders.items()
        }
        self.register_outputs({})


def _shared_settings(args: ClosurePushArgs, program: bytes) -> pulumi.Output[str]:
    """Return what standard input begins with on every builder: a program, and most settings."""
    given: dict[str, str | int | Sequence[str]] = dict(args.settings)
    if args.ca_certificate is not None:
        given["ca-certificate"] = base64.b64encode(args.ca_certificate.encode()).decode()
    text = bootstrap(program) + format_settings(given)
    later = {
        "bucket": args.bucket,
        "trusted-key": args.trusted_keys,
    }
    return pulumi.Output.all(**later).apply(lambda known: text + format_settings(known))


def _declare_push(
    builder: str,
    push: BuilderPush,
    program: bytes,
    shared: pulumi.Output[str],
    opts: pulumi.ResourceOptions,
) -> pulumi.Output[str]:
    """Declare the command that pushes from one builder, and return what it prints."""
    create = pulumi.Output.from_input(push.closures).apply(partial(push_command, program=program))
    credential = pulumi.Output.all(
        **{
            "access-key-id": push.credential.access_key_id,
            "secret-access-key": push.credential.secret_access_key,
            "signing-key": push.signing_key,
        }
    )
    stdin: pulumi.Output[str] = pulumi.Output.secret(
        pulumi.Output.concat(shared, credential.apply(format_settings))
    )
    if push.connection is None:
        stdout = command.local.Command(
            f"{builder}-push",
            create=create,
            stdin=stdin,
            add_previous_output_in_env=False,
            logging=command.local.Logging.STDERR,
            opts=opts,
        ).stdout
        return stdout.apply(summary_of)
    return command.remote.Command(
        f"{builder}-push",
        connection=push.connection,
        create=create,
        stdin=stdin,
        add_previous_output_in_env=False,
        logging=command.remote.Logging.STDERR,
        opts=opts,
    ).stdout.apply(summary_of)


def summary_of(output: str) -> str:
    """Return the last line of what a push printed: a login shell may greet before."""
    return output.strip().rpartition("\n")[2]
