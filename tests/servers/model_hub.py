"""The hub with one repository of a model, `someone/t5-tiny`, played by a server on this machine for the real client."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Mapping
from pathlib import Path

from object_store import Handler
from safetensors.torch import save_file

from mixtura.models.t5 import T5Config, create_model, hf_config, hf_state, initialize

REPOSITORY = "someone/t5-tiny"
COMMIT = "5d" * 20


def write_model(folder: Path, config: T5Config, vocabulary: Path | None, seed: int = 1) -> Path:
    """A folder as others have them, with random weights and nothing of ours in config.json."""
    model = create_model(config)
    initialize(model, seed)
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps({**hf_config(config), "mixtura": {}}))
    save_file(hf_state(model.state_dict(), config), folder / "model.safetensors", {"format": "pt"})
    if vocabulary is not None:
        shutil.copyfile(vocabulary, folder / "spiece.model")
    return folder


class ModelHub(Handler):
    """What the hub says of the model, at `main`, at the tag `v1` and at the commit, and its files."""

    def handle_path(self, path: str, query: Mapping[str, str]) -> None:
        revision, _, name = path.removeprefix(f"/{REPOSITORY}/resolve/").partition("/")
        if path.startswith("/api/"):
            revision = path.removeprefix(f"/api/models/{REPOSITORY}").removeprefix("/revision/") or "main"
        if self.store.needs_token and self.headers.get("Authorization") != f"Bearer {self.store.needs_token}":
            self._refuse(401, "GatedRepo")
        elif not path.startswith((f"/api/models/{REPOSITORY}", f"/{REPOSITORY}/")):
            self._refuse(404, "RepoNotFound")
        elif revision not in ("main", "v1", COMMIT):
            self._refuse(404, "RevisionNotFound")
        elif path.startswith("/api/"):
            siblings = [{"rfilename": name} for name in self.store.files]
            model = {"id": REPOSITORY, "sha": COMMIT, "siblings": siblings, "private": False, "tags": []}
            self._answer(200, json.dumps(model).encode(), {"Content-Type": "application/json"})
        elif name in self.store.files:
            body = self.store.files[name]
            self._answer_file(body, {"ETag": f'"{hashlib.sha1(body).hexdigest()}"', "X-Repo-Commit": COMMIT})
        else:
            self._refuse(404, "EntryNotFound")

    def _refuse(self, status: int, code: str) -> None:
        self._answer(status, b'{"error": "refused"}', {"X-Error-Code": code, "X-Error-Message": "refused"})
