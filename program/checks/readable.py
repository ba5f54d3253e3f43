"""Whether clients can read a cache whose bucket is opened, or closed, elsewhere than here.

No provider declares it, so it is proved from outside, without a credential, when all else is done.
The verdict is told, and no deployment fails for it: a bucket may be opened only once it is there.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Iterable

import pulumi

from formats.printable import printable
from formats.store_path import STORE_DIR
from program.checks import recorded
from program.settings.stack import Settings

OUTPUT = "readable"
"""The stack output that has the last verdict."""

_NOT_PROVED = "not proved: "
"""How a verdict begins that is none."""

_INFO = "nix-cache-info"
_LARGEST = 1 << 16
_SECONDS = 5.0


def proved(settings: Settings, done: Iterable[pulumi.Output[object]]) -> pulumi.Output[str]:
    """Return the verdict in one sentence, and warn where it is not as the settings say.

    A preview proves nothing: it has the last one, and warns where that is none.

    Args:
        settings: the stack's settings; `bucketPolicy` is off.
        done: outputs that are there once everything else is.
    """
    if pulumi.runtime.is_dry_run():
        last = str(recorded.read().stack_output(OUTPUT, "to be proved by the deployment"))
        if last.startswith(_NOT_PROVED):
            pulumi.log.warn(
                f"{OUTPUT}, as the last deployment left it: {printable(last)}; the next one asks "
                "again"
            )
        return pulumi.Output.from_input(last)

    going = any(recorded.read().outputs(recorded.BUCKET_POLICY))

    async def prove(_: object) -> str:
        # The engine deletes last, when nothing of the program runs any more.
        wrong: str | None = (
            "bucketPolicy is off: the bucket's policy goes at the end of this deployment, and the "
            "next one proves who may read"
        )
        if not going:
            wrong = await asyncio.to_thread(finding, settings)
        if wrong is None:
            return verdict(settings)
        pulumi.log.warn(wrong)
        return f"{_NOT_PROVED}{wrong}"

    return pulumi.Output.all(*done).apply(prove)


def verdict(settings: Settings) -> str:
    """Return what is so where nothing is wrong."""
    if settings.private:
        return f"nobody reads without a credential at {settings.bucket_url}"
    return f"everyone reads at {settings.public_url}"


def finding(settings: Settings) -> str | None:
    """Return in one sentence what is wrong with who may read, with the remedy; None where nothing.

    Args:
        settings: the stack's settings; `bucketPolicy` is off.
    """
    url = settings.bucket_url if settings.private else settings.public_url
    status, content = _get(f"{url}/{_INFO}", settings.ca_certificate_file)
    if settings.private:
        if status == 200 and content.startswith("StoreDir:"):
            return (
                f"access is private, and everyone can read {url}; bucketPolicy is off, so close "
                "the bucket by the server's own means"
            )
        return None
    if status is None:
        return f"publicUrl is {url}: it cannot be reached from here ({content}), so nothing is said"
    if status != 200:
        return (
            f"publicUrl is {url}: clients cannot read there (HTTP {status} for {_INFO}); open "
            f"bucket {settings.bucket} on the server (Garage: garage bucket website --allow "
            f"{settings.bucket}; R2: connect the domain to the bucket), or correct the URL"
        )
    if not content.startswith(f"StoreDir: {STORE_DIR}\n"):
        return (
            f"publicUrl is {url}: what is there is not this cache's {_INFO}; correct the URL, or "
            "what the server shows at it"
        )
    return None


def _get(url: str, ca_certificate_file: str | None) -> tuple[int | None, str]:
    """Return what anybody gets: the status and the beginning of the text; None and why not."""
    # Imported here: a preview need not wait for it.
    from urllib3.exceptions import HTTPError  # noqa: PLC0415

    from program.checks.bounded import (  # noqa: PLC0415
        BoundedConnections,
        in_time,
        read,
        retries,
    )

    context = ssl.create_default_context()
    if ca_certificate_file is not None:
        context.load_verify_locations(ca_certificate_file)
    pool = BoundedConnections(3 * _SECONDS, ssl_context=context, timeout=_SECONDS)
    try:
        answer = pool.request("GET", url, preload_content=False, retries=retries(2))
        with answer, in_time(answer, _SECONDS):
            return answer.status, read(answer, _LARGEST).decode(errors="replace")
    except HTTPError as error:
        reason = getattr(error, "reason", None) or error
        return None, type(reason).__name__
