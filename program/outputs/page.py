"""A page for people: one HTML file that asks for nothing else, in two languages. Pure.

Both languages stand side by side in the text, and a style shows one of them; without scripts that
is English. The content security policy lets a page run its own style and script, by their hashes,
and nothing more.

Source: W3C, "Content Security Policy Level 3"; WAI-ARIA for the roles.
"""

from __future__ import annotations

import base64
import hashlib
from html import escape
from pathlib import Path
from urllib.parse import quote

STYLE = Path(__file__).with_name("landing_page.css").read_text(encoding="utf-8")
"""What all pages look like."""

SCRIPT = Path(__file__).with_name("landing_page.js").read_text(encoding="utf-8")
"""Switches languages, and copies texts."""

_ICON = (
    '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 16 16" fill="none" stroke="#5277c3" '
    'stroke-width="1.6" stroke-linecap="round"><path d="M8 1v14M2 4.5l12 7M2 11.5l12-7"/></svg>'
)


def document(titles: tuple[str, str], heading: str, lead: str, content: str, style: str) -> str:
    """Return a page's HTML text.

    Args:
        titles: its title, in English and in Chinese, as text.
        heading: its heading, as text.
        lead: what stands below the heading, as markup.
        content: its sections, as markup.
        style: its style sheet.
    """
    policy = (
        f"default-src 'none'; style-src {_hash(style)}; script-src {_hash(SCRIPT)}; "
        "img-src data:; base-uri 'none'; form-action 'none'"
    )
    return f"""\
<!doctype html>
<html lang="en" data-title-en="{escape(titles[0])}" data-title-zh="{escape(titles[1])}">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="referrer" content="no-referrer">
<title>{escape(titles[0])}</title>
<link rel="icon" href="data:image/svg+xml,{quote(_ICON)}">
<style>{style}</style>
</head>
<body>
<header>
<nav aria-label="Language / 语言">
<button type="button" data-language="en" lang="en" aria-pressed="true">English</button>
<button type="button" data-language="zh" lang="zh-Hans" aria-pressed="false">中文</button>
</nav>
<h1>{escape(heading)}</h1>
<p class="quiet">{lead}</p>
</header>
<main>
{content}</main>
<p role="status" class="spoken"></p>
{_said("copied", "Copied", "已复制")}
{_said("selected", "Selected: press Ctrl+C to copy", "已选中，请按 Ctrl+C 复制")}
<script>{SCRIPT}</script>
</body>
</html>
"""


def section(name: str, heading: tuple[str, str], lead: tuple[str, str], *figures: str) -> str:
    """Return a section's markup: its heading and lead in both languages, and what it shows."""
    return (
        f'<section aria-labelledby="{name}">\n<h2 id="{name}">{both(*heading)}</h2>\n'
        f'<p class="quiet">{both(*lead)}</p>\n{"".join(figures)}</section>\n'
    )


def both(english: str, chinese: str) -> str:
    """Return markup in both languages, of which the style shows one."""
    if english == chinese:
        return english
    return (
        f'<span lang="en" data-text="en">{english}</span>'
        f'<span lang="zh-Hans" data-text="zh">{chinese}</span>'
    )


def _said(done: str, english: str, chinese: str) -> str:
    return "".join(
        f'<template data-say="{done}" data-language="{language}">{text}</template>'
        for language, text in (("en", english), ("zh", chinese))
    )


def _hash(text: str) -> str:
    digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
    return f"'sha256-{digest}'"
