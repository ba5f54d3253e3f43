"""The dynamic providers, as states name them: for as long as stacks exist."""

from __future__ import annotations

import base64
import pickle

import pytest
from pulumi.dynamic import ResourceProvider
from pulumi.dynamic.dynamic import serialize_provider

from components.closure import ClosureProvider
from components.signing_key import SigningKeyProvider

IN_STATES = {
    SigningKeyProvider: (
        "gASVNAAAAAAAAACMFmNvbXBvbmVudHMuc2lnbmluZ19rZXmUjBJTaWduaW5nS2V5UHJvdmlkZXKUk5QpgZQu"
    ),
    ClosureProvider: (
        "gASVLQAAAAAAAACMEmNvbXBvbmVudHMuY2xvc3VyZZSMD0Nsb3N1cmVQcm92aWRlcpSTlCmBlC4="
    ),
}
"""What states hold of each since the first version (`__provider` of its resources)."""


@pytest.mark.parametrize(("provider", "text"), IN_STATES.items())
def test_a_state_of_any_version_finds_its_provider(
    provider: type[ResourceProvider], text: str
) -> None:
    assert type(pickle.loads(base64.b64decode(text))) is provider


@pytest.mark.parametrize("provider", IN_STATES)
def test_a_state_refers_to_a_provider_by_name_only(provider: type[ResourceProvider]) -> None:
    pickled = base64.b64decode(serialize_provider(provider()))
    assert provider.__module__.encode() in pickled
    assert len(pickled) < 100
