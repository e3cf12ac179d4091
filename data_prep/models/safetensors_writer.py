"""Writes safetensors files tensor by tensor, with one tensor in memory: all names and shapes are known beforehand.

safetensors.torch.save_file needs all tensors of a file at once. The format (huggingface/safetensors, README) is: eight
bytes with the header's length; the header in JSON; the tensors' bytes in the header's order.
"""

from __future__ import annotations

import json
import math
import os
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import BinaryIO

import torch

from data_prep.unfinished import Journal

SHARD_BYTES = 4 << 30
PART_BYTES = 256 << 20
"""Bytes after which the tensors written so far are noted in the journal, and need not be written again after a kill."""
_DTYPES = {torch.float32: "F32", torch.bfloat16: "BF16", torch.float16: "F16"}


class SafetensorsWriter:
    """Writes a model's weights into `folder` as Hugging Face's sharded safetensors, or as one file if they fit.

    `shapes` are all tensors' names and shapes, in the order in which `add` will be called; all get `dtype`. The files
    are complete only after close(). Tensors that a killed process wrote, as `journal` says, are not due again: see
    `due`.
    """

    def __init__(
        self,
        folder: Path,
        shapes: Mapping[str, tuple[int, ...]],
        dtype: torch.dtype,
        shard_bytes: int | None = None,
        journal: Journal | None = None,
    ) -> None:
        self.folder, self.dtype, self.shapes = folder, dtype, dict(shapes)
        self._files: dict[str, str] = {}
        self.due = list(self.shapes)
        self._stream: BinaryIO | None = None
        self._journal = journal
        self._unnoted = 0
        shards: list[list[str]] = [[]]
        filled = 0
        for name in self.shapes:
            if shards[-1] and filled + self._bytes(name) > (shard_bytes or SHARD_BYTES):
                shards.append([])
                filled = 0
            shards[-1].append(name)
            filled += self._bytes(name)
        for number, names in enumerate(shards, 1):
            several = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
            self._files |= dict.fromkeys(names, several if len(shards) > 1 else "model.safetensors")
        if journal and journal.parts:
            self._continue(**journal.parts[-1])

    def _continue(self, tensors: int, end: int) -> None:
        """Go on behind the first `tensors` tensors, of which the last one ends at byte `end` of its file."""
        last, self.due = self.due[tensors - 1], self.due[tensors:]
        stream = (self.folder / self._files[last]).open("r+b")
        stream.truncate(end)
        if self.due and self._files[self.due[0]] == self._files[last]:
            stream.seek(end)
            self._stream = stream
        else:
            stream.close()

    def _bytes(self, name: str) -> int:
        return math.prod(self.shapes[name]) * self.dtype.itemsize

    def add(self, name: str, weight: torch.Tensor) -> None:
        """Write the next tensor. Raises ValueError if another one was expected."""
        expected = self.due.pop(0)
        if name != expected or tuple(weight.shape) != self.shapes[name]:
            raise ValueError(f"got {name} {tuple(weight.shape)}, expected {expected} {self.shapes[expected]}")
        if self._stream is None:
            self._stream = (self.folder / self._files[name]).open("wb")
            self._stream.write(self._header(self._files[name]))
        flat = weight.to(self.dtype).contiguous().view(-1)
        self._stream.write(flat.view(torch.uint8).numpy().data)
        self._unnoted += self._bytes(name)
        ends = not self.due or self._files[self.due[0]] != self._files[name]
        if self._journal and (ends or self._unnoted >= PART_BYTES):
            self._stream.flush()
            os.fsync(self._stream.fileno())
            self._journal.add({"tensors": len(self.shapes) - len(self.due), "end": self._stream.tell()})
            self._unnoted = 0
        if ends:
            self._stream.close()
            self._stream = None

    def _header(self, file: str) -> bytes:
        entries: dict[str, object] = {"__metadata__": {"format": "pt"}}
        end = 0
        for name in (name for name in self.shapes if self._files[name] == file):
            begin, end = end, end + self._bytes(name)
            shape = list(self.shapes[name])
            entries[name] = {"dtype": _DTYPES[self.dtype], "shape": shape, "data_offsets": [begin, end]}
        text = json.dumps(entries, separators=(",", ":")).encode()
        text = text.ljust(-(-len(text) // 8) * 8)  # tensors begin at a multiple of eight
        return struct.pack("<Q", len(text)) + text

    def close(self) -> None:
        """Write the index, if there are several files. Raises ValueError if a tensor is missing."""
        if self.due:
            raise ValueError(f"{len(self.due)} tensors are missing, first {self.due[0]}")
        if len(set(self._files.values())) > 1:
            total = sum(map(self._bytes, self.shapes))
            index = {"metadata": {"total_size": total}, "weight_map": self._files}
            text = json.dumps(index, indent=2) + "\n"
            (self.folder / "model.safetensors.index.json").write_text(text, encoding="utf-8")
