"""Text objects: another text is another ETag."""

from __future__ import annotations

from components.text_object import multipart_etag


def test_another_content_has_another_etag() -> None:
    assert multipart_etag(b"a") != multipart_etag(b"b")
