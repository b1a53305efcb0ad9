"""tools/publish.py: a small file that aligns like the run's own and does not name its machine."""

from pathlib import Path

import pytest
import torch

from models.checkpoint import load_checkpoint, save_checkpoint
from models.edarfusion import EDARFusion
from tests.examples import noise
from tools.publish import main

PRIVATE = "/home/somebody"


@pytest.fixture
def source(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    model = EDARFusion("tiny")
    torch.nn.init.normal_(model.refinement.head.weight, std=0.05)
    options = {"root": [f"{PRIVATE}/data"], "output": PRIVATE, "lr": 2e-3, "seed": 3}
    training = {"options": options, "step": 7, "seconds": 60.0, "history": [{"epoch": 1}], "sums": {"total": 1.0}}
    state = {f"optimizer.{name}": value.clone() for name, value in model.state_dict().items()}
    path = tmp_path / "last.safetensors"
    save_checkpoint(path, model, modality="PET", training=training, metrics={"epe_PET": 1.5}, state=state)
    return path


def test_the_file_is_small_and_aligns_alike(source: Path, tmp_path: Path) -> None:
    target = tmp_path / "mine.safetensors"
    assert main([str(source), str(target)]) == 0
    before, after = load_checkpoint(source), load_checkpoint(target)
    assert target.stat().st_size < 0.3 * source.stat().st_size
    assert not after.state and after.modality == "PET" and after.metrics == {"epe_PET": 1.5}
    pair = noise(2, 1, 12, 12)
    pair = torch.nn.functional.interpolate(pair, size=(96, 96), mode="bicubic").clamp(0, 1)[:, None]
    with torch.inference_mode():
        flows = [checkpoint.model(*pair).flow for checkpoint in (before, after)]
    assert flows[0].abs().max() > 0.5
    torch.testing.assert_close(*flows, rtol=0, atol=0.05)


def test_it_keeps_how_the_model_was_trained_but_no_paths(source: Path, tmp_path: Path) -> None:
    target = tmp_path / "mine.safetensors"
    assert main([str(source), str(target)]) == 0
    expected = {"options": {"lr": 2e-3, "seed": 3}, "step": 7, "seconds": 60.0, "history": [{"epoch": 1}]}
    assert load_checkpoint(target).training == expected
    assert PRIVATE.encode() in source.read_bytes() and PRIVATE.encode() not in target.read_bytes()


def test_inference_is_kept_or_set(source: Path, tmp_path: Path) -> None:
    paths = [source, *(tmp_path / f"{name}.safetensors" for name in "abcd")]
    options = [["--average"], [], ["--passes", "2"], ["--no-average"]]
    for before, after, more in zip(paths, paths[1:], options, strict=False):
        assert main([str(before), str(after), *more]) == 0
    settings = [load_checkpoint(path).training["inference"] for path in paths[1:]]
    both = {"average": True, "passes": 2}
    assert settings == [{"average": True}, {"average": True}, both, both | {"average": False}]


@pytest.mark.parametrize(("share", "expected"), [(None, 2.0), ("0.25", 1.5), ("0", 1.0), ("1", 3.0)])
def test_blend_is_the_weighted_mean(source: Path, tmp_path: Path, share: str | None, expected: float) -> None:
    paths = [tmp_path / f"{value}.safetensors" for value in (1.0, 3.0)]
    for path, value in zip(paths, (1.0, 3.0), strict=True):
        model = EDARFusion("tiny")
        for weight in model.parameters():
            torch.nn.init.constant_(weight, value)
        save_checkpoint(path, model, modality="PET", training={"step": int(value)}, metrics={"epe_PET": value})
    target = tmp_path / "mean.safetensors"
    assert main([str(paths[0]), str(target), "--blend", str(paths[1]), *(("--share", share) if share else ())]) == 0
    mean = load_checkpoint(target)
    assert all((weight == expected).all() for weight in mean.model.parameters())
    assert mean.training["step"] == 1 and not mean.metrics


@pytest.mark.parametrize(
    "case", ["missing", "itself", "not writable", "blend missing", "blend of another network", "over the blend"]
)
def test_bad_input_gives_one_line_and_leaves_the_run_alone(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], case: str
) -> None:
    before = source.read_bytes()
    other = tmp_path / "other.safetensors"
    save_checkpoint(other, EDARFusion("tiny", entropy=False), modality="PET", training={}, metrics={})
    arguments = {
        "missing": [tmp_path / "none.safetensors", tmp_path / "mine.safetensors"],
        "itself": [source, tmp_path / "." / source.name],
        "not writable": [source, source / "mine.safetensors"],
        "blend missing": [source, tmp_path / "mine.safetensors", "--blend", tmp_path / "none.safetensors"],
        "over the blend": [other, source, "--blend", source],
        "blend of another network": [source, tmp_path / "mine.safetensors", "--blend", other],
    }[case]
    assert main(list(map(str, arguments))) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("python -m tools.publish: ") and "expected" in line and "found" in line
    assert source.read_bytes() == before


def test_a_share_of_nothing_is_refused(source: Path, tmp_path: Path, capsys) -> None:
    with pytest.raises(SystemExit, match="2"):
        main([str(source), str(tmp_path / "target.safetensors"), "--share", "0.3"])
    assert "--share: expected --blend FILE" in capsys.readouterr().err
