"""utils/imaging/label_maps.py: whole numbers in, whole numbers out."""

import numpy as np
import pytest
from PIL import Image

from utils.imaging.images import ImageError
from utils.imaging.label_maps import carry_labels, read_label_map, write_label_map

LABELS = np.zeros((64, 80), np.int32)
LABELS[10:30, 20:40], LABELS[30:50, 20:40] = 7, 41


@pytest.mark.parametrize("largest", [41, 300])
def test_labels_are_read_as_they_were_written(tmp_path, largest) -> None:
    labels = np.where(LABELS == 41, largest, LABELS)
    write_label_map(tmp_path / "a.png", labels)
    np.testing.assert_array_equal(read_label_map(tmp_path / "a.png"), labels)


def test_a_palette_names_labels_by_number(tmp_path) -> None:
    picture = Image.fromarray(LABELS.astype(np.uint8)).convert("P")
    picture.putpalette([value for number in range(256) for value in (255 - number, number, 7)])
    picture.save(tmp_path / "a.png")
    np.testing.assert_array_equal(read_label_map(tmp_path / "a.png"), np.asarray(picture))


def test_the_nearest_label_is_taken_and_none_beyond_the_map() -> None:
    flow = np.zeros((2, 64, 80), np.float32)
    flow[0] = 2.4
    carried = carry_labels(LABELS, flow)
    np.testing.assert_array_equal(carried[:, :-3], LABELS[:, 2:-1])
    flow[0] = 100
    assert not carry_labels(LABELS + 5, flow).any()


@pytest.mark.parametrize("case", ["jpeg", "colours", "text", "small", "fractions"])
def test_what_is_no_label_map_is_refused(tmp_path, case) -> None:
    path = tmp_path / {"jpeg": "a.jpg", "fractions": "a.tif"}.get(case, "a.png")
    if case == "text":
        path.write_text("no image")
    elif case == "fractions":
        import tifffile

        tifffile.imwrite(path, np.full((64, 80), 0.5, np.float32))
    else:
        noise = np.random.default_rng(0).integers(0, 255, (64, 80, 3), dtype=np.uint8)
        values = {"colours": noise, "small": LABELS[:32].astype(np.uint8)}.get(case, LABELS.astype(np.uint8))
        Image.fromarray(values).save(path)
    with pytest.raises(ImageError, match=f"{path.name}: expected .*, found"):
        read_label_map(path)
