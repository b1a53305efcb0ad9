"""Figures: hand-computed overlays, colours, grids, and pictures that carry the right values."""

import warnings

import matplotlib
import numpy as np
import pandas as pd
import pytest
import torch
from matplotlib import colormaps, pyplot
from PIL import Image

from evaluation import figures, pictures
from evaluation.map_styles import MAPS, map_picture
from models.encoder import EntropyAtQuarter
from training.learning_curve import learning_curve_figure

HEIGHT, WIDTH = 64, 96


@pytest.fixture
def pair():
    rng = np.random.default_rng(0)
    images = {
        name: rng.random((HEIGHT, WIDTH), np.float32) for name in ("fixed", "moving", "aligned", "fused")
    }
    images["fused"] = rng.random((HEIGHT, WIDTH, 3), np.float32)
    return images


def titles(figure):
    return {axes.get_title(loc="left") for axes in figure.axes} - {""}


def test_checkerboard_alternates_squares_starting_with_the_first_image():
    zeros, ones = np.zeros((4, 6)), np.ones((4, 6))
    expected = [[0, 0, 1, 1, 0, 0], [0, 0, 1, 1, 0, 0], [1, 1, 0, 0, 1, 1], [1, 1, 0, 0, 1, 1]]
    np.testing.assert_array_equal(pictures.checkerboard(zeros, ones, tiles=2), expected)


def test_checkerboard_keeps_the_colour_of_one_image():
    grey, red = np.full((4, 4), 0.5), np.zeros((4, 4, 3)) + [1, 0, 0]
    board = pictures.checkerboard(grey, red, tiles=2)
    np.testing.assert_array_equal(board[0, 0], [0.5, 0.5, 0.5])
    np.testing.assert_array_equal(board[0, 2], [1, 0, 0])


def test_checkerboard_of_more_tiles_than_pixels_changes_at_each_pixel():
    board = pictures.checkerboard(np.zeros((3, 3)), np.ones((3, 3)), tiles=50)
    np.testing.assert_array_equal(board, [[0, 1, 0], [1, 0, 1], [0, 1, 0]])


def test_red_green_overlay_puts_fixed_in_red_and_moving_luma_in_green():
    fixed = np.array([[0.25, 1.0]])
    moving = np.array([[[1.0, 0.0, 0.0], [1.0, 1.0, 1.0]]])
    np.testing.assert_allclose(
        pictures.red_green_overlay(fixed, moving), [[[0.25, 0.299, 0], [1, 1, 0]]], atol=1e-6
    )


@pytest.mark.parametrize("draw", [pictures.checkerboard, pictures.red_green_overlay])
def test_overlays_refuse_images_of_different_size(draw):
    with pytest.raises(ValueError, match=r"one height and width, found .* 4 x 6, .* 6 x 4"):
        draw(np.zeros((4, 6)), np.zeros((6, 4)))


def test_overlays_refuse_a_channel_in_front():
    with pytest.raises(ValueError, match=r"fixed: expected .* \(H, W\) or \(H, W, 3\), found \(1, 4, 4\)"):
        pictures.red_green_overlay(np.zeros((1, 4, 4)), np.zeros((4, 4)))


@pytest.mark.parametrize(
    ("vector", "expected"),
    [
        ((2, 0), (1, 0, 0)),  # right: the first hue of the wheel
        ((1, 0), (1, 0.5, 0.5)),  # half the magnitude: half the saturation
        ((-2, 0), (0, 9 / 11, 1)),  # left: hue 27, two of eleven steps from cyan to blue
        ((0, 2), (1, 0.9, 0)),  # down: hue 13.5, nine tenths of the way from red to yellow
        ((4, 0), (0.75, 0, 0)),  # beyond the range: darker
        ((0, 0), (1, 1, 1)),
        ((np.nan, 0), (0, 0, 0)),
    ],
)
def test_flow_to_color_follows_the_middlebury_wheel(vector, expected):
    flow = np.array(vector, np.float64).reshape(2, 1, 1)
    np.testing.assert_allclose(pictures.flow_to_color(flow, max_magnitude=2.0)[0, 0], expected, atol=1e-6)


def test_flow_to_color_scales_by_the_largest_vector_by_default():
    flow = np.random.default_rng(1).normal(size=(2, 5, 7))
    np.testing.assert_allclose(pictures.flow_to_color(flow), pictures.flow_to_color(3 * flow), atol=1e-6)
    assert pictures.flow_to_color(flow).shape == (5, 7, 3)


def test_flow_to_color_of_no_motion_is_white():
    np.testing.assert_array_equal(pictures.flow_to_color(np.zeros((2, 3, 4))), np.ones((3, 4, 3)))


def test_flow_to_color_refuses_other_layouts_and_ranges():
    with pytest.raises(ValueError, match=r"expected shape \(2, H, W\), found \(4, 4, 2\)"):
        pictures.flow_to_color(np.zeros((4, 4, 2)))
    with pytest.raises(ValueError, match="max_magnitude"):
        pictures.flow_to_color(np.zeros((2, 4, 4)), max_magnitude=0)


def test_deformation_grid_moves_regular_lines_by_the_flow():
    flow = np.zeros((2, 5, 8))
    flow[0], flow[1] = 2.0, -3.0
    lines = pictures.deformation_grid(flow, spacing=3)
    rows, columns = lines[:3], lines[3:]
    assert [line[0].tolist() for line in rows] == [[2, -3], [2, 0], [2, 1]]  # y = 0, 3 and the last, 4
    assert [line[0].tolist() for line in columns] == [[2, -3], [5, -3], [8, -3], [9, -3]]  # x = 0, 3, 6 and 7
    assert [len(line) for line in lines] == [8] * 3 + [5] * 4


def size_of(path):
    with Image.open(path) as picture:
        return picture.size


def colour_at_centre(path):
    """The picture of a 64 x 64 map is 320 px wide and begins at (40, 50)."""
    with Image.open(path) as picture:
        return np.asarray(picture.convert("RGB"))[50 + 160, 40 + 160] / 255


@pytest.mark.parametrize("name", MAPS)
def test_save_map_draws_values_on_the_fixed_range_of_the_map(tmp_path, name):
    style = MAPS[name]
    path = tmp_path / "maps" / name / "case 1.png"
    figures.save_map(path, np.full((64, 64), style.vmin + 0.25 * (style.vmax - style.vmin)), name)
    np.testing.assert_allclose(colour_at_centre(path), colormaps[style.colormap](0.25)[:3], atol=0.02)
    assert [file.name for file in path.parent.iterdir()] == ["case 1.png"]


def test_ranges_of_the_maps():
    ranges = {name: (style.vmin, style.vmax) for name, style in MAPS.items()}
    assert ranges["entropy_fixed"] == ranges["entropy_moving"] == ranges["entropy_difference"] == (0, 2)
    # What the network computes of blocks of random grey values fills it.
    blocks = torch.rand(1, 2, 32, 32, generator=torch.Generator().manual_seed(0)).repeat_interleave(2, 3)
    assert 1.7 < EntropyAtQuarter()(blocks.repeat_interleave(2, 2)).max() < 2
    assert ranges["gate"] == ranges["reliability"] == ranges["consistency"] == (0, 1)
    assert sum(ranges["jacobian"]) / 2 == 1


def test_folding_and_missing_values_have_colours_of_their_own(tmp_path):
    figures.save_map(tmp_path / "folded.png", np.full((64, 64), -0.1), "jacobian")
    np.testing.assert_allclose(colour_at_centre(tmp_path / "folded.png"), [1, 0xE8 / 255, 0], atol=0.01)
    figures.save_map(tmp_path / "missing.png", np.full((64, 64), np.nan), "gate")
    np.testing.assert_allclose(colour_at_centre(tmp_path / "missing.png"), [0x8C / 255] * 3, atol=0.01)


@pytest.mark.parametrize("shape", [(64, 256), (256, 64), (1, 300), (40, 40)])
def test_save_map_keeps_the_aspect_of_the_map(tmp_path, shape):
    figures.save_map(tmp_path / "map.png", np.ones(shape), "gate")
    width, height = size_of(tmp_path / "map.png")
    assert (height > width) == (shape[0] > shape[1])


def test_save_map_names_the_file_and_what_is_wrong(tmp_path):
    with pytest.raises(
        ValueError, match=r"map\.png: expected a gate map of shape \(H, W\), found \(1, 8, 8\)"
    ):
        figures.save_map(tmp_path / "map.png", np.zeros((1, 8, 8)), "gate")
    with pytest.raises(ValueError, match=r"map\.png: expected a map named one of entropy_fixed, .*'gates'"):
        figures.save_map(tmp_path / "map.png", np.zeros((8, 8)), "gates")
    assert not list(tmp_path.iterdir())


def test_figure_pair_shows_everything_that_is_given(pair, tmp_path):
    maps = {name: np.full((16, 24), 0.5) for name in MAPS}
    figure = figures.figure_pair(
        **pair, label=pair["aligned"], flow=np.ones((2, HEIGHT, WIDTH)), maps=maps, title="case 7"
    )
    images = {"Fixed", "Moving", "Aligned", "Label (true alignment)", "Fused", "Deformation grid", "Flow"}
    overlays = {f"{kind}, {when}" for kind in ("Checkerboard", "Overlay") for when in ("before", "after")}
    assert titles(figure) == images | overlays | {style.title for style in MAPS.values()}
    assert [text.get_text() for text in figure.texts] == ["case 7"]
    figures.save_figure(tmp_path / "pair.png", figure)
    width, height = size_of(tmp_path / "pair.png")
    assert width > 1500 and height > 500


def test_figure_pair_leaves_out_what_is_not_known(pair):
    figure = figures.figure_pair(**pair)
    assert {"Label (true alignment)", "Flow", "Deformation grid", "Gate W"}.isdisjoint(titles(figure))
    full = figures.figure_pair(**pair, maps={"gate": np.ones((HEIGHT, WIDTH))})
    assert figure.get_figheight() < full.get_figheight()


def test_the_bar_of_a_coloured_tracer_names_its_scale(pair):
    assert [axes.get_ylabel() for axes in figures.figure_pair(**pair, colormap="hot").axes].count("tracer, hot") == 1
    grey = pair | {"fused": pair["fused"].mean(axis=2)}
    assert not any(axes.get_ylabel() for axes in figures.figure_pair(**grey, colormap="hot").axes)


def test_figure_strip_shows_both_overlays_and_fits_the_paper(pair):
    images = {name: pair[name] for name in ("fixed", "moving", "aligned", "fused")}
    figure = figures.figure_strip(**images)
    assert [axes.get_title() for axes in figure.axes] == [
        "Fixed", "Moving", "Overlay before", "Overlay after", "Fused",
    ]  # fmt: skip
    before, after = (figure.axes[n].images[0].get_array() for n in (2, 3))
    np.testing.assert_allclose(before, pictures.red_green_overlay(pair["fixed"], pair["moving"]))
    np.testing.assert_allclose(after, pictures.red_green_overlay(pair["fixed"], pair["aligned"]))
    box = figure.axes[0].get_window_extent()
    assert box.width / box.height == pytest.approx(WIDTH / HEIGHT, rel=0.02)
    with pytest.raises(ValueError, match="fused 8 x 8"):
        figures.figure_strip(**images | {"fused": np.zeros((8, 8))})


def test_figure_pair_names_the_input_that_does_not_fit(pair):
    with pytest.raises(ValueError, match=f"flow 32 x {WIDTH}"):
        figures.figure_pair(**pair, flow=np.zeros((2, 32, WIDTH)))
    with pytest.raises(ValueError, match="named one of .*'entropy'"):
        figures.figure_pair(**pair, maps={"entropy": np.zeros((8, 8))})


def test_drawing_leaves_no_trace_in_pyplot(pair, tmp_path):
    before = dict(matplotlib.rcParams), pyplot.get_fignums()
    figures.save_figure(tmp_path / "pair.png", figures.figure_pair(**pair))
    figures.save_map(tmp_path / "map.png", np.ones((8, 8)), "gate")
    assert (dict(matplotlib.rcParams), pyplot.get_fignums()) == before


@pytest.fixture
def history():
    return pd.DataFrame(
        {
            "epoch": [1, 2, 3, 4],
            "minutes": [2.0, 4.0, 6.0, 8.0],
            "epe_CT": [3.9, np.nan, 3.0, 3.2],
            "epe_PET": [4.1, np.nan, 3.5, 3.4],
            "zero_CT": [3.92] * 4,
        }
    )


def test_learning_curve_draws_each_modality_its_best_epoch_and_zero_flow(history):
    axes = learning_curve_figure(history).axes[0]
    lines = {line.get_label(): line.get_xydata().tolist() for line in axes.lines}
    assert lines["CT"] == [[1, 3.9], [3, 3.0], [4, 3.2]]
    assert lines["PET"] == [[1, 4.1], [3, 3.5], [4, 3.4]]
    assert [y for _, y in lines["_zero"]] == [3.92, 3.92]
    assert [[3, 3.0]] in [line.get_xydata().tolist() for line in axes.lines]


def test_learning_curve_shows_minutes_above(history):
    axes = learning_curve_figure(history).axes[0]
    (above,) = axes.child_axes
    above.figure.draw_without_rendering()
    np.testing.assert_allclose(above.get_xlim(), 2 * np.asarray(axes.get_xlim()), atol=1e-9)


def test_learning_curve_needs_epochs_and_errors(history):
    with pytest.raises(
        ValueError, match="expected the columns 'epoch' and 'epe_MODALITY', found epoch, minutes"
    ):
        learning_curve_figure(history[["epoch", "minutes"]])


def test_learning_curve_before_the_first_validation_is_empty_but_drawn(tmp_path):
    history = pd.DataFrame({"epoch": [1], "minutes": [1.0], "epe_CT": [np.nan]})
    figures.save_figure(tmp_path / "curve.png", learning_curve_figure(history))
    assert (tmp_path / "curve.png").stat().st_size > 1000


def test_a_name_that_no_font_can_show_is_no_reason_to_warn(tmp_path):
    image = np.zeros((64, 64), np.float32)
    figure = figures.figure_pair(image, image, image, image, title="CT \u60a3\u8005 \U000110a0")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        figures.save_figure(tmp_path / "figure.png", figure)
    assert (tmp_path / "figure.png").stat().st_size > 1000


def test_a_map_is_painted_pixel_by_pixel_without_a_frame():
    values = np.full((HEIGHT, WIDTH), 1.0)
    values[0, :3] = [-0.5, 0.0, np.nan]
    painted = map_picture(values, "jacobian")
    assert painted.shape == (HEIGHT, WIDTH, 3) and painted.dtype == np.float32
    middle = colormaps["RdBu_r"](0.5)[:3]
    np.testing.assert_allclose(painted[1, 1], middle, atol=1e-6)
    folded, lowest, missing = painted[0, :3]
    np.testing.assert_allclose(folded, [1, 0xE8 / 255, 0], atol=1e-6)
    np.testing.assert_allclose(lowest, colormaps["RdBu_r"](0.0)[:3], atol=1e-6)
    np.testing.assert_allclose(missing, [0x8C / 255] * 3, atol=1e-6)
    with pytest.raises(ValueError, match="expected a map named one of"):
        map_picture(values, "nothing")
