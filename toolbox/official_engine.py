"""Install the official Pulumi CLI: `python -m toolbox.official_engine ROOT VERSION`.

A process of its own, so that its caller can show progress and give up on a dead network.
"""

from __future__ import annotations

import socket
import sys

import semver
from pulumi.automation import PulumiCommand

CONNECT_TIMEOUT = 5.0
"""Seconds before a server that does not answer counts as unreachable."""


def main(root: str, version: str) -> None:
    """Install `version` under `root`, as `root/bin/pulumi` with the plugins beside it."""
    socket.setdefaulttimeout(CONNECT_TIMEOUT)
    PulumiCommand.install(root=root, version=semver.VersionInfo.parse(version))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2])
