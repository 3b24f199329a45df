"""Images as data URIs keep their pixels; plots are safe and named."""

from __future__ import annotations

import base64
import io

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from mithridate.experiments import pictures
from mithridate.experiments.table import table
from tests.experiments import synthetic as made


def test_difference_is_amplified_around_grey_and_clipped():
    base, image = np.full((1, 1, 4), 100, np.uint8), np.array([[[100, 102, 99, 200]]], np.uint8)
    assert pictures.amplified(base, image).tolist() == [[[128, 168, 108, 255]]]


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_png_keeps_pixels(channels):
    image = np.random.default_rng(0).integers(0, 256, (channels, 5, 7)).astype(np.uint8)
    back = np.array(Image.open(io.BytesIO(base64.b64decode(pictures.png(image).partition(",")[2]))))
    expected = image.transpose(1, 2, 0) if channels == 3 else image[0]
    assert (back == expected).all()


def test_reduced_averages_blocks_and_leaves_small_images_alone():
    image = np.random.default_rng(1).integers(0, 256, (3, 8, 4)).astype(np.uint8)
    assert pictures.reduced(image, 8) is image
    blocks = image.reshape(3, 4, 2, 2, 2).mean((2, 4))
    assert np.abs(pictures.reduced(image, 4).astype(float) - blocks).max() <= 1  # rounded once per direction


def test_the_target_is_read_without_the_rest_and_damage_is_nothing(tmp_path):
    target = torch.randint(0, 256, (2, 3, 4, 4), dtype=torch.uint8)
    save_file({"target": target}, tmp_path / "poison.safetensors")
    found = pictures.target(tmp_path)
    assert found is not None
    assert (found == target[0].numpy()).all()
    save_file({"rows": torch.arange(3)}, tmp_path / "poison.safetensors")
    assert pictures.target(tmp_path) is None
    (tmp_path / "poison.safetensors").write_bytes(b"broken")
    assert pictures.target(tmp_path) is None
    assert pictures.target(tmp_path / "nothing") is None
    assert pictures.tensors(tmp_path / "nothing") == {}


def test_plots_say_their_numbers_and_follow_the_page_colours():
    rows = table(made.pairs(targets=6, cases=6)).rows
    for plot in (*pictures.forest(rows, "forest"), *pictures.costs(rows, "costs")):
        assert plot.startswith("<svg")
        assert 'role="img" aria-label="' in plot
        assert "var(--" in plot
        assert not any(color in plot for color in ("#010101", "#020202", "#030303", "#040404", "#050505"))


def test_nothing_to_plot_is_no_plot():
    assert pictures.forest([], "forest") == []
    assert pictures.costs([], "costs") == []
