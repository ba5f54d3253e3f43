"""The dev stack's settings: the committed ones, with what belongs to this machine."""

from __future__ import annotations

from toolbox.dev_stack import machine_settings

COMMITTED = {"nixcache:bucket": "nix-cache", "nixcache:endpoint": "https://old.test"}
SERVER = {"endpoint": "https://127.0.0.1:9000"}


def test_the_machine_decides_the_endpoint_and_the_committed_file_the_rest() -> None:
    assert machine_settings(COMMITTED, SERVER, None) == {
        "nixcache:bucket": "nix-cache",
        "nixcache:endpoint": "https://127.0.0.1:9000",
    }


def test_a_builder_of_this_machine_stores_everything_it_pushes() -> None:
    builder = {"name": "local", "local": True}
    settings = machine_settings(COMMITTED, SERVER, builder)
    assert settings["nixcache:builders"] == [builder]
    assert settings["nixcache:upstreamKeys"] == []
