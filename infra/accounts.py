"""Make MLflow's accounts and say what each may: ``python infra/accounts.py http://127.0.0.1:5000``.

    python infra/accounts.py http://127.0.0.1:5000 anna promoter     # one more, whose password is asked for

The admin is MLFLOW_ADMIN_USERNAME with MLFLOW_ADMIN_PASSWORD; the accounts of the roles get MLFLOW_<ROLE>_PASSWORD.
Nothing here lets a worker add versions and not move aliases: MLflow has one right for both. Who is champion follows
from the signed history alone, so an alias that was moved is found and not believed.
"""

import getpass
import os
import sys
from typing import Any

import httpx

# Grants on every resource of a kind. What is granted on versions, runs and logged models holds even for who made the
# model or the experiment around them, and MLflow lets its maker manage it: nobody but the admin deletes any of them.
ROLES = {
    "worker": {
        "workspace": "USE",  # to make what is not there yet
        "experiment": "EDIT",
        "run": "EDIT",
        "logged_model": "EDIT",
        "registered_model": "EDIT",
        "registered_model_version": "EDIT",
    },
    # to take a tag off a version is to delete in MLflow's eyes
    "promoter": {"registered_model": "EDIT", "registered_model_version": "MANAGE"},
    "auditor": {},  # reads, as every account does
}
WORKSPACE = "default"  # the only one


class Accounts:
    """MLflow's accounts, as its admin makes them.

    Args:
        address: of the server.
    """

    def __init__(self, address: str) -> None:
        admin = os.environ["MLFLOW_ADMIN_USERNAME"], os.environ["MLFLOW_ADMIN_PASSWORD"]
        self.client = httpx.Client(base_url=address, auth=admin, timeout=60)

    def ask(self, method: str, path: str, **values: Any) -> Any:
        """Return MLflow's answer; None where what is asked for is not there."""
        asked, told = (values, None) if method == "GET" else (None, values)
        answer = self.client.request(method, f"/api/{path}", params=asked, json=told)
        if answer.status_code == httpx.codes.NOT_FOUND:
            return None
        if answer.is_error:
            sys.exit(
                f"error: MLflow answers {answer.status_code} to its admin on {path}: {answer.text[:200]}"
            )
        return answer.json() if answer.content else {}

    def make_roles(self) -> dict[str, int]:
        """Make the roles where they are missing, bring their grants to what stands here, and return their numbers."""
        listed = self.ask("GET", "3.0/mlflow/roles/list", workspace=WORKSPACE)
        there = {role["name"]: role["id"] for role in listed["roles"]}
        for name, grants in ROLES.items():
            if name not in there:
                made = self.ask(
                    "POST", "3.0/mlflow/roles/create", name=name, workspace=WORKSPACE
                )
                there[name] = made["role"]["id"]
            self._grant(there[name], grants)
        return {name: there[name] for name in ROLES}

    def make_account(self, name: str, password: str, role: int) -> None:
        """Make an account, or give the one that is there this password, and put it into a role."""
        user = {"username": name, "password": password}
        if self.ask("GET", "2.0/mlflow/users/get", username=name) is None:
            self.ask("POST", "2.0/mlflow/users/create", **user)
        else:
            self.ask("PATCH", "2.0/mlflow/users/update-password", **user)
        held = self.ask("GET", "3.0/mlflow/users/roles/list", username=name)["roles"]
        if role not in [one["id"] for one in held]:
            self.ask("POST", "3.0/mlflow/roles/assign", username=name, role_id=role)

    def _grant(self, role: int, grants: dict[str, str]) -> None:
        path = "3.0/mlflow/roles/permissions"
        there = self.ask("GET", f"{path}/list", role_id=role)["role_permissions"]
        held = {one["resource_type"]: one for one in there}
        for kind, permission in grants.items():
            if kind not in held:
                self.ask(
                    "POST",
                    f"{path}/add",
                    role_id=role,
                    resource_type=kind,
                    resource_pattern="*",
                    permission=permission,
                )


def main(address: str, name: str | None = None, role: str | None = None) -> None:
    """Make the roles and their accounts, or one more account."""
    accounts = Accounts(address)
    numbers = accounts.make_roles()
    if name is None:
        for one, number in numbers.items():
            password = os.environ[f"MLFLOW_{one.upper()}_PASSWORD"]
            accounts.make_account(one, password, number)
    elif role not in numbers:
        sys.exit(f"error: role {role!r}: give one of {', '.join(numbers)}")
    else:
        password = getpass.getpass(f"Password of {name}: ")
        accounts.make_account(name, password, numbers[role])


if __name__ == "__main__":
    main(*sys.argv[1:])
