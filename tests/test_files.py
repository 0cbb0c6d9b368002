"""rlmix._files: nothing is lost and nothing is unpickled."""

from __future__ import annotations

import os
import pickle
from pathlib import Path

import pytest
import torch

from rlmix import _files
from rlmix.errors import CheckpointError, OutputError

TREE = {
    "numbers": [1, -(2**62), 0.1, float("nan"), float("-inf"), True, None, "text"],
    "pair": (torch.arange(3), [torch.rand(2, 2).bfloat16(), torch.tensor(float("nan"))]),
    "empty": {},
    "shared": torch.ones(4)[::2],
}


def test_trees_come_back_bit_for_bit(tmp_path: Path) -> None:
    """Kinds of containers, whole numbers of 63 bits, NaN, strided and zero-dimensional tensors."""
    _files.save_tree(tmp_path / "tree.safetensors", TREE)
    loaded = _files.load_tree(tmp_path / "tree.safetensors")
    assert _files.equal_trees(TREE, loaded)
    assert isinstance(loaded["pair"], tuple)
    assert loaded["numbers"][5] is True


def test_trees_that_differ_are_told_apart() -> None:
    """Resuming is compared with this."""
    for one, two in ((1, 1.0), ([1], (1,)), ({"a": 1}, {"b": 1}), (torch.ones(2), torch.ones(2).double()), (1, 2)):
        assert not _files.equal_trees(one, two)
    assert not _files.equal_trees(torch.tensor([float("nan"), 0]), torch.tensor([0, float("nan")]))


def test_a_failed_write_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A full disk or a kill in the middle must not cost the last checkpoint."""
    path = tmp_path / "file"
    _files.write_text(path, "old")

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OutputError, match="cannot be written .No space left on device"):
        _files.write_text(path, "new")
    assert path.read_text() == "old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["file"]


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    """Root may write anywhere, so a file stands where the folder should be."""
    (tmp_path / "taken").write_text("")
    with pytest.raises(OutputError, match="taken` cannot be written .* Give a folder that you may write to"):
        _files.writable_folder(tmp_path / "taken")


def test_things_that_a_tree_cannot_hold_are_refused(tmp_path: Path) -> None:
    """An object would have to be pickled."""
    with pytest.raises(CheckpointError, match="`tree.a` is a object"):
        _files.save_tree(tmp_path / "x", {"a": object()})
    with pytest.raises(CheckpointError, match="keys that are no strings"):
        _files.save_tree(tmp_path / "x", {1: 2})


def test_damaged_and_foreign_files_are_refused(tmp_path: Path) -> None:
    """Cut short, of another kind, or made to run code when unpickled: an error, and nothing runs."""
    path = tmp_path / "tree.safetensors"
    with pytest.raises(CheckpointError, match="does not exist"):
        _files.load_tree(path)
    _files.save_tree(path, TREE)
    path.write_bytes(path.read_bytes()[:-3])
    with pytest.raises(CheckpointError, match="is damaged"):
        _files.load_tree(path)

    class Bomb:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return os.mkdir, (str(tmp_path / "ran"),)

    path.write_bytes(pickle.dumps(Bomb()))
    with pytest.raises(CheckpointError, match="is damaged"):
        _files.load_tree(path)
    assert not (tmp_path / "ran").exists()

    from safetensors.torch import save_file

    save_file({"a": torch.ones(1)}, path)
    with pytest.raises(CheckpointError, match="is no rlmix file"):
        _files.load_tree(path)
