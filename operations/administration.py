"""Users and policies of a MinIO server, as its administrator changes them."""

from __future__ import annotations

from formats.foreign_json import parse_foreign_json
from program.checks.admin_client import Admin


class Administration(Admin):
    """MinIO's admin API, with the deploying user's credential.

    Every method raises a `ServerError` where the server does not answer, or refuses the user.
    """

    def put_policy(self, name: str, text: str) -> None:
        """Make the policy, or give it that text."""
        with self.asked("change policies", "admin:CreatePolicy"):
            self.client.policy_add(name, policy=parse_foreign_json(text))

    def put_user(self, user: str, secret: str) -> None:
        """Make the user, or give it that secret; either enables it."""
        with self.asked("change users", "admin:CreateUser"):
            self.client.user_add(user, secret)

    def remove_policy(self, name: str) -> None:
        """Remove the policy, which nobody may have."""
        with self.asked("change policies", "admin:DeletePolicy"):
            self.client.policy_remove(name)

    def remove_user(self, user: str) -> None:
        """Remove the user, with what it has been given."""
        with self.asked("change users", "admin:DeleteUser"):
            self.client.user_remove(user)
