"""Which resources a push again is about."""

from __future__ import annotations

from operations.push import options

PREFIX = "urn:pulumi:homelab::nixcache::"
PUSH = f"{PREFIX}nixcache:index:ClosurePush$command:remote:Command::"
LOCAL = f"{PREFIX}nixcache:index:ClosurePush$command:local:Command::"
CLOSURE = f"{PREFIX}pulumi-python:dynamic/nixcache:Closure::"
FILES = f"{PREFIX}nixcache:index:BuilderCredentials$command:remote:Command::"


def test_a_builders_push_is_made_again_and_its_links_are_followed_anew() -> None:
    urns = [
        f"{PUSH}nix-cache-a-push",
        f"{LOCAL}nix-cache-b-push",
        f"{CLOSURE}nix-cache-a",
        f"{CLOSURE}nix-cache-b",
        f"{FILES}nix-cache-a",
        f"{PREFIX}minio:index/iamUser:IamUser::nix-cache-a",
    ]
    assert list(options(urns, ["nix-cache-a"])) == [
        f"--target-replace={PUSH}nix-cache-a-push",
        f"--target={CLOSURE}nix-cache-a",
    ]
    assert len(list(options(urns, ["nix-cache-a", "nix-cache-b"]))) == 4
