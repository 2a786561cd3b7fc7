"""``elder keys``: whom this project believes, and whether this machine's key is among them."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from elder.cli.options import CommonOptions
from elder.cli.output import show
from elder.errors import UserError, nearest

if TYPE_CHECKING:
    from tasks.provenance.trust import Trust, TrustedKey


def keys(
    *,
    new: Annotated[
        bool,
        typer.Option(
            "--new",
            help="Make another private key; the present one is kept beside it.",
        ),
    ] = False,
    add: Annotated[
        bool, typer.Option("--add", help="Trust the private key that is here.")
    ] = False,
    role: Annotated[
        list[str] | None,
        typer.Option(help="What the key may sign: model, decision; by default both."),
    ] = None,
    common: CommonOptions,
) -> None:
    """Show whose signatures count; with --new or --add, let this machine's key count from today."""
    from tasks.provenance.keys import new_key, public_text, read_private, trust_own_key
    from tasks.provenance.trust import ROLES, trust_of

    settings, root = common.decision().signing, Path.cwd()
    wrong = [word for word in role or [] if word not in ROLES]
    if wrong:
        raise UserError(f"--role {wrong[0]!r}: {nearest(wrong[0], ROLES)}")
    roles = [one for one in ROLES if one in role] if role else list(ROLES)
    if new:
        new_key(settings, root, roles)
    elif add:
        trust_own_key(settings, root, roles)
    trust = trust_of(settings, root)
    path = root / settings.private_key if settings.private_key else None
    own = public_text(read_private(path)) if path and path.exists() else None
    told = [_told(key, own) for key in trust.keys]
    show(
        {"file": trust.place, "keys": told},
        common.as_json,
        lambda: _lines(trust, own, changed=new or add),
    )


def _told(key: "TrustedKey", own: str | None) -> dict[str, object]:
    described = key.model_dump(mode="json", exclude={"public_key"})
    here = key.public_key == own
    return described | {"fingerprint": key.fingerprint, "here": here}


def _lines(trust: "Trust", own: str | None, changed: bool) -> list[str]:
    if not trust.keys:
        return [
            f"{trust.place}: nobody is trusted yet; the first run makes a key and trusts it, --add trusts one"
        ]
    lines = []
    for key in trust.keys:
        since, until = key.since or "always", key.until or "further notice"
        here = ", the key of this machine" if key.public_key == own else ""
        may = " and ".join(f"{role}s" for role in key.roles)
        lines.append(
            f"{key.name}: signs {may} from {since} until {until}, {key.fingerprint[:16]}...{here}"
        )
    if own and not any(key.public_key == own for key in trust.keys):
        lines.append("the private key of this machine is not among them: --add")
    return [*lines, f"commit {trust.place}"] if changed else lines
