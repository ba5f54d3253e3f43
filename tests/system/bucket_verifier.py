"""Walks a bucket as a suspicious reader would: is every narinfo in it complete?"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import date

from minio.datatypes import Object
from minio.error import S3Error

from formats.error import FormatError
from formats.narinfo import NarInfo
from formats.signing import verified_by
from tests.system.cache_bucket import CacheBucket, OpenBucket


@dataclass
class Verdict:
    """What one walk, or several, found."""

    walks: int = 0
    narinfos: int = 0
    """Narinfos looked at, over all walks."""
    problems: list[str] = field(default_factory=list)
    """One sentence each: what a reader would trip over."""


def verify(
    bucket: OpenBucket, upstream: frozenset[str] = frozenset(), *, leases: bool = False
) -> Verdict:
    """Check every narinfo: its signature, its NAR and that NAR's size, its references.

    `upstream` are store paths, without their directory, that need not be in the bucket. With
    `leases`, nothing that a narinfo needs may have been written on an earlier day. Pushes may
    run meanwhile: what a narinfo needs is looked up after the narinfo was seen.
    """
    listed = {key: o for key, o in bucket.objects().items() if key.endswith(".narinfo")}
    with ThreadPoolExecutor(4) as workers:
        seen = dict(zip(listed, workers.map(bucket.get, listed), strict=True))
    objects = bucket.objects()
    verdict = Verdict(walks=1, narinfos=len(seen))
    for key, content in seen.items():
        try:
            narinfo = NarInfo.parse(content.decode())
        except (FormatError, UnicodeDecodeError) as error:
            verdict.problems.append(f"{key} is no narinfo: {error}")
            continue
        if not verified_by(narinfo, {bucket.public_key.name: bucket.public_key}):
            verdict.problems.append(f"{key} has no signature by {bucket.public_key.name}")
        nar = objects.get(narinfo.url)
        if nar is None:
            verdict.problems.append(f"{key} has no NAR {narinfo.url}")
        elif nar.size != narinfo.file_size:
            verdict.problems.append(f"{key} has a NAR of {nar.size} bytes: {narinfo.url}")
        verdict.problems += [
            f"{key} refers to {reference}, which is absent"
            for reference in narinfo.references
            if f"{reference[:32]}.narinfo" not in objects and reference not in upstream
        ]
        needed = [narinfo.url, *(f"{reference[:32]}.narinfo" for reference in narinfo.references)]
        verdict.problems += [
            f"{key} outlives {other}"
            for other in needed
            if leases and other in objects and _day(objects[other]) < _day(listed[key])
        ]
    return verdict


def _day(entry: Object) -> date:
    assert entry.last_modified is not None
    return entry.last_modified.date()


@contextmanager
def watched(bucket: CacheBucket) -> Iterator[Verdict]:
    """Verify a bucket over and over, beside whatever the block does to it."""
    total = Verdict()
    done = threading.Event()

    def walk() -> None:
        while True:
            last = done.is_set()
            try:
                verdict = verify(bucket)
            except S3Error as error:
                verdict = Verdict(problems=[str(error)])
            total.walks += 1
            total.narinfos += verdict.narinfos
            total.problems += verdict.problems
            if last:
                return

    walker = threading.Thread(target=walk)
    walker.start()
    try:
        yield total
    finally:
        done.set()
        walker.join()
