"""The keys of worker and promoter: made once, each trusted with what its role signs, and never replaced in silence."""

from pathlib import Path

import pytest

from elder import params
from elder.errors import UserError
from infra.keys import main
from tasks.provenance.trust import trust_of


def test_each_is_made_once_and_trusted_with_its_role_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trusted = tmp_path / "keys" / "trusted.yaml"
    places = {role: tmp_path / role / "signing.pem" for role in ("worker", "promoter")}
    for role, key in places.items():
        main(role, key, trusted)
        assert f"trusts the {role}'s key" in capsys.readouterr().out
    for role, key in places.items():
        main(role, key, trusted)  # a second time nothing changes
        assert (key.stat().st_mode & 0o777, capsys.readouterr().out) == (0o600, "")
    keys = trust_of(params.Signing(trusted=str(trusted)), tmp_path).keys
    assert {key.name: key.roles for key in keys} == {
        "worker": ("model",),
        "promoter": ("decision",),
    }


def test_a_lost_key_is_not_replaced(tmp_path: Path) -> None:
    trusted, key = tmp_path / "trusted.yaml", tmp_path / "worker" / "signing.pem"
    main("worker", key, trusted)
    told = trusted.read_text()
    key.unlink()
    with pytest.raises(UserError, match="elder keys --new --role model --set"):
        main("worker", key, trusted)
    assert (key.exists(), trusted.read_text()) == (False, told)


def test_a_key_that_is_there_is_trusted_where_it_is_not(tmp_path: Path) -> None:
    key = tmp_path / "worker" / "signing.pem"
    main("worker", key, tmp_path / "of one project.yaml")
    main("worker", key, tmp_path / "of another.yaml")
    one, another = (
        trust_of(params.Signing(trusted=name), tmp_path).keys
        for name in ("of one project.yaml", "of another.yaml")
    )
    assert one[0].public_key == another[0].public_key
