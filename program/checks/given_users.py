"""Users that were made elsewhere: each is tried on the server before anything is pushed.

No provider sees what such a user may do. So each does what a push does, with an object of its own
that no client asks for: it is named like the build log of a derivation that nobody has, which a
builder may write, no check takes for somebody else's, and the lifecycle takes if this program does
not come to remove it.

A preview, a destroy and a refresh run the program, too, and must neither write nor fail for a user
that they do not need: they look, and warn.
"""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, replace
from http import HTTPStatus

import pulumi

from components.retention import OWN_FOLDER
from formats.error import FormatError
from formats.nix32 import nix32_encode
from formats.s3 import parse_copy, parse_listing
from program.checks.recorded import Recorded
from program.checks.s3_client import Answer, Server
from program.checks.server_error import ServerError
from program.settings.reader import SettingError
from program.settings.stack import Settings

_AT_ONCE = 8
_TYPE = {"content-type": "text/plain"}
_HASH_BYTES = 20


def check_recorded(settings: Settings, recorded: Recorded) -> None:
    """Refuse a given user that is one of those which this stack made, and would delete.

    Raises:
        SettingError: there is one.
    """
    for user in sorted(settings.users & recorded.users):
        setting, whose = settings.name_of_user(user)
        raise SettingError(
            setting,
            user,
            f"this stack made that user, and deletes it now that users is given; make {whose} "
            "another by the server's own means, and name that",
        )


def look(settings: Settings, server: Server) -> None:
    """Warn of users that the server does not know, or does not let read; write nothing.

    An update looks at those only that it neither pushes as nor hands to a builder: the others are
    tried before it does.

    Args:
        settings: the stack's settings; `users` is `given`.
        server: as the deploying user reaches it; it has the bucket.

    Raises:
        ServerError: no answer, or none that tells anything of the user.
    """
    with ThreadPoolExecutor(_AT_ONCE) as threads:
        trials = _trials(settings, server)
        if not pulumi.runtime.is_dry_run():
            used = {
                builder.s3_user
                for builder in settings.builders
                if builder.pushed or builder.credentials_directory is not None
            }
            trials = [trial for trial in trials if trial.user not in used]
        for refusal in threads.map(_Trial.look, trials):
            if refusal is not None:
                pulumi.log.warn(str(refusal))


def check(settings: Settings, server: Server) -> None:
    """Refuse users that the server does not know, or does not let do what they are for.

    Args:
        settings: the stack's settings; `users` is `given`.
        server: as the deploying user reaches it; it has the bucket.

    Raises:
        SettingError: there is one.
        ServerError: no answer, or none that tells anything of the user.
    """
    with ThreadPoolExecutor(_AT_ONCE) as threads:
        found = list(threads.map(_Trial.run, _trials(settings, server)))
    for sentence in (sentence for sentences in found for sentence in sentences):
        pulumi.log.warn(sentence)


def _trials(settings: Settings, server: Server) -> list[_Trial]:
    return [
        _Trial(
            settings,
            server,
            user,
            reads_only=settings.private and user == settings.reader_user,
            stack=pulumi.get_stack(),
        )
        for user in sorted(settings.users)
    ]


def key_of(user: str) -> str:
    """Return the key of the object that a user is tried with."""
    digest = hashlib.sha256(user.encode()).digest()[:_HASH_BYTES]
    return f"log/{nix32_encode(digest)}-check-of-a-user.drv"


@dataclass(frozen=True)
class _Trial:
    """One user's."""

    settings: Settings
    deployer: Server
    user: str
    reads_only: bool
    stack: str
    """The stack's name, which other threads cannot ask for."""

    @property
    def _server(self) -> Server:
        secret = self.settings.given_user_secrets[self.user]
        return replace(self.deployer, user=self.user, password=secret)

    def look(self) -> SettingError | None:
        """Try what changes nothing; return what a deployment that pushes would say."""
        bucket = self.settings.bucket
        try:
            if self.reads_only:
                answer = self._server.ask("GET", bucket, "nix-cache-info")
                # Where the reader may read, an interrupted deployment may have put nothing there.
                if answer.status != HTTPStatus.NOT_FOUND:
                    self._must("read", answer)
            else:
                query = [("list-type", "2"), ("prefix", key_of(self.user))]
                self._must("list", self._server.ask("GET", bucket, "", query))
        except SettingError as refusal:
            return refusal
        return None

    def run(self) -> list[str]:
        """Try what the user is for, and what it should not; return what to warn of."""
        bucket, key = self.settings.bucket, key_of(self.user)
        own = f"{OWN_FOLDER}{key.rpartition('/')[2]}"
        try:
            if self.reads_only:
                return list(self._read(key))
            return list(self._push(key, own))
        finally:
            # Whatever of it the user was let write. What stays behind, expires.
            with suppress(ServerError):
                for name in (key, own):
                    self.deployer.ask("DELETE", bucket, name)

    def _push(self, key: str, own: str) -> Iterator[str]:
        server, bucket = self._server, self.settings.bucket
        content = secrets.token_bytes()
        self._must("write", server.ask("PUT", bucket, key, (), _TYPE, content))
        read = self._must("read", server.ask("GET", bucket, key))
        if read.body != content:
            raise ServerError(
                "endpoint",
                f"what builders write and read there is not the same ({len(content)} bytes, and "
                f"{len(read.body)}); see what lies between, and the server's log",
            )
        query = [("list-type", "2"), ("prefix", key), ("encoding-type", "url")]
        listed = self._must("list", server.ask("GET", bucket, "", query))
        self._believe(
            "list", lambda: {one.key: one for one in parse_listing(listed.body).objects}[key]
        )
        copied = self._must(
            "copy onto itself what it wrote",
            server.ask(
                "PUT",
                bucket,
                key,
                (),
                {
                    **_TYPE,
                    "x-amz-copy-source": f"/{bucket}/{key}",
                    "x-amz-metadata-directive": "REPLACE",
                },
            ),
        )
        self._believe("copy", lambda: parse_copy(copied.body))
        if server.ask("PUT", bucket, own, (), _TYPE, content).done:
            yield self._may(f"write what the deployment keeps in the bucket ({OWN_FOLDER})")
        if server.ask("DELETE", bucket, key).done:
            yield self._may("delete, so a builder that is taken over can empty the cache")

    def _read(self, key: str) -> Iterator[str]:
        server, bucket = self._server, self.settings.bucket
        content = secrets.token_bytes()
        written = self.deployer.ask("PUT", bucket, key, (), _TYPE, content)
        if not written.done:
            raise ServerError("user", f"the server does not let it write ({written})")
        self._must("read", server.ask("GET", bucket, key))
        if server.ask("GET", bucket, "", [("list-type", "2"), ("max-keys", "1")]).done:
            yield self._may("list, so clients can tell all that the cache holds")
        if server.ask("PUT", bucket, key, (), _TYPE, content).done:
            yield self._may("write, so clients can change what the cache holds")

    def _must(self, what: str, answer: Answer) -> Answer:
        """Return the answer to what a user must be let do."""
        if answer.done:
            return answer
        setting, whose = self.settings.name_of_user(self.user)
        code = answer.error.code
        if code == "SignatureDoesNotMatch":
            raise SettingError(
                "givenUserSecrets",
                None,
                f"the server refuses the secret of {self.user}, as {whose} is known by; give the "
                "one that it has (pulumi config set --secret givenUserSecrets)",
            )
        if code == "InvalidAccessKeyId":
            raise SettingError(
                setting, self.user, "the server knows no such user; make it, or correct the name"
            )
        if answer.status in (401, 403):
            raise SettingError(
                setting,
                self.user,
                f"the server does not let it {what} in bucket {self.settings.bucket} ({answer}); "
                f"give it the rights that make check-server STACK={self.stack} "
                "ARGS=--policy shows, or correct its secret in givenUserSecrets",
            )
        raise ServerError(
            "endpoint", f"the server answers {answer} when {whose} would {what}; see its log"
        )

    def _believe(self, what: str, read: Callable[[], object]) -> None:
        try:
            read()
        except (FormatError, LookupError):
            raise ServerError(
                "endpoint", f"the server's answer to a {what} is none of S3's; see its log"
            ) from None

    def _may(self, what: str) -> str:
        setting, _ = self.settings.name_of_user(self.user)
        return (
            f"{setting} is {self.user}: the server lets it {what}; take that from it where the "
            "server can"
        )
