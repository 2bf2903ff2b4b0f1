"""Exported files against the model they came from, on 1,000 real test images, after a short training on real images."""

import numpy as np
import pytest
from real_images import needs_real_images
from test_export import FORMS, loaded, need

import fastcifar
from fastcifar.cli import main as cli
from fastcifar.data.dataset import take_subset
from fastcifar.inference.export import SUFFIXES, TOLERANCE

pytestmark = needs_real_images


@pytest.fixture(scope="module")
def run(real, tmp_path_factory):
    """The small network after 80 steps on 2,000 images; at chance it has 10%."""
    out = tmp_path_factory.mktemp("real run") / "r"
    result = fastcifar.train(data=take_subset(real, 2000), out=out, scale="small", device="cpu", precision="fp32",
                             epochs=2, batch_size=50, low_res_px=16, low_res_until=0.75)  # fmt: skip
    assert result.accuracy > 0.25
    return out


@pytest.mark.parametrize("form", FORMS)
def test_logits_of_1000_real_images(run, real, form, capfd):
    need(form)
    images = real.x_test[::10]
    assert images.shape == (1000, 32, 32, 3) and images.dtype == np.uint8
    assert cli.main(["export", str(run), "--format", form]) == 0
    got, expected = loaded(run / f"model{SUFFIXES[form]}")(images), fastcifar.load(run).logits(images).numpy()
    largest = np.abs(got - expected).max()
    with capfd.disabled():
        print(f"\n{form}: largest difference {largest:.1e}, largest logit {np.abs(expected).max():.1f}")
    assert got.shape == (1000, 10) and largest < TOLERANCE
    assert len(set(expected.argmax(1))) > 5 and np.array_equal(got.argmax(1), expected.argmax(1))
