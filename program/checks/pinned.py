"""What pins cannot keep: what the cache has not, and what only a key signed that is retired."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor

from formats.error import FormatError
from formats.keys import PublicKey
from formats.narinfo import LARGEST_NARINFO, NarInfo, narinfo_of
from formats.pin import LARGEST_PIN, parse_pin, pin_key
from formats.signing import verified_by
from formats.store_path import STORE_DIR
from program.checks.key_rotation import trusted_before
from program.checks.recorded import Recorded
from program.checks.s3_client import Server
from program.settings.signing_keys import SigningKeys
from program.settings.stack import Settings

_AT_ONCE = 8


def absent(settings: Settings, server: Server | None, recorded: Recorded) -> Iterator[str]:
    """Yield a sentence for each new pin of a path that is neither in the cache nor pushed by name.

    Args:
        settings: the stack's settings.
        server: has the bucket; None where that is still to be made.
        recorded: the state, with the pins of the last deployment.

    Raises:
        ServerError: no answer, or the server refuses the user.
    """
    pushed = {path for builder in settings.builders for path in builder.pushed}
    for pin in settings.pins:
        if pin.builder is not None or pin.path in {*pushed, *recorded.pinned(pin.name)}:
            continue
        if server is None or server.etag(settings.bucket, narinfo_of(pin.path)) is None:
            yield (
                f"pin {pin.name}: the cache does not have {pin.path}; it is kept once a builder "
                "has pushed it, itself or as a part of something"
            )


def targets_before(
    settings: Settings, server: Server, recorded: Recorded
) -> dict[str, tuple[str, ...]]:
    """Return what each pin of a link that keeps several keeps until now, the newest first.

    A state that is lost, or older than the bucket, knows fewer than the pin itself, which nobody
    but deployments writes.

    Raises:
        ServerError: no answer, or the server refuses the user.
    """
    names = [pin.name for pin in settings.pins if pin.builder is not None and pin.keep_last > 1]

    def kept(name: str) -> tuple[str, ...]:
        known = recorded.pinned(name)
        try:
            there = parse_pin(server.read(settings.bucket, pin_key(name), LARGEST_PIN) or b"")
        except FormatError:
            return known
        newer, older = (known, there) if {*there} <= {*known} else (there, known)
        return tuple(dict.fromkeys((*newer, *older)))

    with ThreadPoolExecutor(_AT_ONCE) as threads:
        return dict(zip(names, threads.map(kept, names), strict=True))


def left_behind(
    settings: Settings, keys: SigningKeys, server: Server, recorded: Recorded
) -> Iterator[str]:
    """Yield a sentence for each pin of which something would be signed by no trusted key.

    A rotated key signs what a builder has. What only the bucket has keeps the old signature: once
    that key is retired, clients refuse it, and no push renews it any more.

    Args:
        settings: the stack's settings.
        keys: its signing keys from now on.
        server: has the bucket.
        recorded: the state, with the pins and the keys of the last deployment.

    Raises:
        ServerError: no answer, or the server refuses the user.
    """
    before = {key.name: key for key in trusted_before(recorded)}
    retired = {name: key for name, key in before.items() if name not in keys.names}
    stays = {name: key for name, key in before.items() if name in keys.names}
    if not retired or settings.bucket not in recorded.buckets:
        return
    for pin in settings.pins:
        tops = recorded.pinned(pin.name)
        lost = sorted(_signed_only_by(retired, stays, server, settings.bucket, tops))
        if lost:
            more = f" and {len(lost) - 1} more" if len(lost) > 1 else ""
            yield (
                f"pin {pin.name}: only {', '.join(retired)} has signed {lost[0]}{more}, so clients "
                "will refuse that, and no push renews it; push it from a machine that has it, and "
                "retire the key then"
            )


def _signed_only_by(
    retired: Mapping[str, PublicKey],
    stays: Mapping[str, PublicKey],
    server: Server,
    bucket: str,
    tops: tuple[str, ...],
) -> set[str]:
    """Walk through the closures of `tops`; return the store paths that no key that stays signed."""
    found: set[str] = set()
    seen, level = set(tops), list(tops)
    with ThreadPoolExecutor(_AT_ONCE) as threads:
        while level:
            texts = threads.map(
                lambda path: server.read(bucket, narinfo_of(path), LARGEST_NARINFO), level
            )
            below: list[str] = []
            for path, text in zip(level, texts, strict=True):
                try:
                    narinfo = NarInfo.parse((text or b"").decode())
                except (FormatError, UnicodeDecodeError):
                    continue
                by_one_that_stays = verified_by(narinfo, stays)
                # What no key of this cache has signed leads nowhere: anybody may have put it there.
                if narinfo.store_path != path or not (
                    by_one_that_stays or verified_by(narinfo, retired)
                ):
                    continue
                if not by_one_that_stays:
                    found.add(path)
                references = [f"{STORE_DIR}/{name}" for name in narinfo.references]
                below += [one for one in dict.fromkeys(references) if one not in seen]
                seen.update(references)
            level = below
    return found
