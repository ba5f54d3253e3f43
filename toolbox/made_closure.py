"""Closures made to measure: sizes and references planned here, content made by one Nix build.

All paths are outputs of a single derivation, so that 3,000 of them cost one builder process;
outputs may refer to one another, and Nix finds the references by scanning, as it always does.
An eighth of the content is incompressible, the rest text: zstd makes a third of it, as it does
of Debian's /usr (35 %).
"""

from __future__ import annotations

import math
import random
from dataclasses import dataclass

TOP = "out"
"""Output that refers, directly or not, to every other one."""


@dataclass(frozen=True)
class PlannedPath:
    """One path of a planned closure."""

    output: str
    """Name of the derivation's output."""
    size: int
    """Bytes of content."""
    references: tuple[str, ...]
    """Outputs it refers to, itself perhaps among them."""


def plan(paths: int, total_bytes: int, seed: int) -> list[PlannedPath]:
    """Plan `paths` paths of `total_bytes` together, the last one the top of the closure.

    Sizes spread over two orders of magnitude. References mix a chain (to the path before) with
    fan-in (many to few, as to a C library), and the top takes in whatever nothing refers to.
    The same arguments always give the same plan.

    Raises:
        ValueError: there are fewer than one path, or fewer bytes than paths.
    """
    if paths < 1 or total_bytes < paths:
        raise ValueError(f"a closure needs a path, and a byte for each: {paths}, {total_bytes}")
    # Only random() is promised to give the same numbers in every version of Python.
    draw = random.Random(seed).random
    outputs = [f"p{number}" for number in range(1, paths)] + [TOP]
    sizes = _sizes([math.exp(5 * draw()) for _ in outputs], total_bytes)
    unreferenced: set[int] = set()
    planned = []
    for index, output in enumerate(outputs):
        if index == paths - 1:
            chosen = set(unreferenced)
        else:
            chosen = {int(index * draw() ** 2) for _ in range(int(4 * draw())) if index}
            if index and draw() < 0.5:
                chosen.add(index - 1)
        unreferenced = (unreferenced - chosen) | {index}
        if index % 5 == 0:
            chosen.add(index)
        references = tuple(outputs[number] for number in sorted(chosen))
        planned.append(PlannedPath(output, sizes[index], references))
    return planned


def _sizes(weights: list[float], total: int) -> list[int]:
    spare = total - len(weights)
    sizes = [1 + int(spare * weight / sum(weights)) for weight in weights]
    sizes[-1] += total - sum(sizes)
    return sizes


def plan_text(planned: list[PlannedPath]) -> str:
    """Return the plan as the generator reads it: `output size reference…`, one path a line."""
    return "".join(
        " ".join((path.output, str(path.size), *path.references)) + "\n" for path in planned
    )


def expression(name: str, seed: int, planned: list[PlannedPath]) -> str:
    """Return a Nix expression that builds the closure; generator and plan lie beside it.

    The generator is `generate.pl`, the plan `plan`; `name` becomes part of every path.
    """
    outputs = " ".join(f'"{path.output}"' for path in reversed(planned))
    return f"""\
derivation {{
  name = "{name}";
  system = builtins.currentSystem;
  builder = "/usr/bin/perl";
  args = [ ./generate.pl ];
  seed = "{seed:x}";
  outputs = [ {outputs} ];
  plan = builtins.readFile ./plan;
  passAsFile = [ "plan" ];
}}
"""


GENERATOR = r"""
use strict;
use warnings;

open my $listed, '<', $ENV{planPath} or die "plan: $!";
my @plan = <$listed>;
my $total = 0;
$total += (split)[1] for @plan;

my $BLOCK = 32 * 1024;
my $block = 0;
# Making 4 MiB takes longer than all else of a small closure does.
my $POOL = 4 * $BLOCK;
$POOL *= 2 while $POOL < $total && $POOL < 4 * 1024 * 1024;

# Incompressible bytes: a cipher's key stream, without end.
open my $noise, '-|', '/bin/sh', '-c',
    "exec /usr/bin/openssl enc -aes-256-ctr -nosalt -K $ENV{seed} -iv 0 </dev/zero 2>/dev/null"
    or die "openssl: $!";
binmode $noise;

sub noise {
    my ($size) = @_;
    my $bytes = '';
    while (length $bytes < $size) {
        read $noise, $bytes, $size - length $bytes, length $bytes or die "no more noise: $!";
    }
    return $bytes;
}

# Text that compresses to about a quarter: words drawn from a small vocabulary.
my @words = map { unpack 'H*', noise(1 + ord(noise(1)) % 5) } 1 .. 4096;
my $text = join ' ', map { $words[$_ & 4095] } unpack 'n*', noise($POOL / 2);
my $offset = 0;

sub text {
    my ($size) = @_;
    $offset = ($offset + 7919 + $size) % (length($text) - $BLOCK);
    return substr $text, $offset, $size;
}

sub content {
    my ($path, $head, $size) = @_;
    open my $file, '>', $path or die "$path: $!";
    binmode $file;
    print $file $head or die "$path: $!";
    for (; $size > 0; $block++) {
        my $part = $size < $BLOCK ? $size : $BLOCK;
        print $file $block % 8 ? text($part) : noise($part) or die "$path: $!";
        $size -= $part;
    }
    close $file or die "$path: $!";
}

my $number = 0;
for (@plan) {
    my ($output, $size, @references) = split;
    my $path = $ENV{$output};
    my $head = join '', map { "$ENV{$_}\n" } @references;
    if ($number++ % 4 == 0) {
        content($path, $head, $size);
        next;
    }
    mkdir $_ or die "$_: $!" for $path, "$path/bin", "$path/share";
    content("$path/share/$output", '', $size);
    content("$path/bin/$output", "#!/bin/sh\n$head", 0);
    chmod 0755, "$path/bin/$output" or die "$path: $!";
    symlink 'share', "$path/lib" or die "$path: $!";
}
"""
"""Perl, which Debian's smallest tree has: fills the outputs of the plan."""
