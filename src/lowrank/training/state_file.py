"""The file with the state of an unfinished training run, from which the run resumes."""

from __future__ import annotations

import contextlib
import hashlib
import io
from pathlib import Path
from typing import Any

import torch

from lowrank.config.training import TrainingSettings
from lowrank.files import written_whole


class StateFile:
    """File with the state of an unfinished run; without a path, nothing is stored."""

    def __init__(self, path: Path | None, fingerprint: str) -> None:
        self.path, self._fingerprint = path, fingerprint

    def read(self) -> dict[str, Any] | None:
        """Return the state of a run with the same inputs, or None if there is none."""
        if self.path is None or not self.path.exists():
            return None
        with contextlib.suppress(Exception):  # Ignore a damaged state and start from step 0.
            state = torch.load(self.path, weights_only=True)
            if state["fingerprint"] == self._fingerprint:
                return state
        return None

    def write(self, state: dict[str, Any]) -> None:
        """Replace the file. Raises UserError if it cannot be written."""
        if self.path is None:
            return
        # Save to memory first, because torch.save reports a full disk as a RuntimeError.
        buffer = io.BytesIO()
        torch.save({"fingerprint": self._fingerprint} | state, buffer)
        with written_whole(self.path) as partial:
            partial.write_bytes(buffer.getbuffer())

    def remove(self) -> None:
        """Remove the file at the end of the run."""
        if self.path:
            self.path.unlink(missing_ok=True)


def fingerprint_of(*inputs: object) -> str:
    """Return a hash of everything that determines the result of a run.

    A saved state is only used by a run with the same hash.
    """
    text = "\n".join(
        item.model_dump_json() if isinstance(item, TrainingSettings) else str(item)
        for item in inputs
    )
    return hashlib.sha256(text.encode()).hexdigest()
