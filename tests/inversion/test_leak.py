"""The leak: what is refused, what comes back from disk, what a federated client sends."""

from __future__ import annotations

import copy
import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from mithridate.core.models import Normalize
from mithridate.inversion.client import Client
from mithridate.inversion.defenses.clip_and_noise import ClipAndNoise
from mithridate.inversion.defenses.mixing import Mixing
from mithridate.inversion.defenses.quantize import Quantize
from mithridate.inversion.leak import Leak
from mithridate.inversion.sharing import Gradient, Update
from tests.inversion.cases import CLASSES, SHAPE, images, labels, leak_of, normed, smooth


def facts(count: int = 2) -> dict:
    return {"count": count, "shape": SHAPE, "classes": CLASSES}


def test_from_gradients_takes_mappings_and_lists_of_arrays() -> None:
    model = smooth()
    leak = leak_of(model, 2)
    named = {name: value.numpy() for name, value in leak.shared.items()}
    for arrays in (named, list(named.values()), leak.shared):
        again = Leak.from_gradients(model, arrays, labels=[0, 1], **facts())
        assert all(torch.equal(a, b) for a, b in zip(again.tensors, leak.tensors, strict=True))
        assert again.labels is not None
        assert again.labels.tolist() == [0, 1]


@pytest.mark.parametrize("form", ["mapping", "state", "parameters"])
def test_from_weights_is_what_the_client_computed(form: str) -> None:
    model, sharing = normed().eval(), Update(steps=3, rate=0.2, batch_size=1)
    leak = leak_of(model, client=Client(batch=2, sharing=sharing))
    after = copy.deepcopy(model)
    with torch.no_grad():
        for name, parameter in after.named_parameters():
            parameter -= leak.shared[name]

    def sent(module: nn.Module) -> dict | list:
        arrays = {name: value.numpy() for name, value in module.state_dict().items()}
        if form == "mapping":
            return arrays
        return list(arrays.values()) if form == "state" else [p.detach().numpy() for p in module.parameters()]

    blank = copy.deepcopy(model)  # the server's copy of the architecture has other weights
    with torch.no_grad():
        for parameter in blank.parameters():
            parameter.zero_()
    again = Leak.from_weights(blank, sent(model), sent(after), sharing=sharing, **facts())
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(again.tensors, leak.tensors, strict=True))
    assert all(torch.equal(a, b) for a, b in zip(again.model.parameters(), model.parameters(), strict=True))
    assert not any(bool(p.any()) for p in blank.parameters())


def test_an_update_without_its_steps_is_refused() -> None:
    weights = smooth().state_dict()
    with pytest.raises(ValueError, match=r"number of its steps.*give sharing=Update\(steps="):
        Leak.from_weights(smooth(), weights, weights, sharing=None, **facts())


def test_a_client_that_normalises_outside_its_model_gets_a_layer_in_front() -> None:
    inner = smooth()
    whole = nn.Sequential(Normalize([0.5] * 3, [0.25] * 3), inner)
    x, y = images(2), labels(2)
    outside = torch.autograd.grad(nn.functional.cross_entropy(inner((x - 0.5) / 0.25), y), list(inner.parameters()))
    leak = Leak.from_gradients(whole, list(outside), labels=y, **facts())
    with leak.mode():
        inside = leak.compute(x, leak.targets(y), graph=False)
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(inside, leak.tensors, strict=True))


def test_a_list_of_weights_may_lack_what_a_layer_in_front_holds() -> None:
    inner = normed().eval()
    whole = nn.Sequential(Normalize([0.5] * 3, [0.25] * 3), inner)
    before, names = inner.state_dict(), dict(inner.named_parameters())
    after = [value - 0.5 if name in names else value for name, value in before.items()]
    sharing = Update(steps=1, rate=0.1)
    leak = Leak.from_weights(whole, list(before.values()), after, sharing=sharing, **facts())
    assert {name: value.unique().item() for name, value in leak.shared.items()} == dict.fromkeys(
        [f"1.{name}" for name in names], pytest.approx(0.5)
    )
    assert torch.equal(leak.model.state_dict()["1.1.running_mean"], before["1.running_mean"])
    with pytest.raises(ValueError, match="8 weights came in a list, but the model has 11 or 9 or 6; send all"):
        Leak.from_weights(whole, list(before.values())[:-1], after, sharing=sharing, **facts())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda g: {k: v for k, v in g.items() if k != "5.weight"}, "no gradient for 5.weight"),
        (lambda g: g | {"head.weight": torch.ones(2)}, "gradients for head.weight, which the model does not train"),
        (lambda g: g | {"5.weight": torch.ones(7, 12)}, r"shape \[7, 12\], the parameter \[5, 12\].*another model"),
        (lambda g: g | {"5.bias": torch.full((5,), torch.nan)}, "gradient of 5.bias holds NaN"),
        (lambda g: list(g.values())[:-1], "5 gradients came in a list, but the model has 6"),
    ],
)
def test_gradients_of_another_model_are_refused(change, message: str) -> None:
    leak = leak_of(smooth(), 2)
    with pytest.raises(ValueError, match=message):
        Leak.from_gradients(leak.model, change(dict(leak.shared)), **facts())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"count": 0}, "at least one image"),
        ({"labels": torch.tensor([0, 9])}, "label 9 is none of the 5 classes"),
        ({"labels": torch.tensor([0])}, r"of shape \[1\]; expected int64 \[2\]"),
        ({"classes": 7}, r"expected logits \[2, 7\]"),
        ({"shape": (3, 9, 9)}, "fails on images of shape"),
        ({"sharing": Update(steps=1, rate=0.1, batches=((0, 5),))}, "names image 5"),
    ],
)
def test_what_does_not_fit_the_model_is_refused(settings: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(leak_of(smooth(), 2), **settings)


def test_weights_of_another_model_are_refused() -> None:
    state = smooth().state_dict()
    other = state | {"5.weight": torch.ones(5, 11)}
    with pytest.raises(ValueError, match=r"5.weight \[5, 12\] \(given: \[5, 11\]\)"):
        Leak.from_weights(smooth(), other, state, sharing=Update(steps=1, rate=1), **facts())
    with pytest.raises(ValueError, match=r"5.bias \[5\] \(missing\)"):
        Leak.from_weights(
            smooth(),
            {k: v for k, v in state.items() if k != "5.bias"},
            state,
            sharing=Update(steps=1, rate=1),
            **facts(),
        )
    with pytest.raises(ValueError, match=r"lack 5.bias"):
        Leak.from_weights(
            smooth(),
            state,
            {k: v for k, v in state.items() if k != "5.bias"},
            sharing=Update(steps=1, rate=1),
            **facts(),
        )


@pytest.mark.parametrize(
    "client",
    [
        Client(batch=2, tells_statistics=True, sharing=Gradient(batch_statistics=True)),
        Quantize(bits=4)(Mixing()(Client(batch=2, tells_labels=False))),
        ClipAndNoise(noise=0.5)(Client(batch=2, sharing=Update(steps=2, rate=0.1, batches=((1,), (0,))))),
    ],
)
def test_a_leak_comes_back_from_disk(client: Client, tmp_path: Path) -> None:
    leak = leak_of(normed().eval(), client=client)
    again = Leak.load(leak.save(tmp_path / "round" / "leak.safetensors"), normed(seed=5))
    assert (again.count, again.shape, again.classes) == (leak.count, leak.shape, leak.classes)
    assert again.sharing == leak.sharing
    assert again.filters == leak.filters
    for name, value in leak.model.state_dict().items():
        assert torch.equal(again.model.state_dict()[name], value)
    for mine, theirs in ((leak.labels, again.labels), (leak.mixing, again.mixing)):
        assert (mine is None and theirs is None) or torch.equal(torch.as_tensor(mine), torch.as_tensor(theirs))
    assert leak.statistics.keys() == again.statistics.keys()
    with leak.mode():
        first = leak.compute(images(2), leak.targets(labels(2)), graph=False)
    with again.mode():
        second = again.compute(images(2), again.targets(labels(2)), graph=False)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_a_leak_of_a_built_in_model_is_loaded_by_its_name(tmp_path: Path) -> None:
    from mithridate.core.models import build

    model = build("convnet:width=4", CLASSES, SHAPE, seed=3)
    path = leak_of(model).save(tmp_path / "leak.safetensors")
    again = Leak.load(path, "convnet:width=4")
    assert all(torch.equal(a, b) for a, b in zip(again.model.parameters(), model.parameters(), strict=True))
    with pytest.raises(ValueError, match="not those of this model"):
        Leak.load(path, "convnet:width=8")


def test_a_leak_of_a_recipes_own_model_is_loaded_by_the_networks_name(tmp_path: Path) -> None:
    from mithridate.core.sources import Digits
    from mithridate.core.training import Recipe

    train, test = Digits(train=60).load()
    model = Recipe(model="mlp:width=8", epochs=0).module(train, seed=0).eval()
    rows = test.ids[:2]
    leak = Client(batch=2).share(model, test.floats(rows), test.labels_of(rows), seed=0)
    again = Leak.load(leak.save(tmp_path / "leak.safetensors"), "mlp:width=8")
    with torch.no_grad():
        assert torch.equal(again.model(test.floats(rows)), model(test.floats(rows)))


def test_other_files_are_no_leaks(tmp_path: Path) -> None:
    save_file({"weight": torch.ones(2)}, tmp_path / "plain.safetensors")
    with pytest.raises(ValueError, match="holds tensors but no leak"):
        Leak.load(tmp_path / "plain.safetensors", smooth())
    (tmp_path / "text.safetensors").write_text("hello, this is no file of tensors")
    with pytest.raises(ValueError, match="cannot be read as safetensors"):
        Leak.load(tmp_path / "text.safetensors", smooth())
    with pytest.raises(FileNotFoundError):
        Leak.load(tmp_path / "absent.safetensors", smooth())


def test_in_float64_the_model_is_a_copy() -> None:
    leak = leak_of(smooth())
    exact = leak.to(dtype=torch.float64)
    assert exact.dtype == torch.float64
    assert leak.dtype == torch.float32
    assert exact.tensors[0].dtype == torch.float64


def test_what_is_believed_of_a_client_is_what_another_leak_tells() -> None:
    plain = leak_of(smooth(), 2)
    defended = leak_of(smooth(), client=Quantize(bits=2)(Mixing()(Client(batch=2))))
    naive = defended.believed(plain)
    assert (naive.filters, naive.mixing) == ((), None)
    assert np.array_equal(naive.tensors[0], defended.tensors[0])
