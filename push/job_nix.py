"""What the Nix of a job does with its settings: asked of it, not inferred from where they stand.

Which files Nix reads depends on whose home it is, on variables and on the daemon, which takes a
hook of its `trusted-users` only and runs it as root, maybe in another container than the job's. So
whether a build is queued is shown by building something, and whether the cache is asked by asking
for something; both before any other build is told of it.

Source: Nix manual, "nix config show", "post-build-hook", `nix.conf`.
"""

from __future__ import annotations

import secrets
import subprocess
from collections.abc import Mapping
from pathlib import Path

from formats.nix32 import nix32_encode
from formats.printable import SHOWN, printable
from formats.store_path import STORE_DIR
from push.failure import PushError

_SECONDS = 120.0

# By Nix itself: there are sandboxes without a shell.
_PROBE = """\
derivation {{
  name = "nix-binary-cache-probe";
  system = "builtin";
  builder = "builtin:buildenv";
  derivations = [ ];
  manifest = "/dummy";
  allowSubstitutes = false;
  preferLocalBuild = true;
  asked = "{asked}";
}}
"""


class NoAnswerError(Exception):
    """The cache lets Nix wait; the message says for how long it was waited."""


def settings_in_force(environment: Mapping[str, str]) -> dict[str, str]:
    """Return what this user's Nix has of each setting, as `nix.conf` would have it.

    Raises:
        PushError: there is no Nix, or it does not tell.
    """
    # Of before Nix 2.20; later ones know it by this name, too.
    command = ["nix", "--extra-experimental-features", "nix-command", "show-config"]
    try:
        done = _run(command, environment)
    except subprocess.TimeoutExpired:
        raise _refused(f"nix show-config says nothing for {_SECONDS:.0f} s; try it") from None
    if done.returncode:
        raise _refused(f"nix show-config ends with '{_reason(done.stderr)}'; try it")
    pairs = (line.partition(" = ") for line in done.stdout.splitlines())
    return {name: value for name, sign, value in pairs if sign}


def why_nothing_is_queued(environment: Mapping[str, str], hook: Path, queue: Path) -> str | None:
    """Build something new with a hook, and return why its path is not queued; None where it is.

    Args:
        environment: the job's.
        hook: the program.
        queue: where it leaves links.

    Raises:
        PushError: there is no `nix-build`.
    """
    expression = _PROBE.format(asked=secrets.token_hex(16))
    command = ["nix-build", "--no-out-link", "--option", "post-build-hook", str(hook)]
    try:
        done = _run([*command, "-E", expression], environment)
    except subprocess.TimeoutExpired:
        return f"Nix has built nothing after {_SECONDS:.0f} s"
    if done.returncode:
        return _reason(done.stderr)
    link = queue / Path(done.stdout.strip()).name
    if not link.is_symlink():
        return _reason(done.stderr, "post-build-hook") or "Nix does not run the post-build-hook"
    link.unlink()
    return None


def why_nothing_is_taken(
    environment: Mapping[str, str], substituter: str, options: Mapping[str, str]
) -> str | None:
    """Ask for a path that no cache has, and return why this one is not asked; None where it is.

    Args:
        environment: the job's.
        substituter: the cache's URL.
        options: other settings that Nix is to have meanwhile.

    Raises:
        NoAnswerError: the cache lets Nix wait.
        PushError: there is no `nix-store`.
    """
    path = f"{STORE_DIR}/{nix32_encode(secrets.token_bytes(20))}-nix-binary-cache-probe"
    command = ["nix-store", "--realise", path, "--option", "extra-substituters", substituter]
    for name, value in options.items():
        command += ["--option", name, value]
    try:
        done = _run(command, environment)
    except subprocess.TimeoutExpired:
        raise NoAnswerError(f"no answer after {_SECONDS:.0f} s") from None
    # What succeeded after all is no reason.
    told = [line for line in done.stderr.splitlines() if "retrying in" not in line]
    return _reason("\n".join(told), substituter.partition("?")[0]) or None


def _run(command: list[str], environment: Mapping[str, str]) -> subprocess.CompletedProcess[str]:
    try:
        return subprocess.run(
            command,
            env=dict(environment),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            check=False,
            timeout=_SECONDS,
        )
    except FileNotFoundError:
        raise _refused(f"{command[0]} is not on PATH; install Nix before start") from None
    except OSError as error:
        raise _refused(f"{command[0]} cannot be run ({error.strerror}); see to it") from None


def _reason(text: str, about: str = "") -> str:
    """Return the last line of what Nix said about something, an error's first; empty without."""
    lines = [line.strip() for line in text.splitlines() if line.strip() and about in line]
    errors = [line for line in lines if line.startswith("error:") and line != "error:"]
    return printable((errors or lines)[-1], SHOWN) if lines else ""


def _refused(what: str) -> PushError:
    return PushError("settings", what)
