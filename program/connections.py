"""How SSH reaches a builder."""

from __future__ import annotations

import pulumi_command as command

from program.settings.builders import BuilderSettings


def ssh_connection(builder: BuilderSettings) -> command.remote.ConnectionArgs:
    """Return how pulumi-command reaches `builder` over SSH."""
    jump, proxy = builder.jump_host, None
    if jump is not None:
        proxy = command.remote.ProxyConnectionArgs(
            host=jump.host,
            port=jump.port,
            user=jump.user,
            host_key=jump.host_key,
            private_key=builder.private_key,
        )
    return command.remote.ConnectionArgs(
        host=builder.host,
        port=builder.port,
        user=builder.user,
        host_key=builder.host_key,
        private_key=builder.private_key,
        proxy=proxy,
    )
