"""What the bucket has of a closure, and what it lacks.

An own path is whole if the bucket has a narinfo for it that says what this machine's store says,
with a good signature of ours, and its NAR, in the size and of the compression that the narinfo
gives. What another builder made of the path counts too, if one of the cache's keys has signed it
and it refers to nothing that comes later in the closure: builds are not always reproducible, and
two builders would otherwise replace each other's work for ever. All else is missing, and pushed.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime

from formats import ed25519
from formats.compression import SUFFIXES
from formats.error import FormatError
from formats.http_date import parse_http_date
from formats.keys import PublicKey
from formats.narinfo import LOG_FOLDER, NarInfo, is_nar_key, narinfo_of
from formats.nix32 import sha256_to_nix32
from formats.s3 import Listing, parse_listing
from push.bucket import Bucket, Listed
from push.connection import Answer, Request
from push.failure import PushError
from push.listing import LOG_KEYS, NAR_KEYS, NARINFO_KEYS, HashedKeys, most_pages, worth_listing
from push.memory import Memory, RememberedNarInfo, digest
from push.store import StorePath

# So many of others are enough, or all that the cache's keys have made: no cache has more of them.
_MOST_SIGNATURES = 16
# Each costs milliseconds, and an honest narinfo has one.
_MOST_OWN_SIGNATURES = 2
_NARINFO_BYTES = 8192
_NARINFOS, _NARS = Listed("", folders=True), Listed("nar/", folders=False)

LOGS = Listed(LOG_FOLDER, folders=False)
"""Where build logs are listed."""


@dataclass(frozen=True)
class Present:
    """An object that the bucket has."""

    size: int | None
    """Bytes; None where the server does not tell."""
    etag: str | None
    day: str
    """When it was last written, such as 2026-11-23."""

    def may_have(self, size: int | None) -> bool:
        """Tell whether it has so many bytes, as far as the server tells."""
        return self.size is None or self.size == size


# There, and neither to be read nor remembered.
_UNREADABLE = Present(0, None, "0000-00-00")


@dataclass
class Held:
    """An own path that the bucket has, whole."""

    path: StorePath
    nar: str
    """The key of its NAR."""
    nar_size: int
    nar_day: str
    narinfo_etag: str | None
    narinfo_day: str
    content: bytes | None = None
    """The narinfo that is to take the place of the one there, None where that one may stay."""
    needs: tuple[str, ...] = ()
    """Base names of what the narinfo in the bucket refers to."""
    ours: bool = True
    """Whether the narinfo says what this machine's store says."""


@dataclass(frozen=True)
class Missing:
    """An own path that the bucket lacks."""

    path: StorePath
    reason: str
    """`absent`, or `broken` where there is something in its place."""
    narinfo_etag: str | None = None
    """That of the narinfo in its place; None where that is not known, or could not be read."""
    signed: bool = False
    """Whether that narinfo may have signatures that hold for this path, of others too."""


@dataclass
class Inventory:
    """What the bucket has of the own paths of a closure."""

    held: list[Held] = field(default_factory=list)
    missing: list[Missing] = field(default_factory=list)
    nars: dict[str, Present] = field(default_factory=dict)
    """NARs that are known to be in the bucket, by key."""
    root: dict[str, Present] | None = None
    """What else is beside narinfos at the bucket's root; None where that was not listed."""
    logs: dict[str, Present] | None = None
    """Build logs in the bucket, by key; None where they were not listed."""
    lost: dict[str, str] = field(default_factory=dict)
    """Paths that an earlier round could not write, and which failed path is to blame."""
    order: Mapping[str, int] = field(default_factory=dict)
    """Which place each path of the closure has in it, references first, by base name."""


def narinfo_key(path: StorePath) -> str:
    """Return the key of a path's narinfo."""
    return narinfo_of(path.path)


def largest_narinfo(path: StorePath) -> int:
    """Return the bytes of the largest narinfo of a path that is worth reading.

    Twice what it refers to, as another builder's may refer to more, and room for signatures. Larger
    ones would only fill memory.
    """
    return 2 * sum(len(name) + 1 for name in path.references) + _NARINFO_BYTES


def facts(path: StorePath, key: PublicKey) -> str:
    """Return the digest of what a narinfo must say of a path to be ours."""
    return digest(path.fingerprint, str(key), path.content_address or "")


def says_the_same(narinfo: NarInfo, path: StorePath) -> bool:
    """Tell whether a narinfo says of a path what this machine's store says."""
    return narinfo.fingerprint == path.fingerprint and _may_have_its_address(narinfo, path)


def _may_have_its_address(narinfo: NarInfo, path: StorePath) -> bool:
    """Tell whether a narinfo's content address, which nothing signs, is no other than the path's.

    One that has none is as good: what a client verifies then is the signature. Two builders, of
    which one knows the address, would otherwise replace each other's work for ever.
    """
    return narinfo.content_address in (None, path.content_address)


class FirstLook:
    """The first pages of the listings, asked for while Nix still lists the closure."""

    def __init__(self, bucket: Bucket, *others: Listed) -> None:
        """Ask for narinfos, NARs and others."""
        listed = (_NARINFOS, _NARS, *others)
        self._asked = bucket.begin([bucket.page(one) for one in listed])

    def listings(self) -> tuple[Listing, Listing]:
        """Return the first page of narinfos, and that of NARs.

        Raises:
            PushError: the server does not answer, refuses, or answers something else.
        """
        narinfos, nars = map(_listing, self._asked.answers()[:2])
        return narinfos, nars

    def others(self) -> list[Listing]:
        """Return the first pages of the others.

        Raises:
            PushError: as `listings`.
        """
        return list(map(_listing, self._asked.answers()[2:]))


class Look:
    """Finds out what the bucket has of own paths."""

    def __init__(
        self,
        bucket: Bucket,
        memory: Memory,
        keys: Sequence[PublicKey],
        closure: Sequence[StorePath],
    ) -> None:
        """Prepare to look.

        Args:
            bucket: what is asked.
            memory: what is remembered of it.
            keys: the cache's; the last one signs.
            closure: all of the closure, references first.
        """
        self._bucket = bucket
        self._memory = memory
        self._keys = keys
        self._key = keys[-1]
        self._order = {path.base_name: number for number, path in enumerate(closure)}
        self._root: dict[str, Present] | None = None

    def present_narinfos(
        self, own: Sequence[StorePath], first: Listing
    ) -> tuple[dict[str, Present], dict[str, bytes]]:
        """Return which narinfos of own paths there are, and the contents of those not remembered.

        One that cannot be read is there, and has no content: what takes its place heals it.

        Raises:
            PushError: as `FirstLook.listings`.
        """
        keys = {narinfo_key(path): path for path in own}
        listed = self._root = _listed(self._bucket, _NARINFOS, NARINFO_KEYS, first, len(keys))
        if listed is None:
            return self._ask_for_narinfos(keys)
        present = {key: listed[key] for key in keys if key in listed}
        unknown = [
            key
            for key, there in present.items()
            if (there.size or 0) <= largest_narinfo(keys[key])
            and self._remembered(keys[key], there) is None
        ]
        answers = self._bucket.try_each(
            [self._bucket.read(key, largest_narinfo(keys[key])) for key in unknown]
        )
        contents = {}
        for key, answer in zip(unknown, answers, strict=True):
            if answer is None:
                continue
            if answer.status == 404:
                del present[key]
            else:
                contents[key] = answer.body
                if answer.etag != present[key].etag:
                    # Another push has written it since it was listed.
                    present[key] = Present(present[key].size, answer.etag, day_of(answer))
        return present, contents

    def _ask_for_narinfos(
        self, keys: Mapping[str, StorePath]
    ) -> tuple[dict[str, Present], dict[str, bytes]]:
        """Ask for each narinfo: its state where it is remembered, else its content."""
        answers, unreadable = self._tried(keys, self._first_requests(keys))
        present, contents = present_of(answers), {}
        remembered = {key for key in keys if key in self._memory.narinfos}
        changed = [
            key
            for key in remembered & present.keys()
            if self._remembered(keys[key], present[key]) is None
        ]
        for key, answer in answers.items():
            if key in present and key not in remembered:
                contents[key] = answer.body
        again, unreadable_again = self._tried(
            changed, [self._bucket.read(key, largest_narinfo(keys[key])) for key in changed]
        )
        for key in changed:
            present.pop(key)
        present |= present_of(again)
        contents |= {key: answer.body for key, answer in again.items() if key in present}
        present |= dict.fromkeys([*unreadable, *unreadable_again], _UNREADABLE)
        return present, contents

    def _tried(
        self, keys: Iterable[str], requests: Sequence[Request]
    ) -> tuple[dict[str, Answer], list[str]]:
        """Return answers for single objects by key, and the keys of those that have none."""
        tried = list(zip(keys, self._bucket.try_each(requests), strict=True))
        answers = {key: answer for key, answer in tried if answer is not None}
        return answers, [key for key, answer in tried if answer is None]

    def _first_requests(self, keys: Mapping[str, StorePath]) -> list[Request]:
        known = self._memory.narinfos
        return [
            self._bucket.look_at(key)
            if key in known
            else self._bucket.read(key, largest_narinfo(path))
            for key, path in keys.items()
        ]

    def _remembered(self, path: StorePath, there: Present) -> RememberedNarInfo | None:
        """Return what is remembered of a narinfo, if it is still true."""
        remembered = self._memory.narinfos.get(narinfo_key(path))
        if (
            remembered is None
            or remembered.etag != there.etag
            or remembered.facts != facts(path, self._key)
        ):
            return None
        return remembered

    def judge(
        self,
        own: Sequence[StorePath],
        present: Mapping[str, Present],
        contents: Mapping[str, bytes],
        signatures: Mapping[str, str],
    ) -> tuple[list[Held], list[Missing]]:
        """Return which narinfos may stay, or need our signature only, and which paths are missing.

        Args:
            own: the own paths.
            present: narinfos that the bucket has, by key.
            contents: their content, of those that are not remembered.
            signatures: our signature over what the store says, by path, of paths in `contents`.
        """
        held, missing = [], []
        hashes: dict[str, set[str]] = {}
        for path in own:
            key = narinfo_key(path)
            there = present.get(key)
            if there is None:
                missing.append(Missing(path, "absent"))
                continue
            remembered = self._remembered(path, there)
            if remembered is not None:
                one, nar_hash = _remembered_path(path, there, remembered), path.nar_hash
            else:
                narinfo = parsed(path.path, contents.get(key, b""))
                judged = None
                if narinfo is not None:
                    judged = self._judged(path, there, narinfo, signatures.get(path.path))
                if narinfo is None or judged is None:
                    etag = there.etag if key in contents else None
                    same = narinfo is not None and narinfo.fingerprint == path.fingerprint
                    missing.append(Missing(path, "broken", etag, signed=same))
                    continue
                one, nar_hash = judged, narinfo.nar_hash
            held.append(one)
            hashes.setdefault(one.nar, set()).add(sha256_to_nix32(nar_hash))
        # One file is not two NARs; whose it is, only its content tells.
        missing += [_broken(one) for one in held if len(hashes[one.nar]) > 1]
        return [one for one in held if len(hashes[one.nar]) == 1], missing

    def _judged(
        self, path: StorePath, there: Present, narinfo: NarInfo, signature: str | None
    ) -> Held | None:
        if narinfo.file_size is None or not _may_have_its_address(narinfo, path):
            return None
        held = Held(
            path,
            narinfo.url,
            narinfo.file_size,
            nar_day="",
            narinfo_etag=there.etag,
            narinfo_day=there.day,
            needs=tuple(narinfo.references),
        )
        if narinfo.fingerprint == path.fingerprint and signature is not None:
            name = f"{self._key.name}:"
            if [one for one in narinfo.signatures if one.startswith(name)] != [signature]:
                held.content = signed_anew(path, narinfo, signature, self._keys)
            return held
        held.ours = False
        return held if another_builders(path, narinfo, self._keys, self._order) else None

    def locate_nars(
        self, held: Sequence[Held], missing: list[Missing], first: Listing
    ) -> Inventory:
        """Return the inventory: of `held`, paths whose NAR is there in its size.

        Raises:
            PushError: as `FirstLook.listings`.
        """
        wanted = {one.nar for one in held}
        nars = _listed(self._bucket, _NARS, NAR_KEYS, first, len(wanted))
        if nars is None:
            nars = _by_key(first)
            unknown = sorted(wanted - nars.keys())
            answers, _ = self._tried(unknown, [self._bucket.look_at(key) for key in unknown])
            nars |= present_of(answers)
        whole = []
        for one in held:
            nar = nars.get(one.nar)
            if nar is None or nar.size != one.nar_size:
                missing.append(_broken(one))
            else:
                one.nar_day = nar.day
                whole.append(one)
        return Inventory(whole, missing, nars, self._root, order=self._order)


def _broken(held: Held) -> Missing:
    """Return a path whose narinfo is well, and its NAR is not there."""
    return Missing(held.path, "broken", held.narinfo_etag, signed=True)


def another_builders(
    path: StorePath, narinfo: NarInfo, keys: Sequence[PublicKey], order: Mapping[str, int]
) -> bool:
    """Tell whether a narinfo with other facts is honest, and depends on nothing that is later.

    Its references must be in the closure: the lease of anything else is not renewed by this push,
    and would end before the narinfo's. `order` is that of `Inventory`, the last of `keys` signs.
    """
    own = order.get(path.base_name, -1)
    earlier = all(
        reference == path.base_name or order.get(reference, own) < own
        for reference in narinfo.references
    )
    return (
        earlier
        and _may_have_its_address(narinfo, path)
        and any(signed_by(narinfo, key) for key in reversed(keys))
    )


def list_page(bucket: Bucket, listed: Listed) -> Listing:
    """Return the first page of a listing.

    Raises:
        PushError: as `FirstLook.listings`.
    """
    return _listing(bucket.gather([bucket.page(listed)])[0])


def list_logs(bucket: Bucket, first: Listing, looks: int) -> dict[str, Present] | None:
    """Return the build logs in a bucket; None where so many looks at single ones cost less.

    Raises:
        PushError: as `FirstLook.listings`.
    """
    return _listed(bucket, LOGS, LOG_KEYS, first, looks)


def _listed(
    bucket: Bucket, listed: Listed, keys: HashedKeys, first: Listing, looks: int
) -> dict[str, Present] | None:
    """Return everything that a listing has; None where asking for single objects costs less.

    That may show only once it goes on and on, as that of a shared bucket does, or of a server that
    lies: no listing ends a push, but one that goes back.
    """
    found = _by_key(first)
    if not first.truncated or first.last_key is None or not looks:
        return found
    pages = keys.pages(first.last_key)
    if not worth_listing(pages, looks):
        return None
    parts = keys.parts(first.last_key, pages)
    allowed = most_pages(looks)
    while parts:
        allowed -= len(parts)
        if allowed < 0:
            return None
        answers = bucket.gather([bucket.page(listed, start) for start, _ in parts])
        parts = _rest(parts, [_listing(answer) for answer in answers], found)
    return found


def parsed(store_path: str, content: bytes) -> NarInfo | None:
    """Return a store path's narinfo in the bucket, None where it is not what it should be."""
    try:
        narinfo = NarInfo.parse(content.decode("ascii"))
    except (FormatError, UnicodeDecodeError):
        return None
    fits = (
        narinfo.store_path == store_path
        and narinfo.file_size is not None
        and is_nar_key(narinfo.url)
        and _names_its_compression(narinfo)
        and _names_its_hash(narinfo)
    )
    return narinfo if fits else None


def _names_its_compression(narinfo: NarInfo) -> bool:
    """Tell whether the NAR's name ends as those of its compression do."""
    suffix = SUFFIXES.get(narinfo.compression)
    if suffix is not None:
        return narinfo.url.endswith(f".nar{suffix}")
    return not any(narinfo.url.endswith(f".nar{one}") for one in SUFFIXES.values() if one)


def _names_its_hash(narinfo: NarInfo) -> bool:
    """Tell whether the NAR's name, if it is a hash, is that of the file, as Nix has it.

    Other programs name NARs by the hash of what is in them.
    """
    if narinfo.file_hash is None:
        return True
    name = narinfo.url.removeprefix("nar/").partition(".")[0]
    try:
        named = sha256_to_nix32(f"sha256:{name}")
    except FormatError:
        return True
    return named in (sha256_to_nix32(narinfo.file_hash), sha256_to_nix32(narinfo.nar_hash))


def signed_by(narinfo: NarInfo, key: PublicKey, most: int = _MOST_OWN_SIGNATURES) -> bool:
    """Tell whether one of the first signatures under a key's name is the key's."""
    text = narinfo.fingerprint.encode()
    own = [one for one in narinfo.signatures if one.startswith(f"{key.name}:")]
    return any(_verifies(key, text, one.partition(":")[2]) for one in own[:most])


def verify_key(narinfo: NarInfo, key: PublicKey) -> None:
    """Make sure of a narinfo that Nix signed: what a key signs, its public half verifies.

    Raises:
        PushError: it does not. Nobody could verify what this key signs.
    """
    if not signed_by(narinfo, key):
        raise PushError(
            "sign",
            "the two halves of the signing key do not belong together; set it to what nix key "
            "generate-secret wrote",
        )


def signed_anew(
    path: StorePath, narinfo: NarInfo, signature: str, keys: Sequence[PublicKey]
) -> bytes:
    """Return a narinfo with our signature: of the bucket's own only where the NAR lies is kept.

    Signatures by other keys stay beside it, as `bounded` has it; clients that trust only those
    still need them.
    """
    made = path.narinfo(
        narinfo.url,
        narinfo.compression,
        file_hash=narinfo.file_hash,
        file_size=narinfo.file_size,
        signatures=narinfo.signatures,
    )
    return bounded(path, made, signature, keys).format().encode("ascii")


def signed_besides(
    path: StorePath, content: bytes, there: NarInfo, keys: Sequence[PublicKey]
) -> bytes:
    """Return a narinfo of ours, our signature last, with those of one that says the same too."""
    made = NarInfo.parse(content.decode("ascii"))
    signatures = (*there.signatures, *made.signatures)
    made = replace(made, signatures=signatures)
    return bounded(path, made, signatures[-1], keys).format().encode("ascii")


def bounded(
    path: StorePath, narinfo: NarInfo, signature: str, keys: Sequence[PublicKey]
) -> NarInfo:
    """Return a narinfo with our signature last, and no more others than a push reads again.

    Where there are too many, those that are good by the cache's keys stay, and then the newest,
    which come last: whoever may push may add any, and keys that are retired leave theirs for ever.

    Args:
        path: what the narinfo is of.
        narinfo: with signatures of others, and perhaps wrong ones under our key's name.
        signature: ours.
        keys: the cache's; the last one signs.
    """
    name = f"{signature.partition(':')[0]}:"
    others = [one for one in dict.fromkeys(narinfo.signatures) if not one.startswith(name)]
    bare = replace(narinfo, signatures=(signature,))
    room = largest_narinfo(path) - len(bare.format())
    if len(others) > _MOST_SIGNATURES or sum(map(_line_size, others)) > room:
        good = _good(replace(narinfo, signatures=tuple(others)), keys)
        ranked = [*good, *(one for one in reversed(others) if one not in good)]
        kept: set[str] = set()
        for one in ranked:
            if _line_size(one) <= room and (one in good or len(kept) < _MOST_SIGNATURES):
                kept.add(one)
                room -= _line_size(one)
        others = [one for one in others if one in kept]
    return replace(bare, signatures=(*others, signature))


def _line_size(signature: str) -> int:
    return len(f"Sig: {signature}\n")


def _good(narinfo: NarInfo, keys: Sequence[PublicKey]) -> list[str]:
    """Return signatures that verify by one of the cache's keys, but for the one that signs.

    They are in the order of the keys, the newest first.
    """
    text = narinfo.fingerprint.encode()
    good = []
    for key in reversed(keys[:-1]):
        under = [one for one in narinfo.signatures if one.startswith(f"{key.name}:")]
        first = dict.fromkeys(under[:_MOST_OWN_SIGNATURES])
        good += [one for one in first if _verifies(key, text, one.partition(":")[2])][:1]
    return good


def _verifies(key: PublicKey, text: bytes, encoded: str) -> bool:
    try:
        return ed25519.verifies(key.data, text, base64.b64decode(encoded, validate=True))
    except (binascii.Error, ValueError):
        return False


def _remembered_path(path: StorePath, there: Present, remembered: RememberedNarInfo) -> Held:
    return Held(
        path,
        remembered.nar,
        remembered.nar_size,
        nar_day="",
        narinfo_etag=there.etag,
        narinfo_day=there.day,
        needs=path.references,
    )


def _listing(answer: Answer) -> Listing:
    try:
        return parse_listing(answer.body)
    except FormatError as error:
        raise PushError(
            "list",
            f"the server's listing cannot be read: {error}; see that an S3 server answers at "
            "endpoint",
        ) from None


def _by_key(listing: Listing) -> dict[str, Present]:
    return {
        one.key: Present(one.size, one.etag, one.last_modified.strftime("%Y-%m-%d"))
        for one in listing.objects
    }


def _rest(
    parts: Sequence[tuple[str, str | None]], pages: Sequence[Listing], found: dict[str, Present]
) -> list[tuple[str, str | None]]:
    """Take in pages, and return the parts that go on behind theirs."""
    rest = []
    for (start, end), page in zip(parts, pages, strict=True):
        found |= _by_key(page)
        last = page.last_key
        if not page.truncated or last is None or (end is not None and last >= end):
            continue
        if last <= start:
            raise PushError("list", "the server's listing does not go on; see the server's log")
        rest.append((last, end))
    return rest


def present_of(answers: Mapping[str, Answer]) -> dict[str, Present]:
    """Return which objects there are, by key, from answers for single ones."""
    present = {}
    for key, answer in answers.items():
        if answer.status == 404:
            continue
        size = answer.headers.get("content-length", "")
        told = int(size) if re.fullmatch(r"[0-9]{1,18}", size) else None
        present[key] = Present(told, answer.etag, day_of(answer))
    return present


def day_of(answer: Answer) -> str:
    """Return the day on which an object was last written."""
    try:
        modified: datetime = parse_http_date(answer.headers.get("last-modified", ""))
    except FormatError:
        # As good as very old: it is written again.
        return "0000-00-00"
    return modified.strftime("%Y-%m-%d")
