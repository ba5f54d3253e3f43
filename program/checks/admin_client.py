"""MinIO's admin API as the deploying user sees it: which users and policies a server has.

Apart from `s3_client`, because this is MinIO's own and S3 is not. It is used only once a call has
shown that it is one, and asked only about what a deployment would make anew. MinIO's SDK, which
takes 0.15 s to import, is used where an answer is encrypted.

Source: MinIO, `cmd/admin-router.go` and `cmd/admin-handlers-users.go`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

from urllib3.exceptions import HTTPError

from components.access import unwrapped
from formats.foreign_json import parse_foreign_json
from program.checks.s3_client import Server, unreachable
from program.checks.server_error import ServerError

if TYPE_CHECKING:
    from minio import MinioAdmin

_RUSTFS_ABSENT = "NoSuchResource"
_ABSENT = frozenset({"XMinioAdminNoSuchUser", "XMinioAdminNoSuchPolicy", _RUSTFS_ABSENT})
"""The servers' words for it."""
_EVERY_SERVERS = "readwrite"
"""A policy that every server with this API has (minio/pkg, `policy/constants.go`)."""
_SEE_POLICIES = ("see policies", "admin:GetPolicy")


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
            text = self._get("info-canned-policy", ("name", _EVERY_SERVERS), *_SEE_POLICIES)
            answer = parse_foreign_json(unwrapped(text))
        except _AbsentForRustFSError:
            raise _no_admin_api("a refusal of another kind") from None
        except _AbsentError:
            return
        except ValueError:
            raise _no_admin_api("another answer") from None
        if not isinstance(answer, dict) or "Statement" not in answer:
            raise _no_admin_api("another answer")

    def user_status(self, name: str) -> str | None:
        """Return whether a user is `enabled` or `disabled`, or None where there is none.

        Root and service accounts are none.

        Raises:
            ServerError: no answer, or the server refuses the deploying user.
        """
        user = self._user(name)
        return None if user is None else str(user.get("status"))

    def rights_of(self, name: str) -> frozenset[str]:
        """Return the policies and the groups that a user has; none where there is no user.

        Raises:
            ServerError: no answer, or the server refuses the deploying user.
        """
        user = self._user(name) or {}
        return _policies_of(user) | frozenset(map(str, user.get("memberOf") or ()))

    def policy(self, name: str) -> str | None:
        """Return a policy's JSON, or None where there is none of that name.

        Raises:
            ServerError: no answer, or the server refuses the deploying user.
        """
        try:
            return unwrapped(self._get("info-canned-policy", ("name", name), *_SEE_POLICIES))
        except _AbsentError:
            return None
        except ValueError:
            raise _no_admin_api("another answer") from None

    def holders(self, policy: str) -> frozenset[str]:
        """Return the users and groups that have a policy.

        Raises:
            ServerError: no answer, or the server refuses the deploying user.
        """
        with self.asked("see who has a policy", "admin:ListUserPolicies"):
            answer = parse_foreign_json(self.client.get_policy_entities([], [], [policy]))
        try:
            return frozenset(
                str(name)
                for mapping in answer.get("policyMappings") or ()
                for kind in ("users", "groups")
                for name in mapping.get(kind) or ()
            )
        except (AttributeError, TypeError):
            raise _no_admin_api("another answer") from None

    @property
    def client(self) -> MinioAdmin:
        """MinIO's client, with the connections that the server has open."""
        # Imported here, as below: it takes as long as all that a preview needs of this program.
        from minio import MinioAdmin  # noqa: PLC0415
        from minio.credentials.providers import StaticProvider  # noqa: PLC0415

        return MinioAdmin(
            endpoint=self.server.address,
            credentials=StaticProvider(self.server.user, self.server.password),
            region=self.server.region,
            secure=self.server.tls,
            http_client=self.server.connections,
        )

    @contextmanager
    def asked(self, what: str, action: str) -> Iterator[None]:
        """Turn what MinIO's client raises into a ServerError, or _AbsentError.

        Args:
            what: what is done, in words.
            action: what has to be allowed for it.
        """
        from minio.error import MinioAdminException  # noqa: PLC0415

        try:
            yield
        except MinioAdminException as error:
            # The exception has the server's answer in its text only.
            raise _refused(str(error).partition("Body: ")[2], what, action) from None
        except HTTPError as error:
            raise unreachable(error) from None
        except ValueError:
            raise _no_admin_api("another answer") from None

    def _user(self, name: str) -> dict[str, Any] | None:
        """Return what the server tells of a user, or None where there is none."""
        try:
            text = self._get("user-info", ("accessKey", name), "see users", "admin:GetUser")
            answer = parse_foreign_json(text)
        except _AbsentError:
            return None
        except ValueError:
            raise _no_admin_api("another answer") from None
        if not isinstance(answer, dict):
            raise _no_admin_api("another answer")
        return answer

    @cached_property
    def _by_path(self) -> Server:
        """The server where the API is: never in a bucket's host name."""
        return (
            replace(self.server, virtual_hosts=False) if self.server.virtual_hosts else self.server
        )

    def _get(self, call: str, argument: tuple[str, str], what: str, action: str) -> str:
        """Return what the API answers to a call.

        Args:
            call: its name.
            argument: name and value of its one argument.
            what: what is done, in words.
            action: what has to be allowed for it.

        Raises:
            ServerError: no answer, or the server refuses the deploying user.
            _AbsentError: there is nothing of that name.
            UnicodeDecodeError: the answer is no text.
        """
        answer = self._by_path.ask("GET", "minio", f"admin/v3/{call}", [argument])
        if not answer.done:
            raise _refused(answer.body.decode(errors="replace"), what, action)
        return answer.body.decode()


def _refused(text: str, what: str, action: str) -> ServerError | _AbsentError:
    """Return what a refusal means that reads `text`."""
    # An answer in XML is S3's; but RustFS says so of what is not there, by a code that S3 has not.
    if f"<Code>{_RUSTFS_ABSENT}</Code>" in text:
        return _AbsentForRustFSError()
    code = _code(text)
    if code in _ABSENT:
        return _AbsentError()
    if code == "AccessDenied":
        return ServerError("user", f"the server does not let it {what}; allow it {action}")
    if not code:
        return _no_admin_api("a refusal of another kind")
    return ServerError("endpoint", f"the server answers {code}, when asked to {what}; see its log")


def _policies_of(user: Mapping[str, Any]) -> frozenset[str]:
    return frozenset(filter(None, str(user.get("policyName") or "").split(",")))


def _no_admin_api(answer: str) -> ServerError:
    return ServerError(
        "users",
        f"the server has no MinIO admin API, which would make them ({answer} came); set users to "
        "given, and make them by the server's own means",
    )


def _code(text: str) -> str:
    """Return the server's word for why, or nothing where it has none."""
    try:
        return str(parse_foreign_json(text)["Code"])
    except (ValueError, LookupError, TypeError):
        return ""
