"""MinIO's admin API as the deploying user sees it: which users and policies a server has.

Apart from `s3_client`, because this is MinIO's own and S3 is not. It is asked only about what a
deployment would make anew.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from minio import MinioAdmin
from minio.credentials.providers import StaticProvider
from minio.error import MinioAdminException
from urllib3.exceptions import HTTPError

from program.checks.s3_client import Server, explain
from program.checks.server_error import ServerError


class _AbsentError(Exception):
    """The server has nothing of that name."""


@dataclass(frozen=True)
class Admin:
    """The server's users and policies."""

    server: Server
    """How the deploying user reaches it."""

    def user_status(self, name: str) -> str | None:
        """Return whether a user is `enabled` or `disabled`, or None where there is none.

        Root and service accounts are none.

        Raises:
            ServerError: no answer, or the server refuses the deploying user.
        """
        try:
            with self.asked("see users", "admin:GetUser"):
                return str(json.loads(self.client.user_info(name)).get("status"))
        except _AbsentError:
            return None

    def policy(self, name: str) -> str | None:
        """Return a policy's JSON, or None where there is none of that name.

        Raises:
            ServerError: no answer, or the server refuses the deploying user.
        """
        try:
            with self.asked("see policies", "admin:GetPolicy"):
                return self.client.policy_info(name)
        except _AbsentError:
            return None

    def holders(self, policy: str) -> frozenset[str]:
        """Return the users and groups that have a policy.

        Raises:
            ServerError: no answer, or the server refuses the deploying user.
        """
        with self.asked("see who has a policy", "admin:ListUserPolicies"):
            answer = json.loads(self.client.get_policy_entities([], [], [policy]))
            return frozenset(
                str(name)
                for mapping in answer.get("policyMappings") or ()
                for kind in ("users", "groups")
                for name in mapping.get(kind) or ()
            )

    @property
    def client(self) -> MinioAdmin:
        """The client, with the connections that the server has open."""
        return MinioAdmin(
            endpoint=self.server.address,
            credentials=StaticProvider(self.server.user, self.server.password),
            region=self.server.region,
            secure=self.server.tls,
            http_client=self.server.connections,
        )

    @contextmanager
    def asked(self, what: str, action: str) -> Iterator[None]:
        """Turn what the client raises into a ServerError, or _AbsentError.

        Args:
            what: what is done, in words.
            action: what has to be allowed for it.
        """
        try:
            yield
        except MinioAdminException as error:
            code = _code(str(error))
            if code in ("XMinioAdminNoSuchUser", "XMinioAdminNoSuchPolicy"):
                raise _AbsentError from None
            if code == "AccessDenied":
                raise ServerError(
                    "user", f"the server does not let it {what}; allow it {action}"
                ) from None
            raise ServerError(
                "endpoint",
                f"what answers there does not let us {what} by MinIO's admin API "
                f"({code or 'no reason given'}); deploy to a MinIO server",
            ) from None
        except HTTPError as error:
            raise explain(error) or _AbsentError from None
        except ValueError:
            raise ServerError(
                "endpoint", f"its answer is not understood, when asked to {what}"
            ) from None


def _code(text: str) -> str:
    """Return the server's word for why; the exception has its answer in its text only."""
    try:
        return str(json.loads(text.partition("Body: ")[2])["Code"])
    except (ValueError, LookupError, TypeError):
        return ""
