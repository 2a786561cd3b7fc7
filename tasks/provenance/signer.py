"""A process that signs for another one, which never sees the key: ``signing.command`` names it.

    signing.command: ssh signer@host python -m tasks.provenance.signer keys/signing.pem --role model

It reads what is to be signed from its standard input, signs it if it is a statement of a kind that the role covers, and
writes signature and public key as JSON. What it signed goes to its standard error, for a log.
"""

import base64
import json
import re
import sys
from pathlib import Path
from typing import Annotated

import typer

from elder.cli.output import refuse
from elder.errors import UserError
from elder.files import parse_json
from tasks.provenance.bundle import PAYLOAD_TYPE, ROLE_OF, pae
from tasks.provenance.keys import FileSigner, read_private
from tasks.provenance.trust import ROLES

LARGEST = 64 << 20


def answer(data: bytes, key: Path, roles: list[str]) -> tuple[dict[str, str], str]:
    """Sign bytes for somebody.

    Args:
        data: as `tasks.provenance.bundle.pae` makes them.
        key: private key in PEM.
        roles: of which a statement's kind must be one.

    Returns:
        Signature and public key, and a line that says what was signed.

    Raises:
        UserError: it is something else, or the key cannot be used.
    """
    head = re.match(
        rb"DSSEv1 \d+ " + re.escape(PAYLOAD_TYPE.encode()) + rb" \d+ ", data
    )
    payload = data[head.end() :] if head else b""
    if not head or pae(payload) != data:
        raise UserError("this is no in-toto statement to be signed")
    tree = parse_json(payload, "the statement")
    kind = tree.get("predicateType") if isinstance(tree, dict) else None
    if not isinstance(kind, str) or ROLE_OF.get(kind) not in roles:
        raise UserError(
            f"a statement of kind {kind!r} is not signed for {', '.join(roles)}"
        )
    signature, public_key = FileSigner(read_private(key)).sign(data)
    told = json.dumps(tree.get("subject"))[:500]
    encoded = base64.b64encode(signature).decode()
    return {"signature": encoded, "public_key": public_key}, f"signed {kind} of {told}"


def main(
    key: Annotated[Path, typer.Argument(help="Private key in PEM.")],
    role: Annotated[
        list[str], typer.Option(help=f"What may be signed: {', '.join(ROLES)}.")
    ],
) -> None:
    """Sign the statement on standard input."""
    try:
        given, line = answer(sys.stdin.buffer.read(LARGEST), key, role)
    except UserError as error:
        refuse(f"error: {error}", 2)
    print(line, file=sys.stderr)
    print(json.dumps(given))


if __name__ == "__main__":
    typer.run(main)
