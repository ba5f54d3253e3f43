"""Users and policies of a MinIO server, as its administrator sees them."""

from __future__ import annotations

import json
from typing import Any

import urllib3
from minio import MinioAdmin
from minio.credentials.providers import StaticProvider
from minio.error import MinioAdminException

from program.checks.s3_client import explain
from program.checks.server_error import ServerError
from program.settings.stack import Settings

_NO_USER, _NO_POLICY = "XMinioAdminNoSuchUser", "XMinioAdminNoSuchPolicy"


class Administration:
    """MinIO's admin API, with the deploying user's credential.

    Every method raises a `ServerError` where the server does not answer, or refuses the user.
    """

    def __init__(self, settings: Settings) -> None:
        """Connect to nothing yet."""
        self._server = MinioAdmin(
            endpoint=settings.endpoint.server,
            credentials=StaticProvider(settings.minio_user, settings.minio_password),
            secure=settings.endpoint.tls,
            region=settings.region,
            http_client=urllib3.PoolManager(
                timeout=5.0,
                retries=False,
                cert_reqs="CERT_REQUIRED",
                ca_certs=settings.ca_certificate_file,
            ),
        )

    def has_policy(self, name: str) -> bool:
        """Return whether there is a policy of that name."""
        return self._ask(lambda: self._server.policy_info(name), _NO_POLICY) is not None

    def put_policy(self, name: str, text: str) -> None:
        """Make the policy, or give it that text."""
        self._ask(lambda: self._server.policy_add(name, policy=json.loads(text)))

    def enabled(self, user: str) -> bool:
        """Return whether there is a user of that name who may do anything at all."""
        answer = self._ask(lambda: self._server.user_info(user), _NO_USER)
        return answer is not None and json.loads(answer).get("status") == "enabled"

    def put_user(self, user: str, secret: str) -> None:
        """Make the user, or give it that secret; either enables it."""
        self._ask(lambda: self._server.user_add(user, secret))

    def _ask(self, request: Any, absent: str | None = None) -> str | None:
        try:
            return str(request())
        except MinioAdminException as error:
            code = _code(str(error))
            if code == absent:
                return None
            raise ServerError(
                "user", f"the server answers {code}; the deploying user must be allowed to do that"
            ) from None
        except urllib3.exceptions.HTTPError as error:
            raise explain(error) or ServerError("endpoint", "no answer") from None


def _code(text: str) -> str:
    """Return the server's own word for what is wrong, out of an exception's text."""
    try:
        return str(json.loads(text.partition("Body: ")[2])["Code"])
    except (ValueError, KeyError, TypeError):
        return "an error"
