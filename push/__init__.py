"""What runs on a builder: pushes closures of its Nix store to a binary cache on an S3 server.

THE INVARIANT. At every moment, whatever is killed, each narinfo that a reader sees has its NAR in
the bucket, whole, and the narinfo of each of its references, except for paths that an upstream
cache signs. Hence the one order of all writes:

1. a path's NAR, uploaded or renewed;
2. its narinfo, after those that it refers to.

Leases follow from it. The bucket forgets an object so many whole UTC days after its last write, a
NAR later than a narinfo. Whatever was not written today is written again, in the same order: then
nothing outlives what it depends on, and all of it lives as long as the retention says, counted from
this push.

WHAT IT BELIEVES. What is signed is made from this machine's own store, never from text of the
bucket, and Nix never parses a byte that came from there. What the bucket and the server say is
read by `formats`, strictly and within bounds, and decides only what is written again.

HOW. `nix copy` fills a directory that already holds, as stubs, all that a path refers to, so it
compresses and signs just the paths that the bucket lacks. They are dealt into batches, one
`nix copy` each, while the NARs of those before go up and are deleted, and their narinfos follow.

It needs Python 3.10 and Nix 2.8, nothing newer and nothing else: this package and `formats` are
standard library only.
"""

from __future__ import annotations

VERSION = "0.1.0"
"""The project's, as `pyproject.toml` has it: what a builder runs may be older than the stack."""
