"""evaluation/metrics/fidelity.py: hand-made images whose measures are known."""

import colorsys

import numpy as np
import pytest

from evaluation.metrics import bone_holes, color_kept, contrast_kept, fidelity_metrics, tracer_order

SIDE = 96


def skull() -> np.ndarray:
    """A CT with soft tissue of 60 and a square of bone, 20 x 20 px."""
    image = np.full((SIDE, SIDE), 60.0)
    image[10:30, 10:30] = 255
    return image


def test_bone_holes_count_dark_pixels_of_eroded_bone():
    ct, fused = skull(), skull()
    assert bone_holes(ct, fused) == 0
    fused[10:30, 10] = 0  # the border is eroded away
    assert bone_holes(ct, fused) == 0
    fused[15, 11:29] = 159  # one row of the 18 that are left, where none counts above 160
    assert bone_holes(ct, fused) == pytest.approx(1 / 18)
    fused[15, 11:29] = 160
    assert bone_holes(ct, fused) == 0


def test_bone_holes_without_bone_is_no_number():
    assert np.isnan(bone_holes(np.full((SIDE, SIDE), 200.0), skull()))


def textures(count: int) -> list[np.ndarray]:
    """Independent textures of a lesion's size around 100."""
    from scipy.ndimage import gaussian_filter

    noise = np.random.default_rng(3).normal(size=(count, 256, 256))
    fields = [gaussian_filter(x, 5) for x in noise]
    return [100 + 15 * field / field.std() for field in fields]


def test_contrast_kept_is_the_mixture_of_the_sources():
    fixed, aligned = textures(2)
    assert contrast_kept(fixed, aligned, 0.7 * fixed + 0.3 * aligned) == pytest.approx((0.7, 0.3), abs=1e-6)
    assert contrast_kept(fixed, aligned, np.full_like(fixed, 80)) == pytest.approx((0, 0), abs=1e-6)
    # Another mean, or a shading far wider than a lesion, is no loss of contrast.
    assert contrast_kept(fixed, aligned, 40 + fixed) == pytest.approx((1, 0), abs=1e-6)


def test_contrast_kept_leaves_bone_and_its_surroundings_out():
    fixed, aligned = textures(2)
    fused = 0.5 * fixed + 0.5 * aligned
    bone = aligned.copy()
    bone[100:110, 100:110] = 255
    other = fused.copy()
    other[100:110, 100:110] = 255
    # What the bone's blur leaves beyond 6 px is little.
    assert contrast_kept(fixed, bone, other) == pytest.approx((0.5, 0.5), abs=0.15)


def test_contrast_kept_is_no_number_without_tissue_or_contrast():
    flat, (fixed,) = np.zeros((SIDE, SIDE)), textures(1)
    assert np.isnan(contrast_kept(flat, flat, flat)).all()
    assert np.isnan(contrast_kept(fixed, np.full_like(fixed, 90), fixed)).all()


def rainbow(saturation: float = 1.0, value: float = 1.0, turn: float = 0.0) -> np.ndarray:
    """Columns from blue over green and yellow to red, as a scale of hues has them, in a black frame."""
    image = np.zeros((SIDE, SIDE, 3))
    for column in range(8, SIDE - 8):
        hue = (1 - (column - 8) / (SIDE - 17)) * 0.66 + turn
        image[8:-8, column] = 255 * np.array(colorsys.hsv_to_rgb(hue, saturation, value))
    return image


def test_color_kept_by_hand():
    same = color_kept(rainbow(), rainbow())
    assert same == pytest.approx({"saturation_kept": 1, "near_white": 0, "hue_error": 0, "tracer_order": 1})
    assert color_kept(rainbow(), rainbow(saturation=0.8))["saturation_kept"] == pytest.approx(0.8, abs=1e-6)
    turned = color_kept(rainbow(), rainbow(turn=10 / 360))
    assert turned["hue_error"] == pytest.approx(10, abs=0.1) and turned["saturation_kept"] == pytest.approx(1)
    half = rainbow()
    half[:, : SIDE // 2] = 255  # the colder half is white
    assert color_kept(rainbow(), half)["near_white"] == pytest.approx(0.5, abs=0.01)
    # Grey has no hue that could be wrong.
    assert color_kept(rainbow(), half)["hue_error"] == pytest.approx(0, abs=1e-6)


def test_darker_colours_keep_their_meaning():
    kept = color_kept(rainbow(), rainbow(value=0.4))
    assert kept["saturation_kept"] == pytest.approx(1) and kept["tracer_order"] > 0.99


def test_tracer_order_follows_the_scale_not_the_brightness():
    scale = rainbow() / 255
    scale[8:-8, :8] = np.linspace(0, 1, 8)[:, None] * scale[8, 8]  # the scale begins in black
    assert tracer_order(scale, scale) == pytest.approx(1)
    turned = scale.copy()
    turned[:, 8:-8] = scale[:, 8:-8][:, ::-1]
    assert tracer_order(scale, turned) < -0.7
    # Yellow is brighter than red, which lies behind it: by brightness the order would not be kept.
    grey = np.repeat(scale.mean(axis=2, keepdims=True), 3, axis=2)
    order = tracer_order(scale, grey)
    assert np.isnan(order) or abs(order) < 0.5


def test_color_kept_is_no_number_where_nothing_is_coloured():
    assert all(np.isnan(value) for value in color_kept(rainbow(saturation=0.1), rainbow()).values())


def test_fidelity_metrics_leaves_out_what_cannot_be_told():
    fixed, aligned = textures(2)
    assert set(fidelity_metrics(fixed, aligned, fixed)) == {"contrast_fixed", "contrast_moving"}
    assert "bone_holes" in fidelity_metrics(skull(), skull(), skull())
    luma = rainbow().mean(axis=2)
    actual = fidelity_metrics(luma, luma, luma, (rainbow(), rainbow()))
    assert actual["saturation_kept"] == pytest.approx(1) and "bone_holes" not in actual


@pytest.mark.parametrize("shape", [(SIDE, SIDE), (SIDE, SIDE, 4), (SIDE, SIDE - 1, 3)])
def test_shapes_that_do_not_fit_are_named(shape):
    with pytest.raises(ValueError, match=r"fused: expected .* found"):
        color_kept(rainbow(), np.zeros(shape))
