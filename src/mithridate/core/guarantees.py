"""What a training procedure proves about its result."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field


@dataclass(frozen=True, kw_only=True)
class Guarantee:
    """A statement that holds for the whole procedure it is attached to, with everything it rests on.

    >>> Guarantee(kind="vote", statement="no deletion of one row changes the label").kind
    'vote'
    """

    kind: str
    """What sort of guarantee: ``partition-vote``, ``differential-privacy``, ..."""
    statement: str
    """One sentence a reader can quote."""
    assumptions: tuple[str, ...] = ()
    """What must be true for the statement to hold."""
    values: dict[str, float] = field(default_factory=dict)
    """Its numbers by name."""


def weakest(guarantees: Iterable[Guarantee | None]) -> Guarantee | None:
    """Returns the one with the largest epsilon, for something that all of them are about; None if one of them is.

    >>> one, two = (Guarantee(kind="dp", statement="", values={"epsilon": e}) for e in (1.0, 2.0))
    >>> weakest([two, one]) == two, weakest([two, None])
    (True, None)
    """
    found = list(guarantees)
    known = [guarantee for guarantee in found if guarantee is not None]
    if not known or len(known) < len(found):
        return None
    return max(known, key=lambda guarantee: guarantee.values.get("epsilon", 0.0))
