"""Read checkpoint files, one tensor at a time, and verify them."""

import ctypes
import logging
import pickle
import struct
import warnings
import zipfile
import zlib
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from bot.engine.chatglm.config import check_file, read_json, unreadable
from bot.engine.chatglm.mapping import MappedTensors, file_state, why_not_mapped
from bot.errors import CheckpointError
from bot.util.files import shown

log = logging.getLogger(__name__)

AGAIN = "download it again"
_FILES = ("model.safetensors.index.json", "model.safetensors", "pytorch_model.bin.index.json", "pytorch_model.bin")
# A truncated or corrupt pickle can raise any of these.
_DAMAGED = (
    RuntimeError,
    EOFError,
    ValueError,
    LookupError,
    TypeError,
    AttributeError,
    AssertionError,
    OverflowError,
    struct.error,
    zipfile.BadZipFile,
    MemoryError,
)
# Larger ones overflow torch's sizes.
_LARGEST_DIMENSION = 2**40
# Bytes of a record that is no tensor; real ones take some hundred kilobytes.
_LARGEST_RECORD = 64 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """Header entry of a tensor."""

    file: Path
    shape: tuple[int, ...]
    dtype: torch.dtype

    @property
    def bytes(self) -> int:
        return self.dtype.itemsize * torch.Size(self.shape).numel()


class Checkpoint:
    """The weights in a folder: safetensors or `.bin`, one file or indexed shards.

    Opening reads headers only; `read` maps a tensor into memory.

    Raises:
        CheckpointError: Files are missing or corrupt, or would run code.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        found = next((folder / name for name in _FILES if (folder / name).exists()), None)
        if found is None:
            raise CheckpointError(
                f"{folder} holds no weights: it needs model.safetensors or pytorch_model.bin, or their shards with "
                "an index.json"
            )
        self._shard_of: dict[str, _SafetensorsShard | _PickleShard] = {}
        if found.suffix == ".json":
            self._open_shards(found)
        else:
            shard = _open(found)
            self._shard_of = dict.fromkeys(shard.tensors, shard)

    @property
    def tensors(self) -> dict[str, TensorInfo]:
        return {name: shard.tensors[name] for name, shard in self._shard_of.items()}

    def read(self, name: str) -> Tensor:
        """Return a tensor as stored, on the CPU; it may be a view of the file.

        Raises:
            CheckpointError: It is corrupt, or holds NaN or infinity.
        """
        shard = self._shard_of[name]
        tensor = shard.read(name)
        # aminmax needs no temporary copy.
        if tensor.is_floating_point() and tensor.numel() and not torch.stack(tensor.aminmax()).isfinite().all():
            raise CheckpointError(f"{shard.tensors[name].file}: tensor {name} holds NaN or infinite values: {AGAIN}")
        return tensor

    def keep(self, name: str) -> Tensor:
        """Return an int8 tensor that stays as it is if its file changes: mapped where possible, else a copy.

        Raises:
            CheckpointError: It is corrupt, or has changed since the checkpoint was opened.
        """
        return self._shard_of[name].keep(name)

    def _open_shards(self, index: Path) -> None:
        files = read_json(index).get("weight_map")
        if not isinstance(files, dict) or not files:
            raise CheckpointError(f"{index} has no weight_map: {AGAIN}")
        shards: dict[str, _SafetensorsShard | _PickleShard] = {}
        for file in sorted({str(file) for file in files.values()}):
            if Path(file).name != file:
                raise CheckpointError(f"{index} lists the shard {shown(file)}, which is outside its folder: {AGAIN}")
            if not _is_file(index.parent / file):
                raise CheckpointError(
                    f"{index} lists the shard {shown(file)}, which is missing: download the missing file"
                )
            shards[file] = _open(index.parent / file)
        for name, file in files.items():
            if name not in shards[str(file)].tensors:
                raise CheckpointError(
                    f"{index} lists the tensor {shown(name)} in {file}, which does not hold it: the files are from different "
                    f"downloads; {AGAIN}"
                )
        for file, shard in shards.items():
            for name in shard.tensors:
                if files.get(name, file) != file:
                    raise CheckpointError(
                        f"{index.parent / file} holds the tensor {shown(name)}, which {index.name} lists in {files[name]}: "
                        f"the files are from different downloads; {AGAIN}"
                    )
                self._shard_of[name] = shard


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:  # a name that no file system takes
        return False


def _open(file: Path) -> "_SafetensorsShard | _PickleShard":
    return _SafetensorsShard(file) if file.suffix == ".safetensors" else _PickleShard(file)


_SAFETENSORS_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}


class _SafetensorsShard:
    def __init__(self, file: Path) -> None:
        self.file = file
        self.tensors: dict[str, TensorInfo] = {}
        self._mapped: MappedTensors | None = None
        self._is_copied = False
        opened: Any = safe_open  # the package types it in part only
        try:
            check_file(file)
            self._state = file_state(file.stat())
            self._open = opened(file, framework="pt")
            for name in self._open.keys():  # noqa: SIM118  # not a dict
                part = self._open.get_slice(name)
                dtype = _SAFETENSORS_DTYPES.get(part.get_dtype())
                if dtype is None:
                    raise CheckpointError(f"{file}: tensor {shown(name)} has the unsupported dtype {part.get_dtype()}")
                if max(part.get_shape(), default=0) > _LARGEST_DIMENSION:
                    raise CheckpointError(f"{file}: tensor {shown(name)} has an impossible shape: {AGAIN}")
                self.tensors[name] = TensorInfo(file, tuple(part.get_shape()), dtype)
        except OSError as exc:
            raise unreadable(file, exc) from exc
        except SafetensorError as exc:
            raise CheckpointError(f"{file} is corrupt or truncated ({exc}): {AGAIN}") from exc

    def read(self, name: str) -> Tensor:
        return cast("Tensor", self._open.get_tensor(name))

    def keep(self, name: str) -> Tensor:
        if self._mapped is None and not self._is_copied:
            self._map()
        return self.read(name).clone() if self._mapped is None else self._mapped[name]

    def _map(self) -> None:
        try:
            self._mapped = MappedTensors(self.file, self._state)
        except OSError as exc:
            self._is_copied = True
            log.info("%s is copied into memory, not mapped: %s", self.file, why_not_mapped(exc))
        except ValueError as exc:
            raise CheckpointError(
                f"{self.file} was changed while it was read: start again when it is complete"
            ) from exc


class _PickleShard:
    """A `.bin` file: a pickle, loaded without running code."""

    def __init__(self, file: Path) -> None:
        self.file = file
        try:
            check_file(file)
            self._records = _records(file)
            with file.open("rb") as opened:
                # Files from before torch 1.6 are not zip archives and cannot be mapped.
                is_zip = opened.read(2) == b"PK"
            # Warnings about formats it may refuse: a refusal is reported below.
            with warnings.catch_warnings(action="ignore"):
                content = torch.load(file, map_location="cpu", weights_only=True, mmap=is_zip)
        except pickle.UnpicklingError as exc:
            raise CheckpointError(
                f"{file} is corrupt, or a pickle with more than tensors, which could run code; it was not loaded: "
                "download it from its publisher, as safetensors if possible"
            ) from exc
        except OSError as exc:
            raise unreadable(file, exc) from exc
        except _DAMAGED as exc:
            raise CheckpointError(f"{file} is corrupt or truncated ({_first_sentence(exc)}): {AGAIN}") from exc
        if not isinstance(content, dict):
            raise CheckpointError(f"{file} holds a {type(content).__name__}, not a dict of tensors: {AGAIN}")
        self._content: dict[str, Tensor] = {}
        for name, tensor in content.items():
            if not isinstance(name, str) or not isinstance(tensor, Tensor) or tensor.layout != torch.strided:
                raise CheckpointError(f"{file} holds {shown(repr(name))}, which is not a dense tensor: {AGAIN}")
            self._content[name] = tensor
        self.tensors = {
            name: TensorInfo(file, tuple(tensor.shape), tensor.dtype) for name, tensor in self._content.items()
        }

    def read(self, name: str) -> Tensor:
        tensor = self._content[name]
        storage = tensor.untyped_storage()
        if self._records and storage.nbytes():
            content = (ctypes.c_char * storage.nbytes()).from_address(storage.data_ptr())
            if (storage.nbytes(), zlib.crc32(content)) not in self._records:
                raise CheckpointError(f"{self.file}: checksum mismatch in tensor {name}: {AGAIN}")
        return tensor

    def keep(self, name: str) -> Tensor:
        return self.read(name).clone()


def _records(file: Path) -> set[tuple[int, int]]:
    """Return sizes and checksums of a zip archive's tensor records, for checks after mapping.

    The other records, which locate the tensors, are checked here.
    """
    with suppress(OSError, ValueError, NotImplementedError, zipfile.BadZipFile), zipfile.ZipFile(file) as archive:
        records = {(record.file_size, record.CRC) for record in archive.infolist() if "/data/" in record.filename}
        # torch can write archives without checksums: all are 0.
        if not any(crc for _, crc in records):
            return set()
        for record in archive.infolist():
            if "/data/" not in record.filename and not _is_whole(archive, record):
                raise CheckpointError(f"{file} is corrupt or truncated (checksum of {record.filename}): {AGAIN}")
        return records
    return set()


def _is_whole(archive: zipfile.ZipFile, record: zipfile.ZipInfo) -> bool:
    if record.file_size > _LARGEST_RECORD:
        return False
    try:
        archive.read(record)
    except (*_DAMAGED, OSError, NotImplementedError, zlib.error):
        return False
    return True


def _first_sentence(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0].partition(". ")[0]
