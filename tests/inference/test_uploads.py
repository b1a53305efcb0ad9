"""inference/uploads.py: the files of visitors are kept apart, and removed with the page of their visitor."""

import logging
from pathlib import Path

import pytest

from EDARFusion_test_val import parse_arguments
from inference.uploads import UploadFuser, Visitors
from tests.examples import picture
from utils.files import InputError
from utils.imaging.images import has_color, read_image, write_image


def uploaded(root: Path, number: int) -> str:
    """Write an upload as gradio does: each in a folder of its own."""
    write_image(root / f"hash{number}" / "image.png", picture(number))
    return str(root / f"hash{number}" / "image.png")


def test_a_closed_page_takes_its_own_files_along(tmp_path: Path) -> None:
    visitors = Visitors(tmp_path)
    own, shared, others = (Path(uploaded(tmp_path, number)) for number in range(3))
    visitors.note("one", [str(own), str(shared)])
    visitors.note("two", [str(shared), str(others)])
    folders = {visitor: visitors.begin(visitor) for visitor in ("one", "two")}
    visitors.close("one")
    assert not own.exists() and shared.exists() and others.exists()
    (first, first_stop), (second, second_stop) = folders.values()
    assert not first.exists() and second.exists()
    # What is still being made for the page that was closed ends.
    assert first_stop.is_set() and not second_stop.is_set()


def test_files_that_were_not_uploaded_stay(tmp_path: Path) -> None:
    example = tmp_path / "sample" / "example.png"
    write_image(example, picture(0))
    visitors = Visitors(tmp_path / "root")
    visitors.note("one", [str(example)])
    visitors.close("one")
    assert example.exists()


@pytest.fixture
def fuser(tmp_path: Path, checkpoint: Path) -> UploadFuser:
    options = ["--checkpoint", str(checkpoint), "--device", "cpu", "--workers", "1", "--save-maps"]
    return UploadFuser(parse_arguments(options), 2, Visitors(tmp_path / "root"))


def test_a_grey_tracer_gets_the_colours_that_were_chosen(tmp_path: Path, fuser: UploadFuser) -> None:
    pair = [uploaded(tmp_path / "root", number) for number in range(2)]
    done = []
    fused = {
        colormap: fuser.fuse("one", pair[:1], pair[1:], modality="PET", colormap=colormap,
                             progress=lambda *number: done.append(number))
        for colormap in ("gray", "hot")
    }  # fmt: skip
    assert done == [(1, 1), (1, 1)]
    assert fused["hot"].folder.modality == "PET"
    # Only the latest results of a visitor are kept.
    assert has_color(read_image(fused["hot"].folder.files("image")["fused"], color=None))


def test_a_grey_image_is_taken_for_a_ct(tmp_path: Path, fuser: UploadFuser, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "EDARFusion")  # as `show_messages` does
    pair = [uploaded(tmp_path / "root", number) for number in range(2)]
    fused = fuser.fuse("one", pair[:1], pair[1:], modality="all", progress=lambda *_: None)
    assert fused.folder.modality == "CT"
    assert any("taken for CT" in note for note in fused.notes)


def test_errors_name_files_without_their_folders(tmp_path: Path, fuser: UploadFuser) -> None:
    bad = tmp_path / "root" / "hash9" / "bad.png"
    bad.parent.mkdir(parents=True)
    bad.write_bytes(b"no image")
    with pytest.raises(InputError) as error:
        fuser.fuse("one", [str(bad)], [uploaded(tmp_path / "root", 1)], modality="CT", progress=lambda *_: None)
    assert fuser.visitors.plain(str(error.value)).startswith("bad.png: expected")
