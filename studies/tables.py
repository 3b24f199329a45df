"""The papers' statements beside what is stored here: the first table of docs/results.md, made of studies/results.

    python -m studies.tables            # writes the table between its markers
    python -m studies.tables --check    # 1 if the page says something else

How a verdict comes about. A statement that something works *agrees* where the table of its study shows it (paired tests
against the strictest control, or of a defence against none, adjusted for every comparison; p at most 0.025), *differs*
where the opposite is shown, and is *undecided* otherwise. A number is compared only where it was measured alike: it
agrees where the 95 % interval holds it and differs where not. Numbers with * are reported by others about the paper;
the others were seen in the paper, in its code, or in what its authors wrote.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from mithridate.experiments.leak_table import LeakRow
from mithridate.experiments.statistics import LEVEL
from studies import graph_discretizations, truth_statements, witchcraft
from studies.verdicts import RESULTS, Line, Verdict, attack_line, defense_line, find, leaks, works

PAGE = Path(__file__).parent.parent / "docs" / "results.md"
BEGIN, END = "<!-- tables: begin -->", "<!-- tables: end -->"


# --- the papers ------------------------------------------------------------------------------------------------------

SMALL = "CIFAR-10, 5,000 images, `convnet`"
FEATURES = "CIFAR-10, 2,500 images, frozen features of `convnet`"


def poison_frogs() -> Iterator[Line]:
    paper, study = "Poison Frogs", "studies.poison_frogs:small"
    yield from attack_line(
        paper,
        "one poison, frozen InceptionV3, dog against fish: 100 % of targets",
        f"{FEATURES}, one poison of any kind, ten classes",
        study,
        find("poison-frogs-small", "poison-frogs"),
        "one of 2,500 images hardly moves a head of ten classes on features of 60 % accuracy; with 25 poisons within "
        "0.1 the next row",
    )
    yield from attack_line(
        paper,
        "(many poisons)",
        f"{FEATURES}, 25 poisons, Linf 0.1",
        "studies.targeted:transfer",
        find("targeted-transfer", "poison-frogs", bound="25.5", place="white"),
    )


def polytopes() -> Iterator[Line]:
    study = "studies.targeted:transfer"
    yield from attack_line(
        "Convex Polytope",
        "1 % poison, Linf 0.1, features the attacker lacks: over 50 %",
        f"{FEATURES}, 25 poisons, Linf 0.1, two surrogates",
        study,
        find("targeted-transfer", "convex-polytope", bound="25.5", place="grey"),
        "two small surrogates where the paper has many large ones; with the victim's own features 90 %",
    )
    for attack, name in (("convex-polytope", "Convex Polytope"), ("bullseye-polytope", "Bullseye Polytope")):
        yield from attack_line(
            name,
            "moves targets on known features",
            f"{FEATURES}, 25 poisons, Linf 0.1, white box",
            study,
            find("targeted-transfer", attack, bound="25.5", place="white"),
        )


def poisoning_benchmark() -> Iterator[Line]:
    for attack, published in (("poison-frogs", 0.22), ("convex-polytope", 0.33), ("bullseye-polytope", 0.85)):
        yield from attack_line(
            "Poisoning benchmark",
            f"{attack}, transfer, white box, 25 of 2,500 images, Linf 8/255: {published:.0%}",
            f"{FEATURES}, the same budget",
            "studies.poisoning_benchmark:small",
            find("poisoning-benchmark-small", attack),
            "features of the other half of CIFAR-10 instead of a ResNet-18 of CIFAR-100: so weak that noise moves a "
            "third of the 12 targets",
            rate=published,
        )


def metapoison() -> Iterator[Line]:
    yield from attack_line(
        "MetaPoison",
        "1 % poison, Linf 8/255 and colours by 4 %, 24 surrogates: about 90 %",
        f"{SMALL}, 1 % poison, the same ball, 8 surrogates",
        "studies.metapoison:medium",
        find("targeted-metapoison", "metapoison"),
        "a tenth of the images, a network of 71 thousand weights and a third of the surrogates; 10 targets show 70 % "
        "or more only",
    )
    yield from attack_line(
        "MetaPoison",
        "(the same)",
        f"{SMALL}, fast recipe, 4 surrogates, 30 steps",
        "studies.metapoison:small",
        find("metapoison-small", "metapoison"),
    )


def witches_brew() -> Iterator[Line]:
    paper = "Witches' Brew"
    yield from attack_line(
        paper,
        "ResNet-18, 1 % poison, Linf 16/255: about 90 %*",
        f"{SMALL}, 2 % poison, Linf 16/255",
        "studies.witches_brew:medium",
        find("cifar10-small", "witches-brew", bound="16/255"),
        "effects grow with the data set: a tenth of the images needs about twice the eps (next row)",
    )
    yield from attack_line(
        paper,
        "(the same)",
        f"{SMALL}, 2 % poison, Linf 32/255",
        "studies.witches_brew:medium",
        find("cifar10-small", "witches-brew (precision=auto)", bound="32/255"),
    )
    yield from attack_line(
        paper,
        "(the same)",
        f"{SMALL}, fast recipe, 2 % poison, Linf 32/255",
        "studies.defenses:gradient_matching",
        find("defenses-gradient-matching", "witches-brew"),
    )


def adversarial_poisoning() -> Iterator[Line]:
    paper = "What Doesn't Kill You"
    yield from defense_line(
        paper,
        "adversarial poisoning ends gradient matching at a few points of accuracy",
        f"{SMALL}, fast recipe, Linf 32/255",
        "studies.adversarial_poisoning:medium",
        find("defenses-gradient-matching", "witches-brew", "adversarial-poisoning"),
        "9 of 16 fall to 5 of 16, which 16 targets cannot show after adjustment; 12 epochs where the paper has 40",
    )
    for inner in ("patch", "gradient-matching"):
        yield from defense_line(
            paper,
            f"(against a backdoor, inner attack {inner})",
            "digits, `convnet`, patch on 18 images",
            "studies.adversarial_poisoning:small",
            find("adversarial-poisoning-small", "badnets", f"adversarial-poisoning (inner={inner}"),
        )


def strong_augmentation() -> Iterator[Line]:
    paper = "Strong Data Augmentation"
    for defense in ("mixup", "cutmix"):
        yield from defense_line(
            paper,
            f"{defense} defends against gradient matching without loss of accuracy",
            f"{SMALL}, fast recipe, Linf 32/255",
            "studies.strong_augmentation:medium",
            find("defenses-gradient-matching", "witches-brew", defense),
            "an attacker who knows it moves 11 of 16",
        )
    yield from defense_line(
        paper,
        "CutMix: patch backdoor from 100 to 36 %*, accuracy +9 points",
        f"{SMALL}, patch on 2 %, 16 poisons",
        "studies.attack_by_defense:small",
        find("cifar10-small", "badnets", "cutmix"),
        "a patch of 8 x 8 in a corner on relabelled images of all classes survives mixing here; the paper's is on 10 % "
        "of one class",
        rate=0.36,
    )
    yield from defense_line(
        paper,
        "MaxUp defends against backdoors",
        "digits, `convnet`, patch on 18 images",
        "studies.defenses:digits",
        find("defenses-digits", "badnets", "maxup"),
    )


def dp_instahide() -> Iterator[Line]:
    paper, published = "DP-InstaHide", "mixing and Laplace noise defuse poison"
    yield from defense_line(
        paper,
        published,
        f"{SMALL}, fast recipe, gradient matching, Linf 32/255",
        "studies.dp_instahide:medium",
        find("defenses-gradient-matching", "witches-brew", "dp-instahide"),
        "9 of 16 fall to 3 of 16, which 16 targets cannot show after adjustment, at a high price",
    )
    for sampler in ("groups", "shuffled"):
        yield from defense_line(
            paper,
            f"(a backdoor, {sampler})",
            "digits, `convnet`, patch on 18 images",
            "studies.dp_instahide:small",
            find("dp-instahide-small", "badnets", f"dp-instahide (sampler={sampler}"),
        )


def secure_release() -> Iterator[Line]:
    study = "studies.secure_release:medium"
    for attack, name, published in (
        ("secure-release", "Secure release", "all images within 8/255: accuracy falls steeply"),
        ("adversarial-release (aim=untargeted)", "Adversarial examples", "untargeted, all of CIFAR-10: 7 % accuracy"),
        ("adversarial-release (aim=targeted)", "Adversarial examples", "class-targeted: accuracy falls steeply"),
        ("error-minimizing (noise=sample-wise)", "Unlearnable examples", "accuracy falls steeply"),
    ):
        row = find("release-cifar10", attack, bound="8/255", least=5000)
        if row is not None:
            other = row.against
            control = "" if other is None else f"; {other.name} {100 * (1 - other.success.share):.0f} %"
            low, high = 100 * (1 - row.success.high), 100 * (1 - row.success.low)
            ours = f"accuracy {100 * (1 - row.success.share):.0f} % ({low:.0f} to {high:.0f} %; 3 models){control}"
            why = "5,000 images and `convnet` instead of 50,000 and ResNet-18" if "untargeted" in attack else ""
            yield Line(name, published, f"{SMALL}, fast recipe, all images", ours, works(row), why, study)


def inverting_gradients() -> Iterator[Line]:
    for row in leaks("leak-cosine"):
        if row.attack.startswith("inverting-gradients") and row.defense == "none" and row.batch == 1:
            yield _leak(
                row,
                "Inverting Gradients",
                "single images are recovered from trained and untrained networks",
                "studies.inverting_gradients:small",
            )
    for row in leaks("leak-attacks"):
        if row.attack.startswith("deep-leakage"):
            psnr = "" if row.found.psnr.low is None else "; the paper's small network: 23.4 dB"
            yield _leak(
                row, "Deep Leakage", f"single images are recovered{psnr}", "studies.inverting_gradients:attacks"
            )


def _leak(row: LeakRow, paper: str, published: str, study: str) -> Line:
    psnr = row.found.psnr
    ends = "" if psnr.low is None else f" ({psnr.low:.1f} to {psnr.high:.1f})"
    ours = f"{psnr.value:.1f} dB{ends}; picked out of 1,000: {row.found.identified}"
    shown: Verdict = "agrees" if row.gain.identified_holm <= LEVEL else "undecided"
    return Line(paper, published, f"CIFAR-10, {row.model}, batch of 1", ours, shown, "", study)


def evasion() -> Iterator[Line]:
    for name in ("witchcraft-digits", "witchcraft-cifar10"):
        if (RESULTS / name).is_dir():
            for found in witchcraft.duels(RESULTS / name):
                points = found.test.difference
                low, high = (0.0 if end is None else 100 * end for end in (points.low, points.high))
                verdict: Verdict = "agrees" if found.test.p <= LEVEL else "differs" if high < 0 else "undecided"
                starts = f"{found.restarts} start{'s' * (found.restarts > 1)}"
                yield Line(
                    "WITCHcraft",
                    "fools more than PGD at equal cost",
                    f"{name.partition('-')[2]}, {found.kind}, {255 * found.eps:.0f}/255, {starts}",
                    f"{100 * points.value:+.2f} points ({low:+.2f} to {high:+.2f}; {points.n:,} images x 5 models), "
                    f"p = {found.test.p:.2g}",
                    verdict,
                    "",
                    f"studies.witchcraft:{'small' if 'digits' in name else 'medium'}",
                )


def truth() -> Iterator[Line]:
    verdicts: dict[str, Verdict] = {"agrees": "agrees", "disagrees": "differs", "undecided": "undecided"}
    for name, size in (("truth-digits", "small"), ("truth-cifar10", "medium")):
        if (RESULTS / name).is_dir():
            for one in truth_statements.statements(RESULTS / name):
                yield Line(
                    "Truth or Backpropaganda",
                    one.claim,
                    name.partition("-")[2],
                    one.measured,
                    verdicts[one.verdict],
                    "",
                    f"studies.truth_or_backpropaganda:{size}",
                )


def graphs() -> Iterator[Line]:
    folder = RESULTS / "graph-discretizations-medium"
    if not folder.is_dir():
        return
    for scene in graph_discretizations.PAIRS:
        found = [row for row in graph_discretizations.compare(folder) if row.scene == scene and row.on != "pixels"]
        best = min((row for row in found if row.energy <= 0.05), key=lambda row: -row.times, default=None)
        if best is not None:
            yield Line(
                "Graph discretizations",
                "up to ten times less time and memory at similar energy",
                f"{scene}, {graph_discretizations.DISPARITIES} disparities, {best.on}, {best.cells:,} cells asked for",
                f"1/{best.times:.0f} of the time, 1/{best.memory:.1f} of the memory, energy {best.energy:+.1%}",
                "agrees" if best.times >= 10 else "differs",
                "",
                "studies.graph_discretizations:medium",
            )


PAPERS: tuple[Callable[[], Iterable[Line]], ...] = (
    poison_frogs,
    polytopes,
    metapoison,
    witches_brew,
    poisoning_benchmark,
    adversarial_poisoning,
    strong_augmentation,
    dp_instahide,
    secure_release,
    inverting_gradients,
    evasion,
    truth,
    graphs,
)


# --- the page --------------------------------------------------------------------------------------------------------


def lines() -> Iterator[str]:
    """Yields the table, line by line."""
    yield "| paper | published | here | ours (95 %) | verdict | command |"
    yield "|---|---|---|---|---|---|"
    for paper in PAPERS:
        for one in paper():
            verdict = f"**{one.verdict}**" + (f": {one.why}" if one.why else "")
            yield f"| {one.paper} | {one.published} | {one.setting} | {one.ours} | {verdict} | `{one.command}` |"


def written(page: str) -> str:
    """Returns the page with its table made anew from what is stored."""
    before, after = page.index(BEGIN) + len(BEGIN), page.index(END)
    return "\n".join([page[:before], *lines(), page[after:]])


if __name__ == "__main__":
    text = PAGE.read_text(encoding="utf-8")
    new = written(text)
    if "--check" in sys.argv[1:]:
        print("up to date" if new == text else f"{PAGE} is not what is stored; run python -m studies.tables")
        sys.exit(int(new != text))
    PAGE.write_text(new, encoding="utf-8")
    print(f"wrote {PAGE}")
