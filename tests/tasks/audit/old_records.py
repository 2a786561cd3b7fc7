"""A version as earlier code published it, laid out as the project that it came from.

``tests/records/<commit>`` holds what a whole run of that commit left: the published folder as it lay in the store, the
public key, the dense model, and the data by md5 as in DVC's cache.
"""

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

RECORDS = Path(__file__).parents[2] / "records"
NAME = "shallow"


@dataclass(frozen=True)
class OldVersion:
    """One of them: its commit, its folder here, and the record in it."""

    commit: str

    @property
    def place(self) -> Path:
        return RECORDS / self.commit

    @property
    def published(self) -> Path:
        return self.place / "published"

    @property
    def record(self) -> dict[str, Any]:
        return json.loads((self.published / "record.json").read_text(encoding="utf-8"))

    @property
    def digest(self) -> str:
        manifest = json.loads(
            (self.published / "manifest.json").read_text(encoding="utf-8")
        )
        return manifest["digest"]

    def trust_its_key(self, root: Path) -> None:
        """Believe the key that signed it, as somebody does who still has its public half."""
        pem = (self.place / "signing.pub.pem").read_text(encoding="ascii")
        lines = pem.strip().splitlines()[1:-1]
        key = {"name": self.commit, "public_key": "".join(lines), "roles": ["model"]}
        (root / "keys").mkdir()
        (root / "keys" / "trusted.yaml").write_text(yaml.safe_dump([key]))

    def lay_out(self, root: Path) -> None:
        """Put dense model, data, key and the published folder where a project has them."""
        shutil.copytree(self.place / "models", root / "models", dirs_exist_ok=True)
        shutil.copytree(
            self.place / "data" / "md5", root / ".dvc" / "cache" / "files" / "md5"
        )
        self.trust_its_key(root)
        shutil.copytree(self.published, root / "store" / "models" / NAME / self.digest)
