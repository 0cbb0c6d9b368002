"""Files that survive a kill and run no code: atomic writes, and trees of tensors in one safetensors file."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rlmix.errors import CheckpointError, OutputError

_FORMAT = "rlmix.tree/1"


def writable_folder(path: str | os.PathLike[str]) -> Path:
    """Create `path` if need be and prove that a file can be written there.

    Raises:
        OutputError: `path` is a file, or cannot be created or written.
    """
    folder = Path(path)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=folder, prefix=".write-test-"):
            pass
    except OSError as error:
        raise OutputError(
            f"`{folder}` cannot be written ({error.strerror or error}). Give a folder that you may write to."
        ) from error
    return folder


def write_bytes(path: str | os.PathLike[str], data: bytes) -> None:
    """Write `data` to a temporary name beside `path` and rename: readers see the old file or the new, never a part.

    Raises:
        OutputError: the folder cannot be written.
    """
    target = Path(path)
    folder = writable_folder(target.parent)
    descriptor, temporary = tempfile.mkstemp(dir=folder, prefix=f".{target.name}-")
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        # mkstemp makes files private; give them the rights that any other new file would have.
        mask = os.umask(0)
        os.umask(mask)
        Path(temporary).chmod(0o666 & ~mask)
        os.replace(temporary, target)  # noqa: PTH105  (Path.replace is the same call; os.replace states atomicity)
    except OSError as error:
        raise OutputError(f"`{target}` cannot be written ({error.strerror or error}).") from error
    finally:
        with contextlib.suppress(FileNotFoundError):
            Path(temporary).unlink()


def write_text(path: str | os.PathLike[str], text: str) -> None:
    """Write `text` as UTF-8, atomically; see `write_bytes`."""
    write_bytes(path, text.encode("utf-8"))


def sha256_of(data: bytes) -> str:
    """Return the SHA-256 of `data` in lower-case hexadecimal."""
    return hashlib.sha256(data).hexdigest()


def save_tree(path: str | os.PathLike[str], tree: Any) -> None:
    """Save nested dicts (string keys), lists and tuples of tensors, numbers, strings, booleans and None, atomically.

    Tensors become the tensors of one safetensors file, the rest JSON in its metadata. Floats come back bit for bit
    (NaN and infinities too), integers exactly, tensors on the CPU.

    Raises:
        CheckpointError: `tree` holds something else.
        OutputError: the folder cannot be written.
    """
    from safetensors.torch import save

    tensors: dict[str, Tensor] = {}
    structure = json.dumps({"format": _FORMAT, "tree": _flatten(tree, tensors, "tree")})
    write_bytes(path, save(tensors, metadata={"rlmix": structure}))


def load_tree(path: str | os.PathLike[str]) -> Any:
    """Load what `save_tree` wrote; nothing is unpickled and no code is run.

    Raises:
        CheckpointError: the file is missing, damaged or of another kind.
    """
    from safetensors import SafetensorError, safe_open

    source = Path(path)
    if not source.is_file():
        raise CheckpointError(f"`{source}` does not exist. Give the file that an earlier run wrote.")
    try:
        with safe_open(source, framework="pt") as file:
            metadata = (file.metadata() or {}).get("rlmix")
            if metadata is None:
                raise CheckpointError(f"`{source}` is no rlmix file: its metadata has no `rlmix` entry.")
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  (not a mapping)
        document = json.loads(metadata)
        if document["format"] != _FORMAT:
            raise CheckpointError(f"`{source}` has the format {document['format']!r}, expected {_FORMAT!r}.")
        return _unflatten(document["tree"], tensors)
    except (SafetensorError, OSError, KeyError, TypeError, ValueError) as error:
        if isinstance(error, CheckpointError):
            raise
        raise CheckpointError(f"`{source}` is damaged ({error}). Delete it and start again.") from error


def _flatten(node: Any, tensors: dict[str, Tensor], name: str) -> Any:
    """Return the JSON form of `node` and put its tensors under dotted names into `tensors`."""
    if isinstance(node, Tensor):
        # A copy, because safetensors refuses tensors that share memory.
        tensors[name] = node.detach().to("cpu", copy=True).contiguous()
        return {"t": name}
    if isinstance(node, dict):
        if not all(isinstance(key, str) for key in node):
            raise CheckpointError(f"`{name}` has keys that are no strings: {list(node)!r}.")
        return {"d": {key: _flatten(value, tensors, f"{name}.{key}") for key, value in node.items()}}
    if isinstance(node, list | tuple):
        kind = "l" if isinstance(node, list) else "u"
        return {kind: [_flatten(value, tensors, f"{name}.{index}") for index, value in enumerate(node)]}
    if node is None or isinstance(node, bool | int | str):
        return {"v": node}
    if isinstance(node, float):
        return {"f": node.hex()}
    raise CheckpointError(f"`{name}` is a {type(node).__name__}; a tree holds tensors, numbers, strings and None.")


def _unflatten(node: Any, tensors: dict[str, Tensor]) -> Any:
    """Invert `_flatten`."""
    ((kind, value),) = node.items()
    if kind == "t":
        return tensors[value]
    if kind == "d":
        return {key: _unflatten(child, tensors) for key, child in value.items()}
    if kind in ("l", "u"):
        children = [_unflatten(child, tensors) for child in value]
        return children if kind == "l" else tuple(children)
    if kind == "f":
        return float.fromhex(value)
    if kind == "v":
        return value
    raise ValueError(f"unknown node kind {kind!r}")


def equal_trees(first: Any, second: Any) -> bool:
    """Say whether two trees hold the same structure, the same numbers and the same tensor bits."""
    if isinstance(first, Tensor) and isinstance(second, Tensor):
        if first.dtype != second.dtype or first.shape != second.shape:
            return False
        both_nan = (first != first) & (second != second)
        return bool(torch.all((first == second) | both_nan))
    if isinstance(first, dict) and isinstance(second, dict):
        return first.keys() == second.keys() and all(equal_trees(first[key], second[key]) for key in first)
    if isinstance(first, list | tuple) and type(first) is type(second):
        return len(first) == len(second) and all(map(equal_trees, first, second))
    return type(first) is type(second) and (first == second or (first != first and second != second))
