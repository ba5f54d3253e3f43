"""MinIO's admin API as the deploying user sees it: which users and policies a server has.

Apart from `s3_client`, because this is MinIO's own and S3 is not. It is used only once a call has
shown that it is one, and asked only about what a deployment would make anew.
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

from components.access import unwrapped
from program.checks.s3_client import Server, unreachable
from program.checks.server_error import ServerError

_RUSTFS_ABSENT = "NoSuchResource"
_ABSENT = frozenset({"XMinioAdminNoSuchUser", "XMinioAdminNoSuchPolicy", _RUSTFS_ABSENT})
"""The servers' words for it."""
_EVERY_SERVERS = "readwrite"
"""A policy that every server with this API has (minio/pkg, `policy/constants.go`)."""


class _AbsentError(Exception):
    """The server has nothing of that name."""


class _AbsentForRustFSError(_AbsentError):
    """The same, said in XML: it does not show that what answers is an admin API."""


@dataclass(frozen=True)
class Admin:
    """The server's users and policies."""

    server: Server
    """How the deploying user reaches it."""

    def check(self) -> None:
        """Make sure that what answers is MinIO's admin API, which others only seem to have.

        To SeaweedFS, say, a call is an object in a bucket `minio`: it stores it, and answers
        success.

        Raises:
            ServerError: it is none; no answer, or the server refuses the deploying user.
        """
        try:
            with self.asked("see policies", "admin:GetPolicy"):
                answer = json.loads(unwrapped(self.client.policy_info(_EVERY_SERVERS)))
        except _AbsentForRustFSError:
            raise _no_admin_api("a refusal of another kind") from None
        except _AbsentError:
            return
        if not isinstance(answer, dict) or "Statement" not in answer:
            raise _no_admin_api("another answer")

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
                return unwrapped(self.client.policy_info(name))
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
            # An answer in XML is S3's; but RustFS says so of what is not there, by a code that S3
            # has not.
            if f"<Code>{_RUSTFS_ABSENT}</Code>" in str(error):
                raise _AbsentForRustFSError from None
            code = _code(str(error))
            if code in _ABSENT:
                raise _AbsentError from None
            if code == "AccessDenied":
                raise ServerError(
                    "user", f"the server does not let it {what}; allow it {action}"
                ) from None
            if not code:
                raise _no_admin_api("a refusal of another kind") from None
            raise ServerError(
                "endpoint", f"the server answers {code}, when asked to {what}; see its log"
            ) from None
        except HTTPError as error:
            raise unreachable(error) from None
        except ValueError:
            raise _no_admin_api("another answer") from None


def _no_admin_api(answer: str) -> ServerError:
    return ServerError(
        "users",
        f"the server has no MinIO admin API, which would make them ({answer} came); set users to "
        "given, and make them by the server's own means",
    )


def _code(text: str) -> str:
    """Return the server's word for why; the exception has its answer in its text only."""
    try:
        return str(json.loads(text.partition("Body: ")[2])["Code"])
    except (ValueError, LookupError, TypeError):
        return ""
