"""Pictures of poisons: the pixels of the poison, measured on them."""

from __future__ import annotations

import base64
import io

import numpy as np
import torch
from PIL import Image
from safetensors.torch import save_file

from mithridate.experiments import exhibits
from mithridate.experiments.table import table
from tests.experiments import synthetic as made


def test_norms_of_a_poison_are_measured_on_its_pixels():
    base = np.zeros((3, 2, 2), np.uint8)
    image = base.copy()
    image[0, 0, 0], image[2, 1, 1] = 30, 40
    assert exhibits.shown(7, image, base).moved == "Linf 40/255, L2 0.20"  # 50 / 255
    assert exhibits.shown(7, image, None).difference is None


def _rows_with_poison(folder, side=8, count=12):
    settings = made.trial("witches-brew", made.TARGETED)
    done = made.result(settings, [[1]], [[1.0]], [0.6])
    images = torch.randint(0, 256, (count + 1, 3, side, side), dtype=torch.uint8)
    made.write_poison(folder / "poisons" / done["poison"]["id"], settings, images, count)
    return table([(settings, done)]).rows


def test_eight_poisons_spread_over_all_and_the_target(tmp_path):
    (found,) = exhibits.exhibits(_rows_with_poison(tmp_path, count=20), tmp_path)
    assert [item.row for item in found.items] == [0, 3, 5, 8, 11, 14, 16, 19]
    assert len(found.targets) == 1
    assert found.note.startswith("8 of 20 poisons of case 0.")


def test_large_images_are_reduced_and_said_so_but_measured_in_full(tmp_path):
    (found,) = exhibits.exhibits(_rows_with_poison(tmp_path, side=300, count=2), tmp_path)
    uri = found.items[0].poison
    assert Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2]))).size == (144, 144)
    assert "Reduced to fit the page." in found.note
    assert found.items[0].moved.startswith("Linf 16/255, L2 ")


def test_a_poison_of_no_images_or_odd_tensors_is_left_out(tmp_path):
    rows = _rows_with_poison(tmp_path)
    path = next(tmp_path.glob("poisons/*/poison.safetensors"))
    save_file({"rows": torch.arange(3), "images": torch.zeros(2, 3, 4, 4)}, path)
    assert exhibits.exhibits(rows, tmp_path) == []
    path.write_bytes(b"broken")
    assert exhibits.exhibits(rows, tmp_path) == []
