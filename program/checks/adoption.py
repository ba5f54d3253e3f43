"""What was made by hand before there was a stack, and comes under its management as it is.

A bucket is imported. Everything else on the server is put over what is there, which leaves it in
place: a policy of the same name gets this program's text, an attachment stays, and a user keeps
its secret where the settings give it. A key is adopted by `SigningKey`.
"""

from __future__ import annotations

from dataclasses import replace

from program.checks.deployment import server_of
from program.checks.server_error import ServerError
from program.settings.reader import SettingError
from program.settings.stack import Settings


def bucket_to_import(settings: Settings) -> str | None:
    """Return the bucket that is to be imported, if any; refuse secrets that the server refuses.

    A server that does not answer is nothing to import from; `deployment` tells of it.

    Raises:
        SettingError: an adopted user has another secret. Creating it over would change that, and
            whoever pushes with it would be locked out.
    """
    try:
        for user, secret in settings.adopted_user_secrets.items():
            _check_secret(settings, user, secret)
        found = settings.adopt_bucket and server_of(settings).lifecycle(settings.bucket) is not None
    except ServerError:
        return None
    return settings.bucket if found else None


def _check_secret(settings: Settings, user: str, secret: str) -> None:
    server = replace(server_of(settings), user=user, password=secret)
    try:
        server.lifecycle(settings.bucket)
    except ServerError as error:
        # Everything else is no answer about the secret: the user may not read the lifecycle,
        # or is not there and will be created with this secret.
        if error.subject == "password":
            raise SettingError(
                "adoptedUserSecrets",
                None,
                f"the server knows {user} by another secret; give the one that its builder uses",
            ) from None
