"""What a training procedure proves about its result."""

from __future__ import annotations

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
