"""Narinfos as Nix writes them, for hypothesis."""

from __future__ import annotations

from base64 import b64encode

from hypothesis import strategies as st

from formats.compression import READABLE
from formats.narinfo import NarInfo
from formats.nix32 import NIX32_ALPHABET, nix32_encode
from formats.store_path import is_base_name

base_names = (
    st.tuples(
        st.text(NIX32_ALPHABET, min_size=32, max_size=32),
        st.from_regex(r"[0-9A-Za-z+\-._?=]{1,40}", fullmatch=True),
    )
    .map("-".join)
    .filter(is_base_name)
)
digests = st.binary(min_size=32, max_size=32).map(nix32_encode)
hashes = digests.map("sha256:{}".format)
sizes = st.integers(1, 2**63 - 1)
words = st.from_regex(r"[0-9A-Za-z/.+-]{1,40}", fullmatch=True)
signatures = st.tuples(
    words, st.binary(min_size=64, max_size=64).map(lambda raw: b64encode(raw).decode())
).map(":".join)
content_addresses = st.tuples(
    st.sampled_from(["text:sha256", "fixed:sha256", "fixed:r:sha256", "fixed:git:sha256"]), digests
).map(":".join)
narinfos = st.builds(
    NarInfo,
    store_path=base_names.map("/nix/store/{}".format),
    url=words,
    compression=st.sampled_from(sorted(READABLE)),
    nar_hash=hashes,
    nar_size=sizes,
    references=st.lists(base_names, max_size=5).map(tuple),
    file_hash=st.none() | hashes,
    file_size=st.none() | sizes,
    deriver=st.none() | base_names,
    signatures=st.lists(signatures, max_size=3).map(tuple),
    content_address=st.none() | content_addresses,
)
