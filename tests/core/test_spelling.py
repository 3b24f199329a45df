"""Words as people type them."""

from __future__ import annotations

from hypothesis import given, strategies as st

from mithridate.core.spelling import LISTED, nearest, split


@given(st.lists(st.text("ab=()", min_size=1).filter(lambda text: text.count("(") == text.count(")") == 0), max_size=5))
def test_parts_come_back(parts: list[str]) -> None:
    nested = [f"{part}({part},{part})" for part in parts]
    assert split(",".join(nested)) == nested
    assert split("+".join(nested), "+") == nested
    assert split(f",{','.join(parts)},") == parts


def test_only_so_many_words_are_listed() -> None:
    many = [f"w{k:03}" for k in range(LISTED + 1)]
    assert nearest("zzz", many).endswith(f", ... ({LISTED + 1} in all)")
    assert nearest("zzz", many[:-1]).endswith(many[-2])
