"""The cache's page for people: how to reach it, whom to trust, what to paste. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from html import escape

from program.outputs.counted import counted
from program.outputs.figures import Figures
from program.outputs.machines import TRUSTING_A_CA, ClientConfiguration
from program.outputs.page import STYLE, both, document, section

LARGEST_PAGE = 1 << 22
"""Bytes that are read of what may be such a page."""


def landing_page(
    client: ClientConfiguration, retention_days: int | None, figures: Figures | None = None
) -> str:
    """Return the HTML text of a public cache's page.

    Args:
        client: what a machine needs to use the cache.
        retention_days: days that an entry lives after its last push; None for ever.
        figures: what it had when somebody looked; None shows none.
    """
    name = client.substituter.partition("://")[2]
    return document(
        (f"{name}: a Nix binary cache", f"{name}：Nix 二进制缓存"),
        name,
        both(*_about(retention_days)),
        ("" if figures is None else figures.markup()) + "".join(_sections(client)),
        STYLE,
    )


def is_landing_page(page: bytes) -> bool:
    """Tell whether a page is one that `landing_page` made, whatever cache it was for."""
    return all(f'id="{name}"'.encode() in page for name in ("nixos-text", "flake-text"))


def _about(retention_days: int | None) -> tuple[str, str]:
    english = (
        "A Nix binary cache: ready-made packages that Nix downloads instead of building them. "
    )
    chinese = "Nix 二进制缓存：Nix 直接下载构建好的软件包，无需自行构建。"
    if retention_days is None:
        return english + "Entries do not expire.", chinese + "条目不会过期。"
    days = counted(retention_days, "day")
    return (
        f"{english}An entry lives {days} after the last push that contains it.",
        f"{chinese}条目在最后一次推送后保留 {retention_days} 天。",
    )


def _sections(client: ClientConfiguration) -> Iterator[str]:
    keys = len(client.public_keys)
    yield section(
        "url",
        ("Address", "地址"),
        ("What Nix calls a substituter.", "即 Nix 所说的 substituter。"),
        _snippet("url-text", ("Substituter", "Substituter"), client.substituter, wrap=True),
    )
    yield section(
        "keys",
        ("Public keys" if keys > 1 else "Public key", "公钥"),
        (
            "Nix takes from here only what one of these keys signed."
            if keys > 1
            else "Nix takes from here only what this key signed.",
            "Nix 只接受由此处公钥签名的内容。",
        ),
        *(
            _snippet(f"key-{number}", (name, name), key, wrap=True)
            for number, key in enumerate(client.public_keys, 1)
            for name in [escape(key.partition(":")[0])]
        ),
    )
    yield section(
        "nixos",
        ("Use it on NixOS", "在 NixOS 上使用"),
        (
            "Save it as a file, and add the file to imports in configuration.nix.",
            "保存为文件，并加入 configuration.nix 的 imports。",
        ),
        _snippet("nixos-text", ("NixOS module", "NixOS 模块"), client.nixos_configuration()),
    )
    yield section(
        "flake",
        ("Use it in a flake", "在 flake 中使用"),
        (
            "Put it beside inputs and outputs in flake.nix; Nix asks of each setting whether to "
            "trust it.",
            "放在 flake.nix 中，与 inputs、outputs 并列；Nix 会逐项询问是否信任。",
        ),
        _snippet("flake-text", ("flake.nix", "flake.nix"), client.flake_nix_config()),
    )
    yield section(
        "nix-conf",
        ("Use it with any other Nix", "在其他系统上使用"),
        (
            "Add the lines to /etc/nix/nix.conf, in the place of any that it has of this cache, "
            "and restart the Nix daemon.",
            "加入 /etc/nix/nix.conf，替换其中此缓存原有的行，然后重启 Nix 守护进程。",
        ),
        _snippet("nix-conf-text", ("nix.conf", "nix.conf"), client.nix_conf()),
    )
    if client.ca_certificate is not None:
        yield section(
            "ca",
            ("The certificate authority", "证书颁发机构"),
            (
                "A private authority signed the server's certificate. The NixOS module above "
                "trusts it; elsewhere save it as ca.pem, let the system trust it as root, and "
                "restart the Nix daemon.",
                "服务器证书由私有机构签发。上面的 NixOS 模块已信任它；其他系统请将其保存为 ca.pem，"
                "以 root 身份让系统信任它，然后重启 Nix 守护进程。",
            ),
            _snippet("ca-text", ("CA certificate", "CA 证书"), client.ca_certificate),
            *(
                _snippet(f"ca-system-{number}", (escape(name), escape(name)), step)
                for number, (name, step) in enumerate(TRUSTING_A_CA.items(), 1)
            ),
        )


def _snippet(name: str, caption: tuple[str, str], text: str, wrap: bool = False) -> str:
    """Return a text with its caption and a button that copies it.

    A text that does not wrap scrolls, so the keyboard must be able to reach it.
    """
    shown = escape(text.strip("\n"))
    attributes = f'role="region" tabindex="0" aria-labelledby="{name}-caption"'
    if wrap:
        attributes = 'class="wrap"'
    label = both(
        f'Copy<span class="spoken"> {caption[0]}</span>',
        f'复制<span class="spoken">{caption[1]}</span>',
    )
    return (
        f'<figure>\n<figcaption><span id="{name}-caption">{both(*caption)}</span>'
        f'<button type="button" data-copies="{name}">{label}</button></figcaption>\n'
        f'<pre {attributes}><code id="{name}">{shown}</code></pre>\n</figure>\n'
    )
