"""Networks of other libraries: what they are asked for, what comes back, double backward, clear errors."""

from __future__ import annotations

import sys
import types

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from mithridate.core.ensemble import features
from mithridate.core.external import timm_network
from mithridate.core.extras import MissingExtra
from mithridate.core.models import build, last_linear
from tests.core.training_cases import data, digests, quick

VIT = "transformers:vit,patch_size=4,hidden_size=16,num_hidden_layers=2,num_attention_heads=2,intermediate_size=32"
RESNET = "transformers:resnet,embedding_size=8,hidden_sizes=[8,16],depths=[1,1],layer_type=basic"
CONVNEXT = "transformers:convnext,num_stages=2,hidden_sizes=[8,16],depths=[1,1],patch_size=2"
TYPES = [VIT, RESNET, CONVNEXT]


@pytest.fixture(scope="module")
def library() -> types.ModuleType:
    return pytest.importorskip("transformers", reason="needs transformers: pip install 'mithridate[transformers]'")


def tensors(module: nn.Module) -> list[Tensor]:
    return list(module.state_dict().values())


# --- timm ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def fake_timm(monkeypatch: pytest.MonkeyPatch) -> list[dict]:
    """A module in timm's place that notes how it was called."""
    calls: list[dict] = []

    def create_model(name: str, **arguments: object) -> nn.Module:
        calls.append({"name": name, **arguments})
        if arguments.get("img_size") == 7:
            raise AssertionError("7 is no multiple of the patch size")
        return nn.Sequential(nn.Flatten(), nn.LazyLinear(int(str(arguments["num_classes"]))))

    timm = types.ModuleType("timm")
    timm.__dict__.update(
        create_model=create_model, is_model=lambda name: name == "resnet10t", list_models=lambda: ["resnet10t", "x"]
    )
    monkeypatch.setitem(sys.modules, "timm", timm)
    return calls


def test_timm_is_asked_for_classes_channels_and_the_settings(fake_timm: list[dict]) -> None:
    network = build("timm:resnet10t,drop_rate=0.5,img_size=8,pretrained=true,act_layer=gelu", 5, (1, 8, 8), seed=0)
    assert network(torch.rand(2, 1, 8, 8)).shape == (2, 5)
    expected = {"drop_rate": 0.5, "img_size": 8, "pretrained": True, "act_layer": "gelu"}
    assert fake_timm == [{"name": "resnet10t", "num_classes": 5, "in_chans": 1, **expected}]
    again = build("timm:resnet10t", 5, (1, 8, 8), seed=0)
    assert torch.equal(last_linear(network).weight, last_linear(again).weight)


@pytest.mark.usefixtures("fake_timm")
@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ("timm:resnet10", "timm has no model 'resnet10': did you mean resnet10t"),
        ("timm:resnet10t,img_size=7", "timm cannot build resnet10t with .*7 is no multiple"),
        ("timm:resnet10t,img_size", "'img_size' is no setting; write timm:resnet10t,key=value"),
        ("timm:resnet10t,num_classes=3", "num_classes comes from the data"),
        ("timm:", "names no model"),
    ],
)
def test_wrong_timm_models_say_what_to_do(spec: str, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        build(spec, 5, (1, 8, 8), seed=0)


@pytest.mark.parametrize(
    ("spec", "extra"), [("timm:resnet18", "timm"), ("transformers:vit", "transformers")], ids=["timm", "transformers"]
)
def test_a_missing_library_is_an_error_with_the_line_that_installs_it(
    spec: str, extra: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, extra, None)
    with pytest.raises(MissingExtra, match=rf"model {extra}:.* needs {extra}.*pip install 'mithridate\[{extra}\]'"):
        build(spec, 5, (1, 8, 8), seed=0)


def test_a_real_timm_network() -> None:
    try:
        import timm  # noqa: F401
    except (ImportError, RuntimeError) as error:  # beside a torchvision that does not fit torch it is no ImportError
        pytest.skip(f"needs timm: pip install 'mithridate[timm]' ({error})")
    network = build("timm:resnet10t", 5, (3, 32, 32), seed=0)
    assert network(torch.rand(2, 3, 32, 32)).shape == (2, 5)
    assert timm_network("resnet10t")(5, channels=3)(torch.rand(2, 3, 32, 32)).shape == (2, 5)


# --- transformers ----------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("library")
@pytest.mark.parametrize("spec", TYPES, ids=["vit", "resnet", "convnext"])
@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 16, 16)])
def test_a_network_by_type_is_sized_to_the_images_and_follows_the_seed(spec: str, shape: tuple[int, int, int]) -> None:
    network = build(spec, 5, shape, seed=7).eval()
    images = torch.rand(2, *shape)
    assert network(images).shape == (2, 5)
    assert last_linear(network).out_features == 5
    torch.testing.assert_close(last_linear(network)(features(network, images)), network(images))
    again, other = build(spec, 5, shape, seed=7), build(spec, 5, shape, seed=8)
    assert all(torch.equal(a, b) for a, b in zip(tensors(network), tensors(again), strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(tensors(network), tensors(other), strict=True))


@pytest.mark.usefixtures("library")
def test_a_vision_transformer_has_the_parameters_that_its_settings_say() -> None:
    hidden, inner, positions = 16, 32, (8 // 4) ** 2 + 1
    embedding = hidden * 4 * 4 + hidden + hidden + positions * hidden
    layer = 4 * (hidden * hidden + hidden) + (hidden * inner + inner) + (inner * hidden + hidden) + 4 * hidden
    expected = embedding + 2 * layer + 2 * hidden + hidden * 5 + 5
    assert sum(p.numel() for p in build(VIT, 5, (1, 8, 8), seed=0).parameters()) == expected


@pytest.mark.usefixtures("library")
@pytest.mark.parametrize("spec", TYPES, ids=["vit", "resnet", "convnext"])
def test_it_can_be_differentiated_twice(spec: str) -> None:
    network = build(spec, 3, (1, 8, 8), seed=0).double().eval()
    weights = [weight for weight in network.parameters() if weight.requires_grad]
    rng = torch.Generator().manual_seed(0)
    images = torch.rand(4, 1, 8, 8, generator=rng, dtype=torch.float64).requires_grad_()
    direction = torch.randn(images.shape, generator=rng, dtype=torch.float64)

    def squared_norm(images: Tensor) -> Tensor:
        loss = functional.cross_entropy(network(images), torch.tensor([0, 1, 2, 0]))
        found = torch.autograd.grad(loss, weights, create_graph=True, allow_unused=True)
        return sum((g.square().sum() for g in found if g is not None), torch.zeros(()))

    slope = (torch.autograd.grad(squared_norm(images), images)[0] * direction).sum()
    step = 1e-4  # attention takes its softmax in float32, whatever the weights are
    measured = (squared_norm(images + step * direction) - squared_norm(images - step * direction)) / (2 * step)
    assert measured.item() == pytest.approx(slope.item(), rel=1e-3)


@pytest.mark.usefixtures("library")
def test_a_recipe_trains_it_and_the_bits_repeat() -> None:
    recipe = quick(model=VIT, learning_rate=0.01)
    assert digests(recipe, data(), seeds=(3,)) == digests(recipe, data(), seeds=(3,))


@pytest.mark.usefixtures("library")
def test_gradient_matching_takes_steps_on_a_vision_transformer() -> None:
    from mithridate.core.balls import Linf
    from mithridate.core.sources import Digits
    from mithridate.poisoning.attacks.witches_brew import WitchesBrew
    from mithridate.poisoning.threat import ThreatModel

    train, test = Digits(train=100).load()
    recipe = quick(model=VIT, learning_rate=0.01, epochs=1, transforms=())
    task = ThreatModel(budget=0.05, ball=Linf(eps=32 / 255)).draw(train, test, seed=0)
    losses = []
    for steps in (1, 8):
        poison = WitchesBrew(steps=steps, restarts=1, surrogates=1).craft(task, recipe, seed=0)
        task.check(poison)
        losses.append(poison.notes["matching_loss"])
    assert losses[1] < 0.8 * losses[0]


@pytest.fixture(scope="module")
def pretrained(library: types.ModuleType, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, nn.Module]:
    """A folder with a vision transformer for five classes, and the module that was saved."""
    folder = tmp_path_factory.mktemp("weights") / "vit"
    network = build(VIT, 5, (1, 8, 8), seed=11)
    network.model.save_pretrained(folder)  # type: ignore[union-attr, operator]
    return f"transformers:{folder}", network


def test_trained_weights_come_from_a_folder(pretrained: tuple[str, nn.Module]) -> None:
    spec, saved = pretrained
    network = build(spec, 5, (1, 8, 8), seed=0).eval()
    images = torch.rand(2, 1, 8, 8)
    torch.testing.assert_close(network(images), saved.eval()(images))


def test_a_head_for_other_classes_is_new_and_follows_the_seed(
    pretrained: tuple[str, nn.Module], capfd: pytest.CaptureFixture[str]
) -> None:
    spec, saved = pretrained
    network, again, other = (build(spec, 3, (1, 8, 8), seed) for seed in (0, 0, 1))
    for name, value in network.state_dict().items():
        if "classifier" not in name:
            assert torch.equal(value, saved.state_dict()[name])
    assert last_linear(network).out_features == 3
    assert torch.equal(last_linear(network).weight, last_linear(again).weight)
    assert not torch.equal(last_linear(network).weight, last_linear(other).weight)
    assert capfd.readouterr() == ("", "")


def test_trained_weights_that_do_not_fit_the_images_are_errors(pretrained: tuple[str, nn.Module]) -> None:
    spec, _ = pretrained
    with pytest.raises(ValueError, match="for images of 1 channels; the data have 3"):
        build(spec, 5, (3, 8, 8), seed=0)
    with pytest.raises(ValueError, match=r"16\*16.*resize the images"):
        build(spec, 5, (1, 16, 16), seed=0)
    with pytest.raises(ValueError, match=r"do not fit the model: model?.*intermediate|do not fit the model: vit"):
        build(f"{spec},intermediate_size=48", 5, (1, 8, 8), seed=0)


def test_weights_that_cannot_be_found_are_an_error(library: types.ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(name: str, **others: object) -> None:
        assert (name, others) == ("somebody/something", {"revision": "v1"})
        raise OSError("no connection")

    monkeypatch.setattr(library.AutoConfig, "from_pretrained", offline)
    with pytest.raises(ValueError, match="finds no weights at somebody/something: no connection"):
        build("transformers:somebody/something,revision=v1", 5, (1, 8, 8), seed=0)


@pytest.mark.usefixtures("library")
@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ("transformers:vitt", r"no image classifier 'vitt': did you mean vit\?"),
        ("transformers:bert", "no image classifier 'bert'.*hub id owner/name"),
        ("transformers:vit,patchsize=4", r"no setting 'patchsize': did you mean patch_size\?"),
        ("transformers:vit,hidden_size=wide", "hidden_size of transformers:vit is 'wide'; .* usual value, 768"),
        ("transformers:vit,qkv_bias=1", "qkv_bias .* is '1'; .* True"),
        ("transformers:resnet,depths=3", "depths of transformers:resnet is '3'"),
        ("transformers:vit,num_labels=3", "num_labels comes from the data"),
        ("transformers:vit,patch_size", "'patch_size' is no setting"),
        (f"{VIT},hidden_act=gleu", "transformers cannot build vit .*gleu"),
        ("transformers:vit,hidden_size=24,num_attention_heads=2,patch_size=16", "fails on images.*patch_size=2"),
    ],
)
def test_wrong_settings_say_what_is_wrong(spec: str, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        build(spec, 5, (1, 8, 8), seed=0)
