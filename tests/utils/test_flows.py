"""utils/imaging/flows.py: flows of the images' size or a quarter of it, and nothing else."""

import numpy as np
import pytest

from utils.files import FileError
from utils.imaging.flows import load_flow, save_flow


def test_what_was_written_is_read(tmp_path):
    flow = np.random.default_rng(0).normal(size=(2, 70, 90)).astype(np.float32)
    save_flow(tmp_path / "a.npy", flow)
    assert (load_flow(tmp_path / "a.npy", (70, 90)) == flow).all()


@pytest.mark.parametrize(("size", "factors"), [((64, 128), (4, 4)), ((70, 90), (90 / 22, 70 / 17))])
def test_a_coarse_flow_scales_with_the_size(tmp_path, size, factors):
    coarse = np.full((2, size[0] // 4, size[1] // 4), 0.5, np.float32)
    save_flow(tmp_path / "a.npy", coarse)
    flow = load_flow(tmp_path / "a.npy", size)
    assert flow.shape == (2, *size)
    for channel, factor in zip(flow, factors, strict=True):
        assert np.allclose(channel, 0.5 * factor)


@pytest.mark.parametrize("shape", [(2, 128, 64), (2, 64, 64), (2, 32, 16), (2, 128, 256), (2, 17, 32)])
def test_a_flow_of_other_images_is_refused(tmp_path, shape):
    np.save(tmp_path / "a.npy", np.zeros(shape, np.float32))
    with pytest.raises(FileError, match=r"a.npy: expected .*\(2, 64, 128\) or \(2, 16, 32\).*found"):
        load_flow(tmp_path / "a.npy", (64, 128))


def test_other_files_are_refused(tmp_path):
    (tmp_path / "text.npy").write_text("no array")
    (tmp_path / "empty.npy").touch()
    np.save(tmp_path / "shape.npy", np.zeros((64, 64, 2)))
    np.save(tmp_path / "pickle.npy", np.array([{}], dtype=object))
    np.save(tmp_path / "nothing.npy", np.zeros((2, 0, 64)))
    np.save(tmp_path / "words.npy", np.full((2, 64, 64), "a"))
    np.save(tmp_path / "complex.npy", np.zeros((2, 64, 64), complex))
    np.save(tmp_path / "nan.npy", np.full((2, 64, 64), np.nan))
    np.save(tmp_path / "infinite.npy", np.full((2, 64, 64), np.inf, np.float32))
    others = ("nothing", "words", "complex", "nan", "infinite")
    for name in ("text", "empty", "shape", "pickle", "missing", *others):
        with pytest.raises(FileError, match=f"{name}.npy.*expected.*found"):
            load_flow(tmp_path / f"{name}.npy", (64, 64))
