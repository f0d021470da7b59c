"""Writing checkpoints while training goes on.

    training thread, every rank      snapshot to host memory, save() returns
    background thread, rank 1 ...    its fragments to .step-000100.<attempt>.partial/parts/, then a JSON file that says
                                     where they belong: its presence is the mark that the rank is done
    background thread, rank 0        waits for all marks, puts whole parameters together one at a time, writes the
                                     files, the manifest last, removes the parts, renames the folder

The order of writes is the promise. Every file is on disk before the manifest that names it, and the folder gets its
final name last, in one rename: whatever dies at whatever instant, a checkpoint is whole or it is not listed.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import shutil
import threading
import time
from collections import deque
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mixtura.platform.errors import CheckpointError
from mixtura.platform.files import fsync_directory, write_bytes_atomically, write_json_atomically
from mixtura.platform.training.checkpoint import (
    FORMAT_VERSION,
    MANIFEST,
    OPTIMIZER,
    STATE,
    CheckpointFormat,
    CheckpointInfo,
    delete_checkpoint,
    folder_name,
    list_checkpoints,
    manifest_digest,
    remove_leftovers,
    verify,
)
from mixtura.platform.training.fragments import Part, entries_of, load_part, part_of, save_part
from mixtura.platform.training.snapshot import Snapshot
from mixtura.platform.training.tensor_files import (
    TensorEntry,
    WrittenFile,
    shard_names,
    split_by_size,
    write_synced,
    write_tensors,
)

_RESERVED = ("step", "optimizer_step", "format_version")
_POLL_S = 0.02


class CheckpointWriter:
    """Saves checkpoints of one rank in the background; every rank of a run has one, over the same folder.

    Made before the first step on every rank: rank 0's removes what a crash left behind. `attempt` tells launches of a
    run apart, so that a rank of an earlier launch that is still alive cannot write among this one's parts. Rank 0
    waits `timeout_s` for the other ranks' parts.
    """

    def __init__(
        self,
        directory: Path,
        rank: int,
        world_size: int,
        checkpoint_format: CheckpointFormat,
        *,
        attempt: int | str = 0,
        timeout_s: float = 1800.0,
    ) -> None:
        self.directory, self.rank, self.world_size = Path(directory), rank, world_size
        self.format, self.attempt, self.timeout_s = checkpoint_format, attempt, timeout_s
        self._thread: threading.Thread | None = None
        self._error: CheckpointError | None = None
        self._committed: deque[CheckpointInfo] = deque()
        self.directory.mkdir(parents=True, exist_ok=True)
        if rank == 0:
            remove_leftovers(self.directory)

    def save(self, step: int, snapshot: Snapshot, state: Mapping[str, Any]) -> None:
        """Hand over a step's host copy and return; waits only while the checkpoint before is still being written.

        `state` is JSON. The ranks' states are merged, dictionary by dictionary: a rank may give only its own lanes.
        Raises the error of an earlier save, if there was one.
        """
        if taken := [key for key in _RESERVED if key in state]:
            raise ValueError(f"the state of a checkpoint may not have the key {taken[0]!r}: the writer sets it")
        text = json.dumps(state, allow_nan=False)  # now: the caller's objects change as training goes on
        self.wait()
        self._thread = threading.Thread(
            target=self._run, args=(step, snapshot, text), name=f"checkpoint-{step}", daemon=True
        )
        self._thread.start()

    @property
    def unfinished_bytes(self) -> int:
        """Bytes of all ranks' unfinished files: they change as long as saving goes on."""
        files = self.directory.glob(f".*.{self.attempt}.partial/**/*")
        return sum(file.stat().st_size for file in files if file.is_file())

    def poll(self) -> None:
        """Raise what went wrong in the background, once."""
        error, self._error = self._error, None
        if error is not None:
            raise error

    def wait(self) -> None:
        """Wait until this rank's part (on rank 0: the checkpoint) is on disk; raise what went wrong."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        self.poll()

    def newly_committed(self) -> list[CheckpointInfo]:
        """On rank 0, the checkpoints committed since the last call."""
        return [self._committed.popleft() for _ in range(len(self._committed))]

    def _run(self, step: int, snapshot: Snapshot, state: str) -> None:
        partial = self.directory / f".{folder_name(step)}.{self.attempt}.partial"
        try:
            if self.rank == 0:
                self._commit(step, partial, snapshot, state)
            else:
                self._write_part(partial, snapshot, state)
        except Exception as error:  # noqa: BLE001  nothing is lost: poll and wait raise it in the training thread
            try:
                self._give_up(partial, f"{type(error).__name__}: {error}")
            finally:
                self._error = self._explained(error, step, snapshot)

    def _write_part(self, partial: Path, snapshot: Snapshot, state: str) -> None:
        (partial / "parts").mkdir(parents=True, exist_ok=True)
        self._require_space(snapshot.size_bytes)
        save_part(_part_path(partial, self.rank), snapshot, json.loads(state))

    def _commit(self, step: int, partial: Path, snapshot: Snapshot, state: str) -> None:
        (partial / "parts").mkdir(parents=True, exist_ok=True)
        parts = [part_of(snapshot, json.loads(state)), *self._other_parts(step, partial)]
        weights, optimizer = entries_of(parts, self.format.hf_names)
        self._require_space(sum(entry.size_bytes for entry in [*weights, *optimizer]))
        files = {
            **write_small_files(partial, self.format, {STATE: _whole_state(step, snapshot, parts)}),
            **write_tensor_files(partial, "model", weights, self.format.max_shard_bytes),
        }
        (partial / OPTIMIZER).mkdir()
        written = write_tensor_files(partial / OPTIMIZER, OPTIMIZER, optimizer, self.format.max_shard_bytes)
        files |= {f"{OPTIMIZER}/{name}": file for name, file in written.items()}
        fsync_directory(partial / OPTIMIZER)
        del parts, weights, optimizer  # they hold the parts' files open
        shutil.rmtree(partial / "parts")
        write_json_atomically(partial / MANIFEST, manifest_of(step, files))
        self._publish(partial, self.directory / folder_name(step))
        self._committed.extend(info for info in list_checkpoints(self.directory) if info.step == step)

    def _other_parts(self, step: int, partial: Path) -> list[Part]:
        """Wait for the other ranks; an error on one of them ends the wait."""
        deadline = time.monotonic() + self.timeout_s
        waiting = set(range(1, self.world_size))
        while waiting:
            for rank in sorted(waiting):
                path = _part_path(partial, rank)
                if path.with_suffix(".error").exists():
                    reason = path.with_suffix(".error").read_text().strip()
                    raise CheckpointError(f"rank {rank} could not write its part of step {step}: {reason}")
                if path.with_suffix(".json").exists():
                    waiting.discard(rank)
            if waiting and time.monotonic() > deadline:
                names = ", ".join(map(str, sorted(waiting)))
                raise CheckpointError(
                    f"the checkpoint of step {step} was given up: after {self.timeout_s:.0f} s the parts of rank(s) "
                    f"{names} of {self.world_size} are not in {partial}"
                )
            time.sleep(_POLL_S if waiting else 0)
        return [load_part(_part_path(partial, rank)) for rank in range(1, self.world_size)]

    def _publish(self, partial: Path, final: Path) -> None:
        """Give a finished folder its name. A whole checkpoint of that step stays; a broken one makes room."""
        if final.exists():
            try:
                verify(final)
            except CheckpointError:
                delete_checkpoint(CheckpointInfo(0, final, 0.0))
            else:
                shutil.rmtree(partial)
                return
        partial.rename(final)
        fsync_directory(self.directory)

    def _give_up(self, partial: Path, reason: str) -> None:
        """Rank 0 removes the unfinished folder; another rank removes its part and tells rank 0 why."""
        if self.rank == 0:
            shutil.rmtree(partial, ignore_errors=True)
            return
        path = _part_path(partial, self.rank)
        # On a disk that refuses even this note, rank 0 runs into its time limit and this rank's own error is raised.
        with contextlib.suppress(OSError):
            path.unlink(missing_ok=True)
            write_bytes_atomically(path.with_suffix(".error"), reason.encode())

    def _require_space(self, needed_bytes: int) -> None:
        """Fail before the disk is filled to the last byte: logs and the tracking store live there too."""
        if shutil.disk_usage(self.directory).free < needed_bytes:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def _explained(self, error: Exception, step: int, snapshot: Snapshot) -> CheckpointError:
        """One message: what was asked, what was found, what to change."""
        newest, free = self._looked_at()
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            found = (
                f"the disk is full: saving step {step} in {self.directory} needs about "
                f"{_megabytes(snapshot.size_bytes)} for rank {self.rank}, and {free} are free"
            )
            change = "Free space there or keep fewer checkpoints (checkpoints.keep), then run the same command"
        else:
            found = f"step {step} cannot be saved in {self.directory}: {error}"
            change = "Run the same command when that is mended"
        untouched = f"Earlier checkpoints are untouched ({newest})"
        explained = CheckpointError(f"{found}. {untouched}. {change}: it goes on there")
        explained.__cause__ = error
        return explained

    def _looked_at(self) -> tuple[str, str]:
        """The newest checkpoint and the free space, as far as the disk answers: what went wrong is told in any case."""
        try:
            infos = list_checkpoints(self.directory)
            free = _megabytes(shutil.disk_usage(self.directory).free)
        except OSError as error:
            return f"the folder cannot be read now: {error}", "an unknown number of bytes"
        return f"the newest is of step {infos[-1].step}" if infos else "there is none yet", free


def _part_path(partial: Path, rank: int) -> Path:
    return partial / "parts" / f"rank-{rank:05d}.safetensors"


def _megabytes(size_bytes: int) -> str:
    return f"{size_bytes / 1e6:,.1f} MB"


def _whole_state(step: int, snapshot: Snapshot, parts: list[Part]) -> dict[str, Any]:
    state: dict[str, Any] = {}
    for rank, part in enumerate(parts):
        merge_states(state, part.state, f"rank {rank}")
    head = {"format_version": FORMAT_VERSION, "step": step, "optimizer_step": snapshot.optimizer_step}
    return head | state


def merge_states(whole: dict[str, Any], other: Mapping[str, Any], origin: str, where: str = "") -> None:
    """Add a rank's state to the whole: dictionaries are merged, anything else must be equal wherever it occurs twice.

    >>> whole = {"lanes": {"0": [3, 7]}, "seed": 1}
    >>> merge_states(whole, {"lanes": {"1": [4, 0]}, "seed": 1}, "rank 1")
    >>> whole
    {'lanes': {'0': [3, 7], '1': [4, 0]}, 'seed': 1}
    """
    for key, value in other.items():
        if key not in whole:
            whole[key] = value
        elif isinstance(whole[key], dict) and isinstance(value, Mapping):
            merge_states(whole[key], value, origin, f"{where}{key}.")
        elif whole[key] != value:
            raise CheckpointError(
                f"the ranks disagree about their state: {where}{key} is {whole[key]!r} on an earlier rank "
                f"and {value!r} on {origin}"
            )


def write_small_files(
    folder: Path, checkpoint_format: CheckpointFormat, more: Mapping[str, Mapping[str, Any]]
) -> dict[str, WrittenFile]:
    """What stands beside the weights: config.json, vocabulary, and other JSON files by name."""
    documents = {**checkpoint_format.json_files, "config.json": checkpoint_format.hf_config, **more}
    files = {
        name: write_synced(folder / name, [(json.dumps(value, indent=2) + "\n").encode()])
        for name, value in documents.items()
    }
    for name, source in checkpoint_format.vocabulary_files.items():
        files[name] = write_synced(folder / name, [source.read_bytes()])
    return files


def write_tensor_files(
    folder: Path, stem: str, entries: list[TensorEntry], max_shard_bytes: int
) -> dict[str, WrittenFile]:
    """Tensors in one file or in shards; with shards, the index that transformers reads."""
    shards = split_by_size(entries, max_shard_bytes)
    names = shard_names(stem, len(shards))
    files = {name: write_tensors(folder / name, shard) for name, shard in zip(names, shards, strict=True)}
    if len(shards) > 1:
        index = {
            "metadata": {"total_size": sum(entry.size_bytes for entry in entries)},
            "weight_map": {entry.name: name for name, shard in zip(names, shards, strict=True) for entry in shard},
        }
        name = f"{stem}.safetensors.index.json"
        files[name] = write_synced(folder / name, [(json.dumps(index, indent=2) + "\n").encode()])
    return files


def manifest_of(step: int, files: Mapping[str, WrittenFile]) -> dict[str, Any]:
    """What the manifest of a checkpoint with these files says, its own digest included."""
    manifest = {
        "format_version": FORMAT_VERSION,
        "step": step,
        "files": {
            name: {"size_bytes": file.size_bytes, "xxh3_128": file.xxh3_128} for name, file in sorted(files.items())
        },
    }
    return manifest | {"xxh3_128": manifest_digest(manifest)}
