"""What a message shows of a setting: nothing that looks like a secret in the wrong place.

Messages reach the logs of CI jobs and the comments on pull requests. What cannot be told from a
secret is hidden too.
"""

from __future__ import annotations

import re

HIDDEN = "..."
"""What stands for what is not shown."""

_PEM = "PRIVATE KEY"
# In a URL, and without its scheme.
_LOGIN = re.compile(r"(?<=://).*@|(?<=[A-Za-z0-9._-]:)(?!//)\S+@", re.DOTALL)
# Whoever has the URL of a signed request may make the request.
_SIGNATURE = re.compile(r"(?<=\?)(?:X-Amz-|AWSAccessKeyId)\S*")
# A signing key within a sentence. A public one stays: it is what somebody is told to write.
_SIGNING_KEY = re.compile(
    r"(?<![A-Za-z0-9.-])(?<!://)(?P<name>[A-Za-z0-9][A-Za-z0-9.-]*-[0-9]+:)"
    r"(?![A-Za-z0-9+/]{43}=(?![A-Za-z0-9+/=]))(?![0-9]{1,5}(?![A-Za-z0-9+/=]))[^\s\"',;]+"
)
_PUBLIC_KEY = re.compile(r":[A-Za-z0-9+/]{43}=$")
_BASE64 = re.compile(r"(?<![A-Za-z0-9+/=])[A-Za-z0-9+/]{40,}=*")
_HEXADECIMAL = re.compile(r"[0-9a-f]{64}")
_KINDS_OF_LETTERS = ("[a-z]", "[A-Z]", "[0-9]")
_LONGEST_WORD = 19

# What is a value, and not a part of a sentence: `name:base64` of Nix, and `user:secret`.
_NAMED = re.compile(r"(?P<name>[A-Za-z0-9._@+-]+:).+", re.DOTALL)
_NOT_NAMED = re.compile(
    r"[A-Za-z0-9]+://.*"  # a URL
    r"|[^:]+:[0-9]{1,5}"  # a host and its port
    r"|(?:[0-9A-Fa-f]{0,4}:){2,8}[0-9A-Fa-f.]{0,15}",  # an IPv6 address
    re.DOTALL,
)
# A password that has blanks, behind a quotation mark, say.
_LOGIN_WITHIN = re.compile(r"(?<![A-Za-z0-9._+-])(?P<name>[A-Za-z0-9._+-]+:)(?!//).+@", re.DOTALL)


def without_secrets(value: object) -> object:
    """Return a setting's value, whose texts have lost whatever looks like a secret."""
    try:
        if isinstance(value, str):
            return _shown(value)
        if isinstance(value, dict):
            return {_shown(str(name)): without_secrets(one) for name, one in value.items()}
        if isinstance(value, list | tuple):
            return [without_secrets(one) for one in value]
    except RecursionError:
        return HIDDEN
    return value


def sentence_without_secrets(sentence: str, value: object) -> str:
    """Return a sentence about a setting without secrets; it may repeat the setting's `value`."""
    if isinstance(value, str) and value:
        sentence = sentence.replace(value, _shown(value))
    before, pem, _ = sentence.partition(_PEM)
    if pem:
        sentence = f"{before.partition('-----BEGIN')[0]}{HIDDEN}"
    sentence = _without_patterns(sentence)
    return _BASE64.sub(lambda found: HIDDEN if _is_secret(found) else found[0], sentence)


def _shown(text: str) -> str:
    if _PEM in text:
        return HIDDEN
    named = _NAMED.fullmatch(text)
    if named is not None and not _NOT_NAMED.fullmatch(text):
        return f"{named['name']}{HIDDEN}"
    text = _LOGIN_WITHIN.sub(rf"\g<name>{HIDDEN}@", _without_patterns(text))
    for found in _BASE64.finditer(text):
        if _is_secret(found):
            # The lines after it may be the rest of a key.
            return f"{text[: found.start()]}{HIDDEN}"
    return text


def _without_patterns(text: str) -> str:
    text = _SIGNATURE.sub(HIDDEN, _LOGIN.sub(f"{HIDDEN}@", text))
    return _SIGNING_KEY.sub(rf"\g<name>{HIDDEN}", text)


def _is_secret(found: re.Match[str]) -> bool:
    """Tell whether what may be base64 is no path, whose parts are words, and no public key."""
    if _PUBLIC_KEY.search(found.string, 0, found.end()):
        return False
    # Secrets of Garage and R2 are hexadecimal, those of AWS and MinIO have all kinds of letters.
    return bool(_HEXADECIMAL.fullmatch(found[0])) or any(
        len(part) > _LONGEST_WORD and all(re.search(kind, part) for kind in _KINDS_OF_LETTERS)
        for part in found[0].split("/")
    )
