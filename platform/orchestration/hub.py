"""Models of the Hugging Face hub: of a repository only what a model is made of, and never a file that runs code.

    OWNER/NAME                    what the hub shows now
    OWNER/NAME@REVISION           a branch, a tag or a commit

The hub's own client downloads into the user's cache, with the user's login (`HF_TOKEN`), from `HF_ENDPOINT`. What is
in the cache is used where the hub cannot be reached.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from mixtura.platform.errors import CheckpointError, RequestError
from mixtura.platform.filesystems import failures

_NAME = re.compile(r"([A-Za-z0-9][\w.-]*/[\w.-]+)(?:@([\w./-]+))?")
_CONFIG = "config.json"
_BESIDE = ("spiece.model", "generation_config.json", "tokenizer_config.json")


@dataclass(frozen=True)
class HubName:
    """A model at the hub, at a revision."""

    repository: str
    revision: str | None = None

    def __str__(self) -> str:
        return self.repository if self.revision is None else f"{self.repository}@{self.revision}"


def parse_hub_name(text: str) -> HubName | None:
    """A name at the hub, or None where it is none.

    >>> parse_hub_name("google-t5/t5-small@main"), parse_hub_name("quickstart@best")
    (HubName(repository='google-t5/t5-small', revision='main'), None)
    """
    found = _NAME.fullmatch(text)
    return None if found is None else HubName(found[1], found[2])


def hub_folder(name: HubName, *, weights: bool) -> Path:
    """The local folder of a model at the hub, which has the commit's name; without its weights if they are not needed.

    Raises RequestError where there is no such model, and CheckpointError where it cannot be had or has only a pickle.
    """
    from huggingface_hub import HfApi, hf_hub_download
    from huggingface_hub.errors import (
        GatedRepoError,
        RemoteEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    try:
        with _quiet_bars():
            # The first file is asked for by the user's word for the revision, so that the cache knows it too.
            folder = Path(hf_hub_download(name.repository, _CONFIG, revision=name.revision)).parent
            commit = folder.name
            siblings = HfApi().model_info(name.repository, revision=commit).siblings or ()
            for file in _wanted(name, [one.rfilename for one in siblings], weights=weights):
                hf_hub_download(name.repository, file, revision=commit)
    except RemoteEntryNotFoundError as error:
        raise RequestError(f"{name} at the hub is no model that can be read here: it has no {_CONFIG}") from error
    except GatedRepoError as error:
        raise RequestError(
            f"the model {name} is gated: ask for access on its page, and set HF_TOKEN or log in with `hf auth login`"
        ) from error
    except RepositoryNotFoundError as error:
        raise RequestError(
            f"the hub has no model {name.repository!r} that you may see: check its name, OWNER/NAME; if it is private, "
            "set HF_TOKEN or log in with `hf auth login`; a folder is given with ./ or as an absolute path"
        ) from error
    except RevisionNotFoundError as error:
        raise RequestError(
            f"the model {name.repository!r} has no revision {name.revision!r}: give a branch, a tag or a commit of it"
        ) from error
    except failures() as error:
        return _from_cache(name, error, weights=weights)
    return folder


def _wanted(name: HubName, present: list[str], *, weights: bool) -> list[str]:
    from mixtura.models.t5.hugging_face import only_a_pickle, weight_files

    of_weights = weight_files(present)
    if not of_weights:
        folder = f"./{name.repository.rpartition('/')[2]}"
        download = f"hf download {name.repository} --local-dir {folder}"
        raise CheckpointError(only_a_pickle(folder, f"{name} has its weights only in pytorch_model.bin ({download})"))
    return [file for file in _BESIDE if file in present] + (of_weights if weights else [])


def _from_cache(name: HubName, error: Exception, *, weights: bool) -> Path:
    """What an earlier call downloaded; the hub's own error where that is not enough."""
    from huggingface_hub import try_to_load_from_cache

    from mixtura.models.t5.hugging_face import weight_files

    found = try_to_load_from_cache(name.repository, _CONFIG, revision=name.revision)
    if isinstance(found, str):
        folder = Path(found).parent
        if not weights or weight_files(file.name for file in folder.iterdir()):
            return folder
    reason = " ".join(str(error).split()) or type(error).__name__
    raise CheckpointError(
        f"the model {name} cannot be had from the hub: {reason[:300]}\ncheck the network (and HF_ENDPOINT, if you use "
        "a mirror), or copy the model's folder here and give its path"
    ) from error


@contextlib.contextmanager
def _quiet_bars() -> Iterator[None]:
    """Without the client's own progress bars where nobody watches a terminal."""
    import sys

    from huggingface_hub.utils.tqdm import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

    if sys.stderr.isatty() or are_progress_bars_disabled():
        yield
        return
    disable_progress_bars()
    try:
        yield
    finally:
        enable_progress_bars()
