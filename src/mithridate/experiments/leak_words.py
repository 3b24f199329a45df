"""Leaks in plain words: a headline, verdicts, what defences take away. No more is said than was shown."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from mithridate.experiments.power import fewest_pairs
from mithridate.experiments.statistics import Mean, percent
from mithridate.experiments.words import counted, p_texts, signed, span

if TYPE_CHECKING:
    from mithridate.experiments.leak_table import Against, LeakRow

STANDINGS = {
    "shown": ("▲", "Images are recognised", "more images are picked out than by the mean image"),
    "margins": ("◇", "Pixels leak", "nearer to the true images than the mean image; picking them out is not shown"),
    "alone": ("?", "Too few cases", "better in a single test, but with so many settings so few cases can show nothing"),
    "open": ("○", "Not shown", "not shown to beat the mean image; that does not mean that nothing leaks"),
}
"""By `standing`: a sign, so that nothing hangs on colour; a name; what it means."""
ALWAYS_KNOWN = ("larger-batch",)
"""Defences that every server knows of, since it knows how many images there are."""
_PLACE = ("data", "model", "sharing", "knowledge")


def standing(row: LeakRow) -> str:
    """The verdict in a word: shown (picked out more often than by chance), margins (PSNR alone), alone, open.

    "alone": a single test passes, but no success could have passed with so few cases among so many settings.

    Judged with all comparisons of the table considered (Holm).
    """
    if row.gain.shown or row.gain.psnr_shown:
        return "shown" if row.gain.shown else "margins"
    return "alone" if (row.gain.identified.shown or row.gain.psnr.shown) and _few(row.gain) else "open"


def informed(row: LeakRow) -> bool:
    """Whether the attacker knew all that the client did."""
    return row.adaptive or all(defense["type"] in ALWAYS_KNOWN for defense in row.cell.defenses)


def batches(size: int) -> str:
    """What a client sends, by its batch.

    >>> batches(1), batches(4)
    ('single images', 'batches of 4')
    """
    return "single images" if size == 1 else f"batches of {size}"


def protection(row: LeakRow) -> str:
    """The defences and whether the attacker knew them.

    >>> from types import SimpleNamespace
    >>> protection(SimpleNamespace(defense="mixing", adaptive=True))
    'mixing, attacker adapting'
    """
    return "no defence" if row.defense == "none" else row.defense + ", attacker adapting" * row.adaptive


def decibels(value: Mean) -> str:
    """A PSNR with its interval.

    >>> decibels(Mean(20.04, 18.0, 22.1, 10)), decibels(Mean(20.04, None, None, 1))
    ('20.0 dB (18.0 to 22.1)', '20.0 dB')
    """
    ends = span(value, 1, 1)
    return f"{value.value:.1f} dB" + (f" ({ends})" if ends else "")


def where(row: LeakRow, rows: Sequence[LeakRow]) -> str:
    """What tells the place of a row from those of the others; empty where nothing does."""
    return ", ".join(getattr(row, name) for name in _PLACE if len({getattr(r, name) for r in rows}) > 1)


def turned(value: Mean) -> Mean:
    """A difference the other way round.

    >>> turned(Mean(2.0, 1.0, 3.0, 10))
    Mean(value=-2.0, low=-3.0, high=-1.0, n=10)
    """
    low, high = (None if end is None else -end for end in (value.high, value.low))
    return Mean(-value.value, low, high, value.n)


class Scene(NamedTuple):
    """Rows of one attack in one place."""

    title: str
    attack: str
    place: str
    """What tells the place from the others of the table."""
    rows: list[LeakRow]


def scenes(rows: Sequence[LeakRow]) -> list[Scene]:
    """Group rows in their order, of the attacks in one place the strongest first."""
    groups: dict[tuple[str, ...], list[LeakRow]] = {}
    for row in rows:
        groups.setdefault((row.attack, *(getattr(row, name) for name in _PLACE)), []).append(row)
    made = [
        Scene(f"{key[0]}: {', '.join(key[1:])}", key[0], where(found[0], rows), found) for key, found in groups.items()
    ]
    places = list(dict.fromkeys(scene.place for scene in made))
    return sorted(made, key=lambda scene: (places.index(scene.place), [-reach for reach in _best(scene.rows)]))


def _best(rows: Sequence[LeakRow]) -> tuple[float, float]:
    return max(_reach(row) for row in rows)


def title(rows: Sequence[LeakRow]) -> str:
    """Models and data of a study."""
    names = [sorted({getattr(row, name) for row in rows}) for name in ("model", "data")]
    return ", on ".join("; ".join(name) for name in names) if rows else "no finished trials"


# --- the headline ----------------------------------------------------------------------------------------------------


def headline(rows: Sequence[LeakRow]) -> str:
    """How much leaks: the strongest attack without a defence, and against the defence that leaves it least.

    >>> headline([])
    'No attack has finished, so nothing is shown.'
    """
    if not rows:
        return "No attack has finished, so nothing is shown."
    bare = [row for row in rows if row.defense == "none"]
    row = _strongest(bare or rows, min(r.batch for r in bare or rows))
    others = [r for r in rows if where(r, rows) == where(row, rows)]
    return " ".join(
        [_opening(row, others, where(row, rows)), *_with_a_defense(row, others), *_knowing_nothing(row, rows)]
    )


def _opening(row: LeakRow, others: Sequence[LeakRow], place: str) -> str:
    ahead = f"With {protection(row)}" if row.defense != "none" else "Without a defence"
    images = "single images" if row.batch == 1 else f"images in {batches(row.batch)}"
    verb = "is" if row.found.identified.successes == 1 else "are"
    text = f"{ahead}{f' ({place})' if place else ''}, {counted(row.found.identified)} {images} {verb} picked out among "
    text += f"{row.candidates:,} by their reconstruction"
    sizes = [r.batch for r in others if r.defense == row.defense]
    if max(sizes) > row.batch:
        larger = _strongest([r for r in others if r.defense == row.defense], max(sizes))
        text += f", and {counted(larger.found.identified)} in {batches(larger.batch)}"
    return f"{text}."


def _with_a_defense(row: LeakRow, others: Sequence[LeakRow]) -> list[str]:
    """The defence that leaves least to the strongest attack against it."""
    best = _best_defense([r for r in others if r.batch == row.batch and r.defense != "none"])
    if best is None or row.defense != "none" or standing(row) == "open":  # an idle attack speaks for no defence
        return []
    one, count = best
    which = f", the strongest of {count} defences" if count > 1 else ""
    who = "an attacker who knows it" if informed(one) else "an attacker who does not know it"
    return [f"With {one.defense}{which}, {who} picks out {counted(one.found.identified)}."]


def _knowing_nothing(row: LeakRow, rows: Sequence[LeakRow]) -> list[str]:
    made = [f"The mean image, which knows nothing of the leak, picks out {counted(row.control.identified)}."]
    if any(standing(r) == "shown" for r in rows):
        return made
    pixels = any(standing(r) == "margins" for r in rows)
    return [*made, "No attack is shown to pick out more" + (", though pixels come nearer." if pixels else ".")]


def _strongest(rows: Sequence[LeakRow], batch: int) -> LeakRow:
    return max((r for r in rows if r.batch == batch), key=_reach)


def _reach(row: LeakRow) -> tuple[float, float]:
    return (row.found.identified.share, row.found.psnr.value)


def _best_defense(rows: Sequence[LeakRow]) -> tuple[LeakRow, int] | None:
    """The strongest attack against the defence that leaves the strongest attack least; how many defences there are."""
    groups: dict[str, list[LeakRow]] = {}
    for row in rows:
        groups.setdefault(row.defense, []).append(row)
    worst = [max(found, key=_reach) for found in groups.values()]
    return (min(worst, key=_reach), len(worst)) if worst else None


# --- sentences -------------------------------------------------------------------------------------------------------


def verdict(row: LeakRow, rows: Sequence[LeakRow]) -> str:
    """What was reconstructed, what the control reaches, and whether that is shown to be more."""
    context = ", ".join(filter(None, (where(row, rows), batches(row.batch), protection(row))))
    gain, hits = row.gain, row.found.identified
    trials = f" in {row.trials} batches" if hits.n != row.trials else ""
    other = row.control.identified
    rival = f"against {'it' if other.share else 'chance'} {p_texts(gain.identified.p, gain.identified_holm)}"
    told = (
        f"{counted(hits)} images picked out among {row.candidates:,}{trials} ({span(hits)} %; mean image "
        f"{counted(other)}; {rival})"
    )
    near = (
        f"PSNR {decibels(row.found.psnr)}, {signed(gain.psnr.difference.value)} against the mean image "
        f"({p_texts(gain.psnr.p, gain.psnr_holm)})"
    )
    return f"{context[:1].upper()}{context[1:]}, {row.attack}: {told}; {near}: {_conclusion(row)}."


def _conclusion(row: LeakRow) -> str:
    kind = standing(row)
    if kind == "shown":
        return "the message gives its images away"
    few = _too_few(row.gain)
    if kind == "margins":
        return f"nearer than the mean image, but not shown to pick out more{few}"
    return f"not shown to beat the mean image{few}"


def _too_few(gain: Against) -> str:
    pairs, fewest = gain.identified.pairs, fewest_pairs(gain.comparisons)
    several = f" for {gain.comparisons} comparisons" if gain.comparisons > 1 else ""
    return f" ({pairs} paired cases are too few{several}; {fewest} is the fewest)" if _few(gain) else ""


def _few(test: Against) -> bool:
    """Whether not even a perfect success could be shown."""
    return test.identified.pairs < fewest_pairs(test.comparisons)


def epsilon(value: float) -> str:
    """An epsilon with as many digits as mean something.

    >>> epsilon(2.1654), epsilon(4012.7)
    ('2.17', '4,013')
    """
    return f"{value:.3g}" if value < 1000 else f"{value:,.0f}"


class Brief(NamedTuple):
    """One attack in one place: its standing without a defence, and what it did."""

    standing: str
    sentences: list[str]


def briefs(rows: Sequence[LeakRow]) -> list[Brief]:
    """One brief per attack and place, in the order of the rows."""
    return [_brief(scene) for scene in scenes(rows)]


def _brief(scene: Scene) -> Brief:
    bare = [row for row in scene.rows if row.defense == "none"]
    name = f"{scene.attack}{f', {scene.place}' if scene.place else ''}"
    told = "; ".join(_shares(row) for row in bare)
    sentences = [f"{name}, without a defence, picks out {told}." if bare else f"{name}: not run without a defence."]
    for knowing, opening in ((False, "Not knowing the defence"), (True, "Knowing the defence")):
        found = [row for row in scene.rows if row.defense != "none" and informed(row) == knowing]
        for size in sorted({row.batch for row in found})[:1]:
            ordered = sorted((row for row in found if row.batch == size), key=lambda row: -row.found.identified.share)
            parts = "; ".join(f"{row.defense} {_share(row)}" for row in ordered)
            sentences.append(f"{opening}, {batches(size)}: {parts}.")
    order = list(STANDINGS)
    best = min((standing(row) for row in bare or scene.rows), key=order.index)
    return Brief(best, sentences)


def _share(row: LeakRow) -> str:
    return f"{percent(row.found.identified.share)} %"


def _shares(row: LeakRow) -> str:
    images = "of" if row.batch == 1 else "in"
    numbers = f"({counted(row.found.identified)}; PSNR {row.found.psnr.value:.1f} dB)"
    return f"{_share(row)} {images} {batches(row.batch)} {numbers}"


def defense_lines(rows: Sequence[LeakRow]) -> list[str]:
    """One line per defence and place: what it takes away from each attack, and what it proves."""
    groups: dict[tuple[str, str], list[LeakRow]] = {}
    for row in rows:
        if row.defense != "none":
            groups.setdefault((where(row, rows), row.defense), []).append(row)
    lines = []
    for (place, name), found in groups.items():
        parts = [_effects(of_attack) for of_attack in _by_attack(found)]
        parts += [] if any(map(informed, found)) else ["No attacker who knows it was run"]
        epsilons = [row.epsilon for row in found if row.epsilon is not None]
        proven = f", epsilon {epsilon(max(epsilons))} for one message" if epsilons else ""
        lines.append(f"{name}{f' ({place})' if place else ''}{proven}. {'. '.join(parts)}.")
    return lines


def _by_attack(rows: Sequence[LeakRow]) -> list[list[LeakRow]]:
    groups: dict[tuple[str, bool], list[LeakRow]] = {}
    for row in rows:
        groups.setdefault((row.attack, row.adaptive), []).append(row)
    return list(groups.values())


def _effects(rows: Sequence[LeakRow]) -> str:
    """What a defence does to one attack, batch by batch."""
    said: dict[str, list[str]] = {}
    for row in rows:
        verb, numbers = effect(row)
        said.setdefault(verb, []).append(f"{batches(row.batch)} ({numbers})")
    name = rows[0].attack + (", adapting" if rows[0].adaptive else "")
    return f"Against {name}: " + "; ".join(f"{verb} {', '.join(numbers)}" for verb, numbers in said.items())


def effect(row: LeakRow) -> tuple[str, str]:
    """(what a defence is shown to do against this attack, the numbers)."""
    loss = row.loss
    if loss is None:
        return "no undefended run beside", f"{_share(row)} picked out"
    numbers = f"{percent(loss.rate.share)} → {_share(row)}, {signed(-loss.psnr.difference.value)} dB"
    if loss.shown:
        return "hides", numbers
    if loss.psnr_shown:
        return "blurs", numbers
    return ("too few cases to show an effect on" if _few(loss) else "no effect shown on"), numbers


# --- columns ---------------------------------------------------------------------------------------------------------


def columns(rows: Sequence[LeakRow]) -> dict[str, list[str]]:
    """The columns of a printed table that have anything in them, by their heading."""
    made = {
        "defence": ["none" if row.defense == "none" else row.defense + ", adaptive" * row.adaptive for row in rows],
        "batch": [str(row.batch) for row in rows],
        "PSNR (95 %)": [decibels(row.found.psnr).replace(" dB", "") for row in rows],
        "gain": [_mark(signed(row.gain.psnr.difference.value), shown=row.gain.psnr_shown) for row in rows],
        "picked out (95 %)": [f"{_share(row)} ({span(row.found.identified)})" for row in rows],
        "of": [_mark(counted(row.found.identified), shown=row.gain.shown) for row in rows],
        "rank": [f"{row.found.rank:,.10g}" for row in rows],
        "vs none": [
            _mark(signed(-row.loss.psnr.difference.value), shown=row.loss.psnr_shown) if row.loss else ""
            for row in rows
        ],
        "eps": [epsilon(row.epsilon) if row.epsilon is not None else "" for row in rows],
    }
    return {name: column for name, column in made.items() if any(column)}


def _mark(text: str, *, shown: bool) -> str:
    """A star where a difference is shown after Holm's correction."""
    return f"{text}{'*' if shown else ' '}"
