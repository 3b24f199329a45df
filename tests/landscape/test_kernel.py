"""The tangent kernel against a double loop over images and logits."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import mithridate as mi
from mithridate.landscape.kernel import drift, tangent_kernel


def slow(model: nn.Module, images: Tensor) -> Tensor:
    """One backward pass for every logit of every image, and every product."""
    rows = []
    for image in images:
        logits = model(image[None])[0]
        parameters = [one for one in model.parameters() if one.requires_grad]
        for number in range(len(logits)):
            slopes = torch.autograd.grad(logits[number], parameters, retain_graph=True)
            rows.append(torch.cat([slope.reshape(-1) for slope in slopes]))
    count = len(rows) // len(images)
    kernel = torch.tensor([[float(one @ other) for other in rows] for one in rows], dtype=torch.float64)
    return kernel.view(len(images), count, len(images), count)


@pytest.mark.parametrize("name", ["mlp", "convnet:width=4", "resnet18:width=4"])
def test_the_kernel_is_that_of_a_double_loop(name: str) -> None:
    from mithridate.core.models import build

    model = build(name, 3, (1, 8, 8), 0).double().eval()
    images = torch.rand(4, 1, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    expected = slow(model, images)
    assert torch.allclose(tangent_kernel(model, images), expected, rtol=1e-9, atol=1e-9)
    assert torch.allclose(tangent_kernel(model, images, room=1), expected, rtol=1e-9, atol=1e-9)


def test_a_model_of_a_recipe_is_followed_and_left_as_it_was() -> None:
    train, test = mi.Digits(train=100).load()
    model = mi.Recipe(model="convnet:width=4", epochs=1).fit([train], [0]).models[0].train()
    images = test.floats(test.ids[:5])
    before = {name: one.clone() for name, one in model.state_dict().items()}
    kernel = tangent_kernel(model, images)
    assert kernel.shape == (5, 10, 5, 10)
    flat = kernel.view(50, 50)
    assert torch.allclose(flat, flat.T, rtol=1e-4)
    assert float(torch.linalg.eigvalsh(flat.double()).min()) > -1e-3 * float(flat.diagonal().max())
    assert model.training
    assert all(torch.equal(before[name], one) for name, one in model.state_dict().items())


def test_drift_of_the_same_scaled_and_unrelated_kernels() -> None:
    rng = torch.Generator().manual_seed(0)
    kernel, other = (torch.randn(4, 3, 4, 3, generator=rng) for _ in range(2))
    assert drift(kernel, kernel) == pytest.approx((0, 0, 1, 1), abs=1e-6)
    scaled = drift(kernel, 3 * kernel)
    assert scaled.norm == pytest.approx(2, abs=1e-5)
    assert scaled.relative == pytest.approx(2, rel=0.01)
    assert scaled.cosine == pytest.approx(1, abs=1e-6)
    assert abs(drift(kernel, other).cosine) < 0.3
    with pytest.raises(ValueError, match="are not of the same images"):
        drift(kernel, kernel[:3])


def test_what_has_no_images_or_no_parameters_is_refused() -> None:
    with pytest.raises(ValueError, match="0 images"):
        tangent_kernel(nn.Linear(2, 2), torch.zeros(0, 2))
    with pytest.raises(ValueError, match="0 trainable parameters"):
        tangent_kernel(nn.Linear(2, 2).requires_grad_(False), torch.zeros(1, 2))
