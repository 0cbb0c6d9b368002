"""rlmix.errors."""

from __future__ import annotations

import inspect

import rlmix.errors as errors


def test_every_error_is_in_the_tree_and_in_its_drawing() -> None:
    """`except RlmixError` must catch all, and the drawing at the top must not drift from the classes."""
    assert errors.__doc__ is not None
    classes = [value for _, value in inspect.getmembers(errors, inspect.isclass) if value.__module__ == errors.__name__]
    assert len(classes) > 5
    for error in classes:
        assert issubclass(error, errors.RlmixError)
        assert error.__name__ in errors.__doc__


def test_nearest_names_what_was_probably_meant() -> None:
    """And only that where nothing is near."""
    assert errors.nearest("cutmx", ["mixup", "cutmix"]) == "Did you mean `cutmix`? Known: mixup, cutmix."
    assert errors.nearest("zzz", ["mixup", "cutmix"]) == "Known: mixup, cutmix."
