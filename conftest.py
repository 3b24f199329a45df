"""Examples in docstrings that need an optional package are skipped where it is not installed."""

from __future__ import annotations

from importlib.util import find_spec

import pytest

NEEDS = {
    "art_classifier": "art",
    "foolbox_model": "foolbox",
    "from_hugging_face": "datasets",
    "to_hugging_face": "datasets",
    "DPInstaHide": "dp_accounting",
    "DPSGD": "dp_accounting",
}
"""By the name whose docstring holds the example."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip what cannot run here, with the reason."""
    for item in items:
        needed = NEEDS.get(item.name.rpartition(".")[2]) if isinstance(item, pytest.DoctestItem) else None
        if needed is not None and find_spec(needed) is None:
            item.add_marker(pytest.mark.skip(reason=f"{needed} is not installed"))
