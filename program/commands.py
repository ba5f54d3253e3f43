"""The provider of what runs on builders; nothing here waits for another module."""

from __future__ import annotations

import pulumi
import pulumi_command as command


def declare_commands() -> command.Provider:
    """Declare the provider of all commands, which has no settings.

    The engine would make one of its own, when the first command has been declared. This one has
    that one's name, so that states of before have it and nothing is shown of it.
    """
    # With an alias in its place, a refresh that runs the program is a defect of the engine (3.274).
    return command.Provider("default_1_2_1")


def declare_early() -> command.Provider | None:
    """In a preview, declare the provider, so that it starts while the settings are read.

    An update declares nothing before all is asked, so that it changes all that it plans or nothing.

    Returns:
        The provider; None in an update.
    """
    if not pulumi.runtime.is_dry_run():
        return None
    commands = declare_commands()
    let_providers_start()
    return commands


def let_providers_start() -> None:
    """In a preview, send the engine what is declared so far, and go on while it works on that.

    The SDK sends what is declared when the program waits for an answer, or ends. The keys' provider
    takes as long to start as all the rest to be declared, and links on builders to be followed. An
    update sends nothing early, so that it changes all that it plans or nothing.
    """
    root = pulumi.runtime.get_root_resource()
    if pulumi.runtime.is_dry_run() and root is not None:
        # The least that there is to ask.
        pulumi.runtime.invoke("pulumi:pulumi:getResource", {"urn": root.urn})
