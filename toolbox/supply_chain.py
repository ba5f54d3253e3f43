"""What a deployment is made of, as a CycloneDX list, and what is known against it.

The list is of what is pinned: the Python packages of `requirements.lock` with the sums of their
files, and the Go modules that engine and server are built from, where they are built here.
"""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from cyclonedx.model import HashAlgorithm, HashType, Property
from cyclonedx.model.bom import Bom
from cyclonedx.model.component import Component, ComponentType
from cyclonedx.output import make_outputter
from cyclonedx.schema import OutputFormat, SchemaVersion
from packageurl import PackageURL

from toolbox import tools
from toolbox.errors import ToolboxError
from toolbox.progress import say

LOCK = "requirements.lock"
_PACKAGE = re.compile(r"(?m)^([a-z0-9-]+)==(\S+)((?:[^\n]*\\\n)*[^\n]*)")
_SUM = re.compile(r"--hash=sha256:([0-9a-f]{64})")
_MODULE = re.compile(r"(?m)^\s+(\S+) (v\S+)(?: // indirect)?$")


def bill_of_materials() -> str:
    """Return the list, as CycloneDX's JSON."""
    project = Component(name="nixcache", type=ComponentType.APPLICATION)
    bom = Bom(components=[*_packages(), *_modules()])
    bom.metadata.component = project
    bom.register_dependency(project, bom.components)
    return make_outputter(bom, OutputFormat.JSON, SchemaVersion.V1_6).output_as_string(indent=1)


def _packages() -> Iterator[Component]:
    for name, version, sums in _PACKAGE.findall((tools.CHECKOUT / LOCK).read_text()):
        yield Component(
            name=name,
            version=version,
            purl=PackageURL("pypi", name=name, version=version),
            bom_ref=f"pypi/{name}@{version}",
            hashes=[HashType(alg=HashAlgorithm.SHA_256, content=one) for one in _SUM.findall(sums)],
        )


def _modules() -> Iterator[Component]:
    for source in (tools.ENGINE, tools.SERVER):
        required, sums = (file.read_text() for file in source.files)
        known = dict(re.findall(r"(?m)^(\S+ v\S+) (h1:\S+)$", sums))
        for module, version in sorted(_MODULE.findall(required)):
            namespace, _, name = module.rpartition("/")
            yield Component(
                name=module,
                version=version,
                purl=PackageURL("golang", namespace=namespace, name=name, version=version),
                bom_ref=f"go/{source.directory}/{module}",
                # A sum over a module's files, which is none of CycloneDX's kinds.
                properties=[
                    Property(name="go.sum", value=known[f"{module} {version}"]),
                    Property(name="built into", value=source.binary),
                ],
            )


def look_for_vulnerabilities() -> None:
    """Ask the databases of PyPI and of Go about what is pinned and built; both need a network.

    Raises:
        ToolboxError: something is known, or a database cannot be asked.
    """
    environment = Path(sys.executable).parent
    audit = ["--strict", "--require-hashes", "--disable-pip", "--requirement", LOCK]
    scanner = tools.vulnerability_scanner().path
    built = [tool.path for tool in (tools.engine(), tools.server())]
    commands: list[tuple[str, Sequence[str]]] = [
        (LOCK, [str(environment / "pip-audit"), *audit]),
        *((path.name, [str(scanner), "-mode=binary", str(path)]) for path in built),
    ]
    wrong = []
    for what, command in commands:
        say(f"{what}: {Path(command[0]).name}")
        if subprocess.run(command, cwd=tools.CHECKOUT, check=False).returncode != 0:
            wrong.append(what)
    if wrong:
        raise ToolboxError(
            f"something is known of {', '.join(wrong)}, or it could not be found out; see above"
        )
