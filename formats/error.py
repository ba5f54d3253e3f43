"""FormatError: a text that is not what Nix or S3 writes."""

from __future__ import annotations


class FormatError(ValueError):
    """A text that is not what Nix or S3 writes; the message says what is wrong, never the text."""
