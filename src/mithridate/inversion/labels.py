"""Labels of a batch from what was shared of the last layer: pure functions of the gradient of its weight and bias.

With the mean cross-entropy, predictions p, one-hot labels y and features h, the gradient is

    weight[c] = mean over the batch of (p_c - y_c) h,    bias[c] = mean of p_c - n_c / B,

where n_c of the B images have label c. A class that is in no image only adds, so whatever is negative was there.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

Recovery = Literal["idlg", "sign", "minimum-entry", "bias-corrected"]
"""How labels are recovered: see `idlg`, `by_sign`, `minimum_entry` and `bias_corrected`."""


def recover(
    method: Recovery,
    weight: Tensor,
    bias: Tensor | None,
    count: int,
    prior: Tensor | None = None,
    *,
    scaled: bool = False,
) -> Tensor:
    """Recovers the labels of a batch by one of the methods.

    Args:
        method: Which one.
        weight: [K, D] gradient of the weight of the last Linear.
        bias: [K] gradient of its bias; None if it has none.
        count: Images in the batch, B.
        prior: [K] mean prediction for images of no class; used by "bias-corrected" alone.
        scaled: Whether the gradient has an unknown factor, as after clipping; used by "bias-corrected" alone.

    Returns:
        [B] int64, sorted, on the CPU.

    Raises:
        ValueError: An unknown method, gradients of wrong shapes or with NaN, or a batch that the method is not made
            for: "idlg" and more than one image, "minimum-entry" and more images than classes, "sign" and a number of
            negative classes other than the number of images.

    >>> recover("sign", torch.zeros(4, 2), torch.tensor([0.3, -0.4, 0.3, -0.2]), 2).tolist()
    [1, 3]
    """
    methods: dict[str, Callable[[], Tensor]] = {
        "idlg": lambda: idlg(weight, bias),
        "sign": lambda: by_sign(weight, bias),
        "minimum-entry": lambda: minimum_entry(weight, count),
        "bias-corrected": lambda: bias_corrected(weight, bias, count, prior, scaled=scaled),
    }
    if method not in methods:
        raise ValueError(f"unknown way to recover labels {method!r}; known: {', '.join(methods)}")
    _check_count(count)
    if method == "idlg" and count != 1:
        raise ValueError(f"idlg finds the label of one image, but the batch has {count}; use bias-corrected")
    labels = methods[method]()
    if len(labels) != count:
        raise ValueError(
            f"sign finds {len(labels)} labels ({labels.tolist()}) for {count} images: it sees each class once, and may "
            "miss one; use bias-corrected, which also counts"
        )
    return labels


def idlg(weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Finds the label of a single image, exactly.

    Rows of the gradient are (p_c - y_c) h: that of the true class alone points against the features. The gradient of
    the bias shows it by its sign. Without a bias, rows are compared with the longest of them: the true one is alone on
    its side, whatever the signs of the features. Only where this cannot tell, with two classes or where rounding
    left no more than two rows, features are taken as non-negative (they come out of a ReLU or a sigmoid), and the row
    with the lowest sum is taken.

    Reference: Zhao, Mopuri, Bilen. "iDLG: Improved Deep Leakage from Gradients". 2020. arXiv 2001.02610.
    Deviation: their rule, a row whose inner products with all others are not positive, loses its sign where those
    products underflow; the comparison here has no small products.

    Args:
        weight: [K, D] gradient of the weight of the last Linear for one image.
        bias: [K] gradient of its bias.

    Returns:
        [1] int64 on the CPU.

    Raises:
        ValueError: Wrong shapes, NaN, or a gradient that is zero or has no negative side.

    >>> feature, apart = torch.tensor([1.0, -2.0]), torch.tensor([0.3, -0.9, 0.6])
    >>> idlg(apart[:, None] * feature).tolist()
    [1]
    """
    weight, bias = _checked(weight, bias)
    signal = weight.sum(1) if bias is None else bias
    if bias is None and weight.shape[0] > 2:
        along = weight @ weight[weight.norm(dim=1).argmax()]
        sides = torch.stack([along.clamp_max(0), -along.clamp_min(0)])
        lowest = sides.min(dim=1)
        company = lowest.values - sides.sum(1)  # what others have on each side
        if (company[0] - company[1]).abs() > 1e-4 * along.abs().max():
            return lowest.indices[company.argmin()][None]
    if not bool(signal.min() < 0):
        raise ValueError(
            "the gradient of the last layer has no negative class: it is not that of a cross-entropy, or the model is "
            "so certain of the image that nothing is left of it"
        )
    return signal.argmin()[None]


def by_sign(weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Finds the classes whose gradient is negative. They are surely in the batch; others may be.

    Each is listed once, so the result can be shorter than the batch. Without a bias, the sums of rows are used, which
    is right for features that are not negative.

    Reference: Zhao, Mopuri, Bilen (see `idlg`), whose rule for one image holds for each class of a batch.

    Args:
        weight: [K, D] gradient of the weight of the last Linear.
        bias: [K] gradient of its bias.

    Returns:
        Classes [at most B] int64, sorted, on the CPU.

    Raises:
        ValueError: Wrong shapes or NaN.

    >>> by_sign(torch.tensor([[0.1, 0.2], [-0.3, 0.1], [0.0, 0.0]])).tolist()
    [1]
    """
    weight, bias = _checked(weight, bias)
    return _negative(weight.sum(1) if bias is None else bias).sort().values


def minimum_entry(weight: Tensor, count: int) -> Tensor:
    """Finds distinct labels: the classes whose rows have the smallest minimum.

    For features that are not negative: a class that is not there has no negative entry at all, while for one that is
    there one feature that its image has more than the others suffices. Repeated labels are found once, and the rest of
    the answer is then guessed.

    Reference: Yin et al. "See through Gradients: Image Batch Recovery via GradInversion". CVPR 2021. arXiv 2104.07586.

    Args:
        weight: [K, D] gradient of the weight of the last Linear.
        count: Images in the batch, B, at most K.

    Returns:
        [B] int64, sorted, on the CPU.

    Raises:
        ValueError: Wrong shapes, NaN, or more images than classes.

    >>> minimum_entry(torch.tensor([[0.1, 0.2], [0.3, -0.1], [0.0, 0.1], [-0.2, 0.9]]), 2).tolist()
    [1, 3]
    """
    weight, _ = _checked(weight, None)
    _check_count(count)
    if count > len(weight):
        raise ValueError(
            f"{count} images and {len(weight)} classes: minimum-entry finds distinct labels; use bias-corrected, which "
            "finds repeated ones"
        )
    return weight.amin(1).topk(count, largest=False).indices.sort().values


def bias_corrected(
    weight: Tensor, bias: Tensor | None, count: int, prior: Tensor | None = None, *, scaled: bool = False
) -> Tensor:
    """Finds how often each label is in the batch: an estimate, near exact for an untrained model.

    The gradient is read as s (prior_c - n_c / B). The part of the prior, what a class gets whatever the images are, is
    taken off. Every class with a negative gradient is there once; then, again and again, the class that is most
    negative is, and each label that is found takes its impact -s / B off the gradient.

    The scale s is 1 for the gradient of a bias: each image moves it by 1/B. For sums of rows, and for a gradient with
    an unknown factor, s is the larger of two values, each of which it cannot be below: the negative sum over the
    share of the prior outside the negative classes (exact if those are the classes with more images than the
    prior expects), and the highest ratio of gradient and prior (exact if the class it belongs to is not there).

    A trained model predicts the images themselves and not the prior, and little is left of the gradient: then it
    tells which images are hard rather than how many there are.

    Reference: Wainakh et al. "User-Level Label Leakage from Gradients in Federated Learning". PoPETs 2022.
    arXiv 2105.09369. Deviations: they take the impact from the negative sum alone, times 1 + 1/K, which is
    too small where many classes are in the batch (0.71 instead of 1.00 of the labels of 16 digits with an untrained
    `convnet`); and their offset is measured in units of the gradient, the prior here is a prediction.

    Args:
        weight: [K, D] gradient of the weight of the last Linear.
        bias: [K] gradient of its bias. Without one, sums of rows are used, and features must not be negative.
        count: Images in the batch, B.
        prior: [K] mean prediction of the model for images of no class, such as noise; uniform unless given.
        scaled: Whether the gradient has an unknown factor, as after clipping.

    Returns:
        [B] int64, sorted, on the CPU.

    Raises:
        ValueError: Wrong shapes, NaN, a prior that holds no shares, or no class with a negative gradient.

    >>> bias_corrected(torch.zeros(4, 2), torch.tensor([0.25, -0.5, 0.25, 0.0]), 4).tolist()
    [1, 1, 1, 3]
    """
    weight, bias = _checked(weight, bias)
    _check_count(count)
    signal = weight.sum(1) if bias is None else bias
    shares = _checked_prior(prior, len(weight))
    present = _negative(signal)
    if not len(present):
        raise ValueError("no class has a negative gradient: this is not the gradient of a mean cross-entropy")
    scale = _scale(signal, shares) if scaled or bias is None else torch.ones_like(signal[0])
    found = present[:count].tolist()
    left = (signal - scale * shares).index_add(0, present[:count], (scale / count).expand(len(found)))
    while len(found) < count:
        label = int(left.argmin())
        left[label] += scale / count
        found.append(label)
    return torch.tensor(sorted(found))


def label_accuracy(found: Tensor, truth: Tensor) -> float:
    """Returns the share of a batch's labels that were found, each as often as it is there; order plays no part.

    Raises:
        ValueError: Numbers of labels that differ.

    >>> label_accuracy(torch.tensor([0, 1, 1, 1]), torch.tensor([1, 0, 0, 1]))
    0.75
    """
    if found.ndim != 1 or found.shape != truth.shape or not len(truth):
        raise ValueError(
            f"labels found have shape {list(found.shape)} and true ones {list(truth.shape)}; both must be the same [B]"
        )
    found, truth = found.cpu(), truth.cpu()
    classes = int(torch.stack([found, truth]).max()) + 1
    both = torch.minimum(found.bincount(minlength=classes), truth.bincount(minlength=classes))
    return int(both.sum()) / len(truth)


def _checked(weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """Both in float64 on the CPU, after a look at their shapes and values."""
    if weight.ndim != 2 or len(weight) < 2:
        raise ValueError(
            f"the gradient of the last Linear's weight has shape {list(weight.shape)}; expected [classes, features]"
        )
    if bias is not None and bias.shape != weight.shape[:1]:
        raise ValueError(
            f"the gradient of the last Linear's bias has shape {list(bias.shape)}, but its weight has {len(weight)} "
            f"rows; expected [{len(weight)}], or None for a layer without bias"
        )
    for name, values in (("weight", weight), ("bias", bias)):
        if values is not None and not bool(values.isfinite().all()):
            raise ValueError(
                f"the gradient of the last Linear's {name} holds NaN or infinity; no label can be read from it"
            )
    return weight.detach().double().cpu(), None if bias is None else bias.detach().double().cpu()


def _checked_prior(prior: Tensor | None, classes: int) -> Tensor:
    if prior is None:
        return torch.full((classes,), 1 / classes, dtype=torch.float64)
    if prior.shape != (classes,):
        raise ValueError(f"prior has shape {list(prior.shape)}; expected [{classes}], one share per class")
    prior = prior.detach().double().cpu()
    if not bool((prior >= 0).all()) or not 0.99 <= float(prior.sum()) <= 1.01:
        raise ValueError(
            f"prior is {[round(share, 3) for share in prior.tolist()]}; give the mean of softmax predictions, shares "
            "that sum to 1"
        )
    return prior


def _check_count(count: int) -> None:
    if count < 1:
        raise ValueError(f"count is {count}; a batch has at least one image")


def _negative(signal: Tensor) -> Tensor:
    """Classes with a negative signal, the most negative first."""
    order = signal.argsort(stable=True)
    return order[: int((signal < 0).sum())]


def _scale(signal: Tensor, prior: Tensor) -> Tensor:
    """The larger of two lower bounds of the scale, as `bias_corrected` explains."""
    negative = signal < 0
    by_sum = -signal[negative].sum() / (1 - prior[negative].sum()).clamp_min(1e-3)
    return torch.maximum(by_sum, (signal / prior.clamp_min(1e-3)).max())
