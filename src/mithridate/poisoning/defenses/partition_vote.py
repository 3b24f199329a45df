"""Deep partition aggregation: a vote whose answers carry a certificate."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from mithridate.core.training import Learner
from mithridate.poisoning.defense import Defense, Kind
from mithridate.poisoning.voting import Voting


@dataclass(frozen=True, kw_only=True)
class PartitionVote(Defense):
    """Train one model on each part of the training set and let them vote; each answer says how many rows it withstands.

    More parts certify against more poison and cost accuracy, since each model sees less data.

    Reference: Levine, Feizi. "Deep Partition Aggregation: Provable Defense against General Poisoning Attacks".
    ICLR 2021. arXiv 2006.14768, section 3.1. Deviations: parts come from the SHA-256 of the 8-bit pixels
    instead of their sum.

    >>> from mithridate import Digits, Recipe
    >>> train, _ = Digits(train=100).load()
    >>> fitted = PartitionVote(parts=4)(Recipe(model="mlp", epochs=1)).fit([train], seeds=[0])
    >>> len(fitted.models), fitted.predictor(train.floats(train.ids[:2])).radius.shape
    (4, torch.Size([1, 2]))
    """

    kind: ClassVar[Kind] = "vote"

    parts: int = 10
    """Parts of the training set, and votes; with fewer than 3 nothing can be certified."""

    def __post_init__(self) -> None:
        if self.parts < 2:
            raise ValueError(f"parts is {self.parts}; a vote needs at least 2 parts (the certificate at least 3)")

    def __call__(self, learner: Learner) -> Learner:
        return Voting(learner, self.parts)
