"""AWS Signature Version 4, as S3 reads it.

Source: AWS, "Signature Calculations for the Authorization Header".

Standard library and nothing of this project, so that its text can travel alone.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from urllib.parse import quote

UNSIGNED_PAYLOAD = "UNSIGNED-PAYLOAD"
"""In place of the body's SHA-256: TLS guards the body, and hashing it doubles the work."""


def encoded_path(path: str) -> str:
    """Return a path as it stands in a request's line and in what is signed."""
    return quote(path, safe="/-_.~")


def encoded_query(query: Sequence[tuple[str, str]]) -> str:
    """Return a query as it stands in a request's line and in what is signed: sorted."""
    pairs = sorted((quote(name, safe="-_.~"), quote(value, safe="-_.~")) for name, value in query)
    return "&".join(f"{name}={value}" for name, value in pairs)


@dataclass(frozen=True)
class Signer:
    """Who signs requests, and for which region."""

    access_key_id: str
    secret_access_key: str = field(repr=False)
    region: str
    session_token: str | None = field(default=None, repr=False)
    """The token of a short-lived credential (AWS STS); None for a lasting one."""

    def signed(
        self,
        method: str,
        host: str,
        path: str,
        query: Sequence[tuple[str, str]],
        headers: Mapping[str, str],
        now: datetime,
    ) -> dict[str, str]:
        """Return `headers`, in lower case, with those that prove who asks.

        Args:
            method: the HTTP method.
            host: what the header Host says: host and, where it is not the scheme's, port.
            path: the path, not encoded.
            query: names and values, not encoded.
            headers: all others that are sent, but for the body's length.
            now: the time, in UTC.
        """
        moment = now.strftime("%Y%m%dT%H%M%SZ")
        all_headers = {name.lower(): value.strip() for name, value in headers.items()}
        all_headers |= {
            "host": host,
            "x-amz-content-sha256": UNSIGNED_PAYLOAD,
            "x-amz-date": moment,
        }
        if self.session_token is not None:
            all_headers["x-amz-security-token"] = self.session_token
        names = sorted(all_headers)
        canonical = "\n".join(
            (
                method,
                encoded_path(path),
                encoded_query(query),
                *(f"{name}:{all_headers[name]}" for name in names),
                "",
                ";".join(names),
                UNSIGNED_PAYLOAD,
            )
        )
        scope = f"{moment[:8]}/{self.region}/s3/aws4_request"
        hashed = hashlib.sha256(canonical.encode()).hexdigest()
        text = f"AWS4-HMAC-SHA256\n{moment}\n{scope}\n{hashed}"
        key = f"AWS4{self.secret_access_key}".encode()
        for part in (moment[:8], self.region, "s3", "aws4_request"):
            key = hmac.digest(key, part.encode(), "sha256")
        signature = hmac.digest(key, text.encode(), "sha256").hex()
        all_headers["authorization"] = (
            f"AWS4-HMAC-SHA256 Credential={self.access_key_id}/{scope}, "
            f"SignedHeaders={';'.join(names)}, Signature={signature}"
        )
        return all_headers
