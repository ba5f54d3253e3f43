"""Files that settings name: what has no end is not waited for, and a bundle may be anybody's."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from program.settings.local_file import read_local_file
from program.settings.reader import SettingError
from program.settings.stack import parse
from tests.unit.configuration import HOST_KEY, configuration, refusal
from toolbox.certificates import make_authority

NOWHERE = "no-such-user-anywhere"


def told(name: str) -> str:
    """Return what a file is refused with."""
    with pytest.raises(SettingError) as refused:
        read_local_file("caCertificateFile", name, "the CA's PEM file")
    return str(refused.value)


def fifo(directory: Path) -> Path:
    path = directory / "fifo"
    os.mkfifo(path)
    return path


def large(directory: Path) -> Path:
    path = directory / "large"
    with path.open("wb") as file:
        file.truncate(1 << 23)
    return path


def written(directory: Path, content: bytes) -> Path:
    path = directory / "written"
    path.write_bytes(content)
    return path


def test_what_is_not_read_to_its_end_is_not_begun(tmp_path: Path) -> None:
    remedy = "; name the CA's PEM file"
    for path, reason in (
        (fifo(tmp_path), "it is no file"),
        (Path("/dev/zero"), "it is no file"),
        (tmp_path, "it is no file"),
        (large(tmp_path), "it is too large"),
        (tmp_path / "none", "No such file or directory"),
        (tmp_path / "a\0b", "it is no path"),
        (written(tmp_path, b"\xef\xbb\xbf-----BEGIN"), "it is no ASCII text"),
    ):
        assert told(str(path)).endswith(f"cannot be read ({reason}){remedy}")
    for name in (f"~{NOWHERE}/ca.pem", "~\0/ca.pem"):
        assert "there is no such user; write the whole path" in told(name)


def test_a_private_key_that_is_a_fifo_is_not_waited_for(tmp_path: Path) -> None:
    name = str(fifo(tmp_path))
    builder = {"name": "one", "host": "10.0.0.2", "hostKey": HOST_KEY, "privateKeyFile": name}
    refused = refusal(builders=[builder])
    assert refused.startswith("builders[0].privateKeyFile is ")
    assert refused.endswith("cannot be read (it is no file); name the private key's file")


def test_a_bundle_may_name_its_authorities_in_any_language(tmp_path: Path) -> None:
    certificate = make_authority(tmp_path).ca_file.read_text()
    bundle = tmp_path / "bundle.pem"
    bundle.write_text(f"# NetLock Arany (Főtanúsítvány)\n{certificate}", encoding="utf-8")
    settings = parse(configuration(caCertificateFile=str(bundle)))
    assert settings.ca_certificate == certificate


def test_a_bundle_that_go_reads_otherwise_is_refused(tmp_path: Path) -> None:
    certificate = make_authority(tmp_path).ca_file.read_bytes()
    marked = written(tmp_path, b"\xef\xbb\xbf" + certificate)
    refused = refusal(caCertificateFile=str(marked))
    assert refused.endswith(
        "cannot be read (it begins with a byte order mark); name the CA's PEM file"
    )
    behind = written(tmp_path, b"the CA: " + certificate)
    assert "holds no certificate" in refusal(caCertificateFile=str(behind))
