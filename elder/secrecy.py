"""Secrets stay out of what is written, printed and shown: passwords and tokens in addresses, in texts, of this process.

An address loses whoever is named in it, its query and its fragment; of a webhook the path, too, which is its secret.
What cannot be told apart is hidden: a password may hold any character, and then looks like another part of the address.
"""

import os
import re
from typing import Any
from urllib.parse import unquote

HIDDEN = "***"
SHORTEST = 8  # characters of a secret that is looked for as it is: shorter ones are parts of common words
# these name a file, whose path may hold an @
FILES = ("file", "sqlite")
# in host or path; and hosts that have no such word in them
WEBHOOK = re.compile(r"(?i)hook|\.logic\.azure\.com|chat\.googleapis|api\.telegram")

# models:/name@alias is no address. Repetitions are bounded, so that a text of any length and kind takes no time.
ADDRESS = re.compile(r"(?i)\b(?!models:)([a-z][a-z0-9+.-]{1,30}):/{1,9}(\S+)")
WHOLE_ADDRESS = re.compile(ADDRESS.pattern.removesuffix(r"(\S+)") + "(.*)", re.DOTALL)
# host and port; "port" as our own sentences have it
PLACE = re.compile(r"(?:\[[\da-fA-F:.]+\]|[\w.,-]*|\*{3})(?::(?:\d*|port))?")
CLOSING = "\"'`)]}>.,:;"  # what ends a quotation or a sentence

_NAME = (
    r"(?:(?:passw(?:or)?d|passphrase|pwd|secret|signature|credentials?|auth_string|authorization|access_?key"
    r"|account_?key|api_?key|(?:access|auth|bearer|refresh|session|security|id)[_-]?token)[\w.-]{0,40}|(?<![\w.-])(?:sig|token))"
)
_QUOTED = r"\"(?:\\.|[^\"\\])*\"|'(?:\\.|[^'\\])*'"
# password='...' of a database, PASSWORD=... of an environment, ?sig=... of a part of an address
ASSIGNED = re.compile(
    rf"(?i)({_NAME}\s*=\s*)(?:\*{{3}}|{_QUOTED}|\{{[^}}]*\}}|[^\s&\"']+)"
)
# "password": "..."
MAPPED = re.compile(rf"(?i)({_NAME}[\"']\s*:\s*)(?:{_QUOTED})")
QUERIED = re.compile(r"(?i)([?&](?:key|code|auth|se|sp|sv|sr)=)[^&\s\"']+")
HEADER = re.compile(
    r"(?im)\b((?:proxy-)?authorization|x-api-key|x-auth-token|(?:set-)?cookie)\s*:\s*[^\n\"']+"
)
SCHEME = re.compile(r"\b((?i:bearer|basic))\s+(?=\S*[\d=+/.])[\w+/=.~-]{8,}")
# secrets that tell by their form what they are
TOKENS = re.compile(
    r"\b(?:hf_\w{20,}|gh[pousr]_\w{20,}|github_pat_\w{20,}|xox[a-z]-[\w-]{10,}|eyJ[\w-]+\.eyJ[\w-]+\.[\w-]*)"
    r"|-----BEGIN [A-Z ]*PRIVATE KEY-----.*?(?:-----END [A-Z ]*PRIVATE KEY-----|\Z)",
    re.DOTALL,
)
# variables of the environment whose values are secrets; those that name a file are none
SECRET_VARIABLE = re.compile(
    r"(?i)(?:^|_)(?:password|passwd|pass|secret|token|auth_string|credentials?|webhook|(?:access|secret|api)_key)(?:_|$)"
)
NAMES_A_FILE = re.compile(r"(?i)_(?:file|path|dir|id|name)$")

_given: set[str] = set()  # secrets that came by parameters


def shown_address(address: str) -> str:
    """Return an address without userinfo, query and fragment, and without the path of a webhook.

    What is left is the scheme alone where it cannot be told which part is the secret. A text that is no address comes
    back without secrets, as of `hide_secrets`; one that may be an address misspelt is hidden.
    """
    found = WHOLE_ADDRESS.match(address.strip())
    if found:
        return _shown(found)
    if "@" in address and ":" in address and not address.startswith("models:/"):
        return HIDDEN
    return hide_secrets(address)


def hide_secrets(text: str) -> str:
    """Take secrets out of a text, by their form alone: the same text gives the same, wherever and whenever."""
    text = TOKENS.sub(HIDDEN, text)
    text = ADDRESS.sub(_shown_in_text, text)
    text = HEADER.sub(rf"\1: {HIDDEN}", text)
    text = ASSIGNED.sub(rf"\1{HIDDEN}", text)
    text = MAPPED.sub(rf"\1{HIDDEN}", text)
    text = QUERIED.sub(rf"\1{HIDDEN}", text)
    return SCHEME.sub(rf"\1 {HIDDEN}", text)


def hide_given_secrets(text: str) -> str:
    """Take secrets out of a text that is for people: those of `hide_secrets`, and those given to this process."""
    given = sorted(_given | _secrets_of_environment(), key=len, reverse=True)
    text = hide_secrets(text)
    for secret in given:
        text = text.replace(secret, HIDDEN)
    return text


def without_secrets(tree: Any) -> Any:
    """Return a tree of plain values with no secret in any of its texts; each is an address, or a text."""
    if isinstance(tree, str):
        return shown_address(tree) if WHOLE_ADDRESS.match(tree) else hide_secrets(tree)
    if isinstance(tree, dict):
        return {hide_secrets(str(key)): without_secrets(tree[key]) for key in tree}
    if isinstance(tree, list | tuple):
        return [without_secrets(value) for value in tree]
    return tree


def remember_address(address: str | None) -> None:
    """Let `hide_given_secrets` know the secrets in an address, wherever a library repeats a part of it."""
    _given.update(_secrets_of_address(address or ""))


def remember_webhook(address: str | None) -> None:
    """Let `hide_given_secrets` know the address of a webhook: its path is secret, too."""
    _given.update(_secrets_of_address(address or "", secret_path=True))


def _shown_in_text(found: re.Match[str]) -> str:
    """Return what a text shows of an address in it, and the quotation mark or full stop that follows it."""
    bare = found[0].rstrip(CLOSING)
    inner = WHOLE_ADDRESS.match(bare)
    return (_shown(inner) if inner else bare) + found[0][len(bare) :]


def _shown(found: re.Match[str]) -> str:
    """Return what is shown of an address, in which scheme and rest were found."""
    scheme, rest = found[1].lower(), found[2]
    start = found[0][: len(found[0]) - len(rest)]
    slashes = start.count("/")
    if scheme.partition("+")[0] in FILES and slashes >= 3:
        return start + _without_query(rest)
    plain = _without_userinfo(rest)
    place, slash, path = (plain or "").partition("/")
    web = scheme.startswith("http")
    if plain is None or not PLACE.fullmatch(place) or (web and slashes != 2):
        return f"{found[1]}://{HIDDEN}"
    if path and web and WEBHOOK.search(plain):
        path = HIDDEN
    return f"{start}{place}{slash}{path}"


def _without_userinfo(rest: str) -> str | None:
    """Return host and path of what follows the scheme, or None where it cannot be told where they begin.

    The last @ ends the userinfo; a later part of an address may hold one, too, and a password all of ``/?#``.
    """
    if "@" not in rest:
        return _without_query(rest)
    head = re.split("[/?#]", rest)[0]
    in_head, before_query = "@" in head, "@" not in rest[len(_without_query(rest)) :]
    # a password that begins with digits looks like a port
    if not in_head and PLACE.fullmatch(head):
        return None
    if before_query or (not in_head and rest.count("@") == 1):
        return _without_query(rest.rpartition("@")[2])
    return None


def _without_query(text: str) -> str:
    return re.split("[?#]", text, maxsplit=1)[0]


def _secrets_of_address(address: str, secret_path: bool = False) -> set[str]:
    """Return the passwords of an address, its query and the values in that, as they stand and without % escapes."""
    found = WHOLE_ADDRESS.match(address.strip())
    if not found:
        return set()
    rest = found[2]
    plain = _without_query(rest)
    userinfo, query = rest.rpartition("@")[0], rest[len(plain) + 1 :]
    parts = [userinfo, userinfo.partition(":")[2], query]
    parts += [value.partition("=")[2] for value in query.split("&")]
    if secret_path or WEBHOOK.search(plain):
        path = plain.partition("/")[2]
        parts += [path, *path.split("/")]
    return {part for part in (*parts, *map(unquote, parts)) if len(part) >= SHORTEST}


def _secrets_of_environment() -> set[str]:
    """Return the secrets in the variables of the environment."""
    secrets: set[str] = set()
    for name, value in os.environ.items():
        secret = SECRET_VARIABLE.search(name) and not NAMES_A_FILE.search(name)
        for found in ADDRESS.finditer(value):
            secrets |= _secrets_of_address(found[0], secret_path=bool(secret))
        if secret:
            # user:password, as Prefect takes them, is one value
            secrets |= {value, value.partition(":")[2]}
    return {secret for secret in secrets if len(secret) >= SHORTEST}
