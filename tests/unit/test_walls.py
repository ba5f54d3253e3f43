"""The walls between the rooms: who may import whom, read from the imports themselves."""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

from tests.unit.configuration import PROJECT_ROOT


@dataclass(frozen=True)
class Wall:
    """What the modules of one room may import besides the standard library and each other."""

    sentence: str
    """The wall in words, for whoever runs into it."""
    rooms: frozenset[str]
    libraries: frozenset[str] | None = None
    """Other people's libraries; None is any."""


def wall(sentence: str, *rooms: str, libraries: frozenset[str] | None = None) -> Wall:
    return Wall(sentence, frozenset(rooms), libraries)


NO_LIBRARY: frozenset[str] = frozenset()
FORMATS = ("formats", "formats.signing")
PROGRAM = ("program", "components", "push", *FORMATS)

# Of two rooms that a module could be in, it is in the one with the longer name.
WALLS = {
    "formats": wall("formats import the standard library only", libraries=NO_LIBRARY),
    "formats.signing": wall(
        "what signs imports formats and PyNaCl only", "formats", libraries=frozenset({"nacl"})
    ),
    "push": wall(
        "push runs on a builder's Python: formats and the standard library, and nothing that signs",
        "formats",
        libraries=NO_LIBRARY,
    ),
    "components": wall("components know no settings: never program", "push", *FORMATS),
    "program": wall("program stands on components", "components", "push", *FORMATS),
    "__main__": wall("__main__ is the program on one screen", "program", "components"),
    "operations": wall("operations stand beside __main__, on the program", *PROGRAM),
    "toolbox": wall("the toolbox knows nothing of the program", *FORMATS),
    "benchmarks": wall("nobody imports __main__", "operations", "tests", "toolbox", *PROGRAM),
    "tests": wall("nobody imports __main__", "operations", "benchmarks", "toolbox", *PROGRAM),
}


@dataclass(frozen=True)
class Import:
    """One import, wherever in a file it stands."""

    place: str
    importer: str
    imported: str


def module_of(file: Path) -> str:
    """Return what a file, given from the project's root, is imported as."""
    parts = file.with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports_of(root: Path) -> Iterator[Import]:
    """Yield every import of a project, those inside functions and for type checking too."""
    folders = [root / room for room in WALLS]
    files = [*root.glob("*.py"), *(file for folder in folders for file in folder.rglob("*.py"))]
    modules = {module_of(file.relative_to(root)) for file in files}
    for file in files:
        importer = module_of(file.relative_to(root))
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                names = {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                whole = {f"{node.module}.{alias.name}" for alias in node.names}
                names = {name if name in modules else node.module for name in whole}
            else:
                continue
            for name in sorted(names):
                yield Import(f"{file.relative_to(root)}:{node.lineno}", importer, name)


def room_of(module: str) -> str | None:
    """Return the room that a module is in, or None for a library's."""
    return max(
        (room for room in WALLS if f"{module}.".startswith(f"{room}.")), key=len, default=None
    )


def broken_walls(root: Path) -> list[str]:
    """Return a sentence for each import of a project that goes through a wall."""
    return [
        f"{found.place} imports {found.imported}: {WALLS[room].sentence}"
        for found in imports_of(root)
        if (room := room_of(found.importer)) is not None
        and not may_import(WALLS[room], room, found.imported)
    ]


def may_import(wall: Wall, room: str, imported: str) -> bool:
    """Tell whether a room's wall has a door to a module."""
    other, name = room_of(imported), imported.partition(".")[0]
    if other is not None:
        return other in {room, *wall.rooms} and other != "__main__"
    return name in sys.stdlib_module_names or wall.libraries is None or name in wall.libraries


def circle(root: Path) -> list[str]:
    """Return the modules of an import circle, the first one again at the end; or none."""
    graph: dict[str, set[str]] = {}
    for found in imports_of(root):
        graph.setdefault(found.importer, set()).add(found.imported)
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return list(error.args[1])
    return []


def test_no_import_goes_through_a_wall() -> None:
    assert broken_walls(PROJECT_ROOT) == []


def test_no_import_goes_in_a_circle() -> None:
    assert circle(PROJECT_ROOT) == []


def test_every_room_has_a_wall() -> None:
    packages = {path.parent.name for path in PROJECT_ROOT.glob("*/__init__.py")}
    modules = {path.stem for path in PROJECT_ROOT.glob("*.py")}
    assert packages | modules == {room for room in WALLS if "." not in room}


def test_the_map_says_of_each_room_what_it_may_use() -> None:
    page = (PROJECT_ROOT / "docs" / "architecture.md").read_text()
    table = page.partition("| room |")[2].partition("\n\n")[0]
    said, kept = {}, {}
    for row in table.splitlines()[2:]:
        name, _, doors, _ = row.removeprefix("| ").split(" |", 3)
        room = module_of(Path(name.strip("`")))
        if room in WALLS:
            said[room] = {module_of(Path(door)) for door in re.findall("`([^`]+)`", doors)}
            kept[room] = WALLS[room].rooms | (WALLS[room].libraries or set())
            if "every room but" in doors:
                said[room] = {*WALLS, "__main__"} - said[room] - {room}
    assert said == kept
    assert kept.keys() == WALLS.keys()


def test_the_library_reads_no_configuration() -> None:
    readers = {"Config", "get_config", "get_config_env", "is_config_secret"}
    found = [
        f"{file.name}:{node.lineno}"
        for file in (PROJECT_ROOT / "components").glob("*.py")
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8")))
        if isinstance(node, ast.Attribute) and node.attr in readers
    ]
    assert found == []


@pytest.mark.parametrize(
    ("file", "text"),
    [
        ("formats/keys.py", "import nacl.signing"),
        ("formats/keys.py", "import formats.signing"),
        ("formats/signing.py", "import pulumi"),
        ("push/upload.py", "import minio"),
        ("push/upload.py", "from formats.signing import SecretKey"),
        ("push/upload.py", "from components import retention"),
        ("components/closure.py", "from program.settings.builders import BuilderSettings"),
        ("components/closure.py", "from operations import drift"),
        ("program/links.py", "import operations.bucket"),
        ("operations/drift.py", "from toolbox import tools"),
        ("operations/drift.py", "from tests.unit import configuration"),
        ("toolbox/tools.py", "from program.settings import stack"),
        ("toolbox/tools.py", "from tests.system.stack import Stack"),
        ("benchmarks/bench_push.py", "import __main__"),
        ("tests/unit/test_main.py", "from __main__ import stack"),
        ("__main__.py", "import toolbox"),
    ],
)
@pytest.mark.parametrize(
    "planted", ["{}", "def later() -> None:\n    {}", "if TYPE_CHECKING:\n    {}"]
)
def test_an_import_through_a_wall_is_found_and_the_wall_named(
    tmp_path: Path, file: str, text: str, planted: str
) -> None:
    path = tmp_path / file
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(planted.format(text))
    (sentence,) = broken_walls(tmp_path)
    assert sentence.startswith(f"{file}:")
    room = room_of(module_of(Path(file)))
    assert room is not None
    assert sentence.endswith(WALLS[room].sentence)


def test_a_circle_is_found_and_its_modules_named(tmp_path: Path) -> None:
    (tmp_path / "program").mkdir()
    (tmp_path / "program" / "links.py").write_text("import program.connections")
    (tmp_path / "program" / "connections.py").write_text(
        "def later():\n    from program import links"
    )
    assert set(circle(tmp_path)) == {"program.links", "program.connections"}
