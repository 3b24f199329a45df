"""Voting: split the training set by content, train one model on each part, let them vote with a certificate."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mithridate.core.data import ImageData
from mithridate.core.ensemble import Ensemble
from mithridate.core.guarantees import Guarantee
from mithridate.core.learners import Mixed
from mithridate.core.seeds import derive
from mithridate.core.states import EVALUATION_BATCH
from mithridate.core.training import Fitted, Learner, Prediction, Predictor, Watch, Wrapper


@dataclasses.dataclass(frozen=True)
class Voting(Wrapper):
    """Split the training set into parts by content, train one model on each, let them vote.

    A row belongs to the part that the SHA-256 of its 8-bit pixels says, whatever its label or place; a part is put in
    the order of these hashes and trained with a seed that depends on the victim's seed and the part's number alone. So
    an inserted or deleted row changes one part, a replaced row at most two, and no other model moves by a bit. Parts
    that are empty or hold one class answer with their one class (an empty one with class 0).

    `watch` is called for each part's model, with the number of the member that it belongs to.
    """

    learner: Learner
    """Trains each part."""
    parts: int
    """Number of parts, and of votes."""

    def __post_init__(self) -> None:
        if isinstance(self.learner, Voting):
            raise TypeError("a vote of votes certifies nothing more; use one partition-vote with more parts")
        if isinstance(self.innermost, Mixed):
            raise TypeError(
                "a part's architecture would depend on how many parts before it can be trained, so one row could move "
                "several parts and nothing would be certified; put partition-vote around one recipe"
            )

    def fit(
        self,
        datasets: Sequence[ImageData],
        seeds: Sequence[int],
        *,
        trusted: ImageData | None = None,
        watch: Watch | None = None,
    ) -> Fitted:
        """Trains `parts` models for each data set and seed; `models` holds them all, part after part."""
        split = {id(data): self._split(data) for data in datasets}
        shards = [shard for data in datasets for shard in split[id(data)]]
        jobs = [number for number, shard in enumerate(shards) if _several_classes(shard)]
        job_seeds = [derive(seeds[number // self.parts], "part", number % self.parts) for number in jobs]
        watched = None if watch is None else _by_member(watch, [number // self.parts for number in jobs])
        fitted = self.learner.fit([shards[number] for number in jobs], job_seeds, trusted=trusted, watch=watched)
        constant = {number: _constant(shard) for number, shard in enumerate(shards) if number not in jobs}
        trained = dict(zip(jobs, fitted.models, strict=True))
        return Fitted(
            Ensemble([(trained | constant)[number] for number in range(len(shards))]),
            _Votes(self.parts, len(datasets), fitted.predictor, jobs, constant),
            {name: _mean_of(values, jobs, self.parts, len(datasets)) for name, values in fitted.history.items()},
            _joined(dict(zip(jobs, fitted.kept, strict=True)), shards, self.parts),
            (self._guarantee(),),
        )

    def _split(self, data: ImageData) -> list[ImageData]:
        digests = content_hashes(data)
        labels, ids = data.labels_of(data.ids).tolist(), data.ids.tolist()
        parts: list[list[int]] = [[] for _ in range(self.parts)]
        for digest, _, row in sorted(zip(digests, labels, ids, strict=True)):
            parts[int.from_bytes(digest, "big") % self.parts].append(row)
        return [data.select(rows) for rows in parts]

    def _guarantee(self) -> Guarantee:
        largest = self.parts // 2
        return Guarantee(
            kind="partition-vote",
            statement=(
                "an answer with radius r stays the same whichever r training rows are inserted or deleted; a replaced "
                "row is one deletion and one insertion, so it takes more than floor(r / 2) replaced rows to change it"
            ),
            assumptions=(
                f"rows go to one of {self.parts} parts by the SHA-256 of their 8-bit pixels",
                "training one part is bit-exact given that part: same machine, thread count and library versions",
                "recipe, seeds, trusted rows and weights to start from are out of the attacker's reach",
                "the certificate is about each single answer of the whole vote, not about accuracy",
            ),
            values={"parts": self.parts, "largest_radius": largest, "largest_replaced": largest // 2},
        )


def content_hashes(data: ImageData) -> list[bytes]:
    """Returns the SHA-256 of the 8-bit pixels of each visible row, in the order of `data.ids`."""
    return [
        hashlib.sha256(image.tobytes()).digest()
        for rows in data.ids.split(EVALUATION_BATCH)
        for image in data.pixels(rows).cpu().contiguous().numpy()
    ]


def vote_radius(votes: Tensor) -> Tensor:
    """Returns how many training rows may be inserted or deleted without changing the answer, [...] from votes [..., K].

    The answer is the class with most votes, the smallest index among equals; one row changes one vote, which moves a
    difference of two counts by at most 2.

    Reference: Levine, Feizi. "Deep Partition Aggregation: Provable Defense against General Poisoning Attacks".
    ICLR 2021. arXiv 2006.14768, theorem 1.

    >>> vote_radius(torch.tensor([[7, 2, 1], [4, 4, 2], [2, 4, 4]])).tolist()
    [2, 0, 0]
    """
    top = votes.argmax(-1, keepdim=True)
    index = torch.arange(votes.shape[-1], device=votes.device)
    lead = (votes.gather(-1, top) - votes - (index < top).to(votes.dtype)).to(torch.int64)
    return lead.scatter(-1, top, torch.iinfo(torch.int64).max).amin(-1) // 2


class _Votes:
    """Predictor of a vote: scores are vote counts; an abstaining part casts no vote."""

    def __init__(
        self, parts: int, members: int, predictor: Predictor, jobs: list[int], constant: dict[int, nn.Module]
    ) -> None:
        self._members, self._predictor, self._constant = members, predictor, constant
        self._owners = [number // parts for number in jobs]
        self._constant_owners = [number // parts for number in constant]

    def __call__(self, images: Tensor) -> Prediction:
        votes = []
        if self._owners:
            answer = self._predictor(images)
            cast = F.one_hot(answer.scores.argmax(2), answer.scores.shape[2])
            votes.append(cast * ~answer.abstained[..., None])
        with torch.no_grad():
            scores = [model(images) for model in self._constant.values()]
        votes += [F.one_hot(score.argmax(1), score.shape[1])[None] for score in scores]
        cast = torch.cat(votes).float()
        owners = torch.tensor(self._owners + self._constant_owners, device=cast.device)
        counts = cast.new_zeros(self._members, *cast.shape[1:]).index_add_(0, owners, cast)
        abstained = torch.zeros(counts.shape[:2], dtype=torch.bool, device=counts.device)
        return Prediction(counts, abstained, vote_radius(counts))


def _several_classes(data: ImageData) -> bool:
    return len(data.labels_of(data.ids).unique()) > 1


def _constant(data: ImageData) -> nn.Module:
    """A model that always answers with the one class of an untrainable part; class 0 where it is empty."""
    label = int(data.labels_of(data.ids)[0]) if len(data) else 0
    channels, height, width = data.shape
    linear = nn.Linear(channels * height * width, len(data.classes), device=data.device)
    nn.init.zeros_(linear.weight)
    with torch.no_grad():
        linear.bias.copy_(F.one_hot(torch.tensor(label), len(data.classes)))
    return nn.Sequential(nn.Flatten(), linear).eval()


def _by_member(watch: Watch, owners: list[int]) -> Watch:
    return lambda job, epoch, predictor: watch(owners[job], epoch, predictor)


def _mean_of(values: list, jobs: list[int], parts: int, members: int) -> list[list[float]]:
    """Per member, the mean over its trained parts of what was recorded in each epoch."""
    owned = [[value for job, value in zip(jobs, values, strict=True) if job // parts == m] for m in range(members)]
    return [[sum(epoch) / len(epoch) for epoch in zip(*own, strict=False)] for own in owned]


def _joined(kept: dict[int, Tensor | None], shards: list[ImageData], parts: int) -> list[Tensor | None]:
    """Per member the rows that its parts used; None where all of them used all of theirs."""
    found: list[Tensor | None] = []
    for start in range(0, len(shards), parts):
        numbers = range(start, start + parts)
        rows = [kept.get(number) for number in numbers]
        used = [shards[n].ids if own is None else own for n, own in zip(numbers, rows, strict=True)]
        found.append(None if all(own is None for own in rows) else torch.cat(used).sort().values)
    return found
