"""Transfer: weights from a file, a frozen body, and a new head trained to convergence or by SGD."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from sklearn.linear_model import LogisticRegression
from torch import Tensor, nn

from mithridate.core.classifier import Classifier, save_weights
from mithridate.core.data import ImageData
from mithridate.core.ensemble import features
from mithridate.core.models import last_linear
from mithridate.core.seeds import stream
from mithridate.core.training import Recipe
from mithridate.core.transforms import Flip


def data(seed: int = 0, classes: int = 3) -> ImageData:
    """Noisy pictures, 8x8, that no network of this size separates."""
    labels = torch.arange(60) % classes
    means = 60 + 60 * torch.rand(classes, 1, 8, 8, generator=stream(7, "means"))
    images = means[labels] + 90 * torch.randn(60, 1, 8, 8, generator=stream(seed, "noise"))
    return ImageData(images.round().clamp(0, 255).to(torch.uint8), labels, tuple("abcdef"[:classes]))


def quick(**settings: object) -> Recipe:
    defaults = {"model": "convnet:width=4", "epochs": 2, "batch_size": 16, "precision": "fp32"}
    return Recipe(**(defaults | settings))  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The weights of a network trained on other data of the same kind."""
    path = tmp_path_factory.mktemp("weights") / "body.safetensors"
    save_weights(quick().fit([data(1)], [9]).models[0], path)
    return path


def parts(module: nn.Module) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Body and head of a classifier's state."""
    state = module.state_dict()
    head = {name for name in state if name.startswith("network.linear.")}
    assert len(head) == 2
    return {name: state[name] for name in state if name not in head}, {name: state[name] for name in head}


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return all(torch.equal(a[name], b[name]) for name in a)


CLOSED = {"transforms": ()}
SGD = {"transforms": (Flip(probability=0.0),)}


@pytest.mark.parametrize("settings", [CLOSED, SGD], ids=["closed form", "SGD"])
def test_only_the_head_changes(weights: Path, settings: dict) -> None:
    recipe = quick(start_from=weights, trainable="head", **settings)
    fitted = recipe.fit([data(), data()], [0, 1])
    starts = [recipe.module(data(), seed) for seed in (0, 1)]
    for module, start in zip(fitted.models, starts, strict=True):
        assert same(parts(module)[0], load_file(weights))
        assert same(parts(module)[0], parts(start)[0])
        assert not same(parts(module)[1], parts(start)[1])
        assert not same(parts(module)[1], load_file(weights))
    assert not same(parts(starts[0])[1], parts(starts[1])[1])  # the head is fresh, from the seed


def test_the_closed_form_is_logistic_regression_on_the_features(weights: Path) -> None:
    recipe = quick(start_from=weights, trainable="head", weight_decay=1e-2, **CLOSED)
    fitted = recipe.fit([data()], [0])
    module, given = fitted.models[0], data()
    with torch.no_grad():
        found = features(module, given.images / 255).double()
    unit = (found / found.square().mean().sqrt()).numpy()
    reference = LogisticRegression(C=1 / (60 * 1e-2), tol=1e-10, max_iter=10_000).fit(unit, given.labels.numpy())
    expected = torch.from_numpy(reference.predict_proba(unit)).float()
    torch.testing.assert_close(module(given.images / 255).softmax(1).detach(), expected, atol=1e-3, rtol=0)
    assert len(fitted.history["loss"][0]) == 1


def test_sgd_moves_towards_the_closed_form_and_not_below(weights: Path) -> None:
    closed, slow = (
        quick(
            start_from=weights,
            trainable="head",
            weight_decay=0.0,
            epochs=150,
            batch_size=60,
            learning_rate=2.0,
            **settings,
        )
        .fit([data()], [0])
        .models[0]
        for settings in (CLOSED, SGD)
    )
    given = data()
    best, found, start = (
        nn.functional.cross_entropy(module(given.images / 255), given.labels).item()
        for module in (closed, slow, quick(start_from=weights, trainable="head").module(given, 0).eval())
    )
    assert best <= found + 1e-6
    assert found - best < 0.6 * (start - best)


def test_the_closed_form_does_not_depend_on_hidden_rows(weights: Path) -> None:
    recipe = quick(start_from=weights, trainable="head", **CLOSED)
    shown = data().select(range(30))
    small = ImageData(data().images[:30], data().labels[:30], data().classes)
    torch.testing.assert_close(
        recipe.fit([shown], [0]).models[0].state_dict(), recipe.fit([small], [0]).models[0].state_dict()
    )


def test_a_head_that_is_solved_at_once_is_watched_once(weights: Path) -> None:
    seen = []
    recipe = quick(start_from=weights, trainable="head", epochs=3, **CLOSED)
    recipe.fit([data()], [0], watch=lambda member, epoch, predictor: seen.append((member, epoch)))
    assert seen == [(0, 0)]


def test_fine_tuning_starts_at_the_weights_head_included(weights: Path) -> None:
    module = quick(start_from=weights, epochs=0).fit([data()], [0]).models[0]
    assert same(load_file(weights), module.state_dict())
    tuned = quick(start_from=weights, epochs=1).fit([data()], [0]).models[0]
    body, head = parts(tuned)
    assert not same(body, load_file(weights))
    assert not same(head, load_file(weights))


def test_the_normalisation_comes_with_the_weights_where_the_file_has_one(weights: Path, tmp_path: Path) -> None:
    dark = ImageData(data().images // 4, data().labels, data().classes)
    saved = load_file(weights)
    with_it = quick(start_from=weights).module(dark, 0)
    assert torch.equal(with_it.normalize.mean, saved["normalize.mean"])
    bare = tmp_path / "bare.safetensors"
    save_file({name: value for name, value in saved.items() if not name.startswith("normalize.")}, bare)
    own = quick(start_from=bare).module(dark, 0)
    assert own.normalize.mean.item() == pytest.approx((dark.images / 255).mean().item(), rel=1e-5)
    with pytest.raises(ValueError, match=r"normalize\.mean and normalize\.std, that normalize='none' would drop"):
        quick(start_from=weights, normalize="none").module(dark, 0)
    assert isinstance(quick(start_from=bare, normalize="none").module(dark, 0).normalize, nn.Identity)


def test_a_plain_state_dict_of_the_network_fits_too(weights: Path, tmp_path: Path) -> None:
    path = tmp_path / "plain.safetensors"
    plain = {
        name.removeprefix("network."): value
        for name, value in load_file(weights).items()
        if name.startswith("network.")
    }
    save_file(plain, path)
    module = quick(start_from=path).module(data(), 0)
    assert all(torch.equal(module.network.state_dict()[name], value) for name, value in plain.items())


def test_a_new_head_may_have_other_classes(weights: Path) -> None:
    module = quick(start_from=weights, trainable="head", **CLOSED).fit([data(classes=5)], [0]).models[0]
    assert last_linear(module).out_features == 5
    with pytest.raises(ValueError, match=r"weight \[5, 16\] \(file: \[3, 16\]\).*only the last.*set fresh_head=True"):
        quick(start_from=weights).module(data(classes=5), 0)


@pytest.mark.parametrize("classes", [3, 5])
def test_fine_tuning_with_a_fresh_head_begins_with_the_body_alone(weights: Path, classes: int) -> None:
    recipe = quick(start_from=weights, fresh_head=True)
    starts = [recipe.module(data(classes=classes), seed) for seed in (0, 0, 1)]
    bodies, heads = zip(*map(parts, starts), strict=True)
    assert same(bodies[0], load_file(weights))
    assert same(bodies[0], bodies[2])
    assert same(heads[0], heads[1])
    assert not same(heads[0], heads[2])
    assert all(parameter.requires_grad for parameter in starts[0].parameters())
    tuned = recipe.fit([data(classes=classes)], [0]).models[0]
    assert not same(parts(tuned)[0], bodies[0])
    assert not same(parts(tuned)[1], heads[0])


def test_a_fresh_head_belongs_to_given_weights() -> None:
    with pytest.raises(ValueError, match="fresh_head replaces the last Linear of given weights, but start_from"):
        quick(fresh_head=True)


def test_weights_that_do_not_fit_are_errors(weights: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="which is no file"):
        quick(start_from=tmp_path / "none.safetensors").fit([data()], [0])
    with pytest.raises(ValueError, match=r"does not fit the model: .*another model"):
        quick(start_from=weights, model="convnet:width=8").fit([data()], [0])
    with pytest.raises(ValueError, match=r"stem.* \(missing\)"):
        quick(start_from=weights, model="resnet18:width=4").fit([data()], [0])
    broken = tmp_path / "broken.safetensors"
    broken.write_bytes(weights.read_bytes()[:100])
    with pytest.raises(ValueError, match=r"cannot be read as safetensors .*save_model"):
        quick(start_from=broken).fit([data()], [0])


def test_saved_weights_load_back_to_the_same_answers(weights: Path) -> None:
    module = quick().fit([data(1)], [9]).models[0]
    assert isinstance(module, Classifier)
    images = data().images / 255
    again = quick(start_from=weights, epochs=0).fit([data()], [3]).models[0]
    assert torch.equal(again(images), module(images))
    assert all(value.is_contiguous() for value in load_file(weights).values())
