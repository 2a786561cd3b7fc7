"""Make the key of a role where it is missing, and trust it with what the role signs, and with nothing else.

    python infra/keys.py worker infra/.native/keys/worker/signing.pem keys/trusted.yaml

Commit the file of trusted keys: whoever audits believes what stands in the repository.
"""

import sys
from pathlib import Path

from elder import params
from elder.errors import UserError
from tasks.provenance.keys import new_key, public_text, read_private, trust_own_key
from tasks.provenance.trust import Role, trust_of

SIGNS: dict[str, Role] = {"worker": "model", "promoter": "decision"}


def main(name: str, key: Path, trusted: Path) -> None:
    """Make and trust a key; one that is there and trusted stays.

    Raises:
        UserError: a key of this name is trusted, and is not there.
    """
    settings = params.Signing(private_key=str(key), trusted=str(trusted))
    root, role = Path.cwd(), SIGNS[name]
    trust = trust_of(settings, root)
    if not key.exists():
        if name in [one.name for one in trust.keys]:
            raise UserError(
                f"{str(trusted)!r} trusts a key of the {name}, and {str(key)!r} is not there: bring it back, or make"
                f" another on purpose: elder keys --new --role {role} --set signing.private_key={key}"
            )
        key.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        new_key(settings, root, [role], name)
    elif public_text(read_private(key)) not in [one.public_key for one in trust.keys]:
        trust_own_key(settings, root, [role], name=name)
    else:
        return
    print(f"{trusted} trusts the {name}'s key {key} with {role}s: commit that file")


if __name__ == "__main__":
    try:
        main(sys.argv[1], *map(Path, sys.argv[2:]))
    except UserError as error:
        sys.exit(f"error: {error}")
