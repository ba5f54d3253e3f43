"""What a message shows of a setting: nothing that looks like a secret in the wrong place.

Messages reach the logs of CI jobs and the comments on pull requests. What cannot be told from a
secret is hidden too.
"""

from __future__ import annotations

import re
from collections.abc import Callable

HIDDEN = "..."
"""What stands for what is not shown."""

_PEM = "PRIVATE KEY"
# In a URL, and without its scheme. A value's password may have blanks; a sentence goes on with
# another word, in which an @ is somebody's name.
_LOGIN = re.compile(r"(?<=://).*@|(?<=[A-Za-z0-9._-]:)(?!//)\S+@", re.DOTALL)
_LOGIN_IN_SENTENCE = re.compile(r"(?<=://)\S*@|(?<=[A-Za-z0-9._-]:)(?!//)\S+@")
# Whoever has the URL of a signed request may make the request.
_SIGNATURE = re.compile(r"(?<=\?)(?:X-Amz-|AWSAccessKeyId)\S*")
# A signing key within a sentence. A public one stays: it is what somebody is told to write. So
# does an address with a port and a path; a key may begin like one, and is longer.
_SIGNING_KEY = re.compile(
    r"(?<![A-Za-z0-9.-])(?<!://)(?P<name>[A-Za-z0-9][A-Za-z0-9.-]*-[0-9]+:)"
    r"(?![A-Za-z0-9+/]{43}=(?![A-Za-z0-9+/=]))"
    r"(?![0-9]{1,5}(?:/(?![A-Za-z0-9+/]{40})|(?![A-Za-z0-9+/=])))[^\s\"',;]+"
)
_PUBLIC_KEY = re.compile(r":[A-Za-z0-9+/]{43}=$")
_BASE64 = re.compile(r"(?<![A-Za-z0-9+/=])[A-Za-z0-9+/]{40,}=*")
# In base64 for URLs, too, as a word of its own: no part of a longer path or name, nor a path that
# begins as such.
_RUN = re.compile(
    r"(?<![A-Za-z0-9+/_.:~-])[A-Za-z0-9+_-][A-Za-z0-9+/_-]{39,}=*(?![.:]?[A-Za-z0-9+/_=-])"
)
# Capital letters and digits within words. Of forty random letters one in five thousand has fewer.
_WITHIN_WORDS = re.compile(r"(?<=[a-z0-9])[A-Z]|(?<=[A-Z])[0-9]")
_MOST_WITHIN_WORDS = 3
# Secrets of Garage and R2, as words of their own: the id of an account at R2 begins a host's name.
_HEXADECIMAL = re.compile(r"(?<![A-Za-z0-9+/._-])[0-9A-Fa-f]{32,}(?!\.?[A-Za-z0-9+/=_-])")
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
    sentence = _without_patterns(sentence, _LOGIN_IN_SENTENCE)
    for pattern, is_secret in _WITHOUT_NAME:
        sentence = _hidden(sentence, pattern, is_secret)
    return sentence


def _shown(text: str) -> str:
    if _PEM in text:
        return HIDDEN
    named = _NAMED.fullmatch(text)
    if named is not None and not _NOT_NAMED.fullmatch(text):
        return f"{named['name']}{HIDDEN}"
    text = _LOGIN_WITHIN.sub(rf"\g<name>{HIDDEN}@", _without_patterns(text, _LOGIN))
    starts = [
        found.start()
        for pattern, is_secret in _WITHOUT_NAME
        for found in pattern.finditer(text)
        if is_secret(found)
    ]
    # The lines after it may be the rest of a key.
    return f"{text[: min(starts)]}{HIDDEN}" if starts else text


def _without_patterns(text: str, login: re.Pattern[str]) -> str:
    text = _SIGNATURE.sub(HIDDEN, login.sub(f"{HIDDEN}@", text))
    return _SIGNING_KEY.sub(rf"\g<name>{HIDDEN}", text)


def _hidden(text: str, pattern: re.Pattern[str], is_secret: Callable[[re.Match[str]], bool]) -> str:
    return pattern.sub(lambda found: HIDDEN if is_secret(found) else found[0], text)


def _has_no_words(found: re.Match[str]) -> bool:
    """Tell whether capital letters and digits stand where no words have them."""
    return len(_WITHIN_WORDS.findall(found[0])) > _MOST_WITHIN_WORDS


def _is_secret(found: re.Match[str]) -> bool:
    """Tell whether what may be base64 is no path, whose parts are words, and no public key."""
    if _PUBLIC_KEY.search(found.string, 0, found.end()):
        return False
    return any(
        len(part) > _LONGEST_WORD and all(re.search(kind, part) for kind in _KINDS_OF_LETTERS)
        for part in found[0].split("/")
    )


_WITHOUT_NAME: tuple[tuple[re.Pattern[str], Callable[[re.Match[str]], bool]], ...] = (
    (_RUN, _has_no_words),
    (_HEXADECIMAL, bool),
    (_BASE64, _is_secret),
)
"""What a secret without a name before it looks like, and what tells it from other texts."""
