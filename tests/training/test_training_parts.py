"""EDARFusion_train.py in this process: what it trains on, what each stage and option does, and what it keeps."""

import copy
import itertools
import json
import math
import re
import shutil
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import asdict
from functools import partial
from itertools import islice
from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from matplotlib.figure import Figure
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor, nn
from torch.utils.data import DataLoader

import EDARFusion_train as script
from data import training_pairs
from data.dataset import VAL_SEED, EndlessSampler, Pair, PairDataset, seeded
from data.splits import shared_patients
from data.table import DataError
from data.training_pairs import load_table
from losses import steps
from models.checkpoint import Checkpoint, CheckpointError, load_checkpoint, save_checkpoint
from models.eda_flowreg import CELL
from models.edarfusion import EDARFusion
from tests.examples import SAMPLE, sample_table
from tests.kill_training import StopAfter, command
from tools.publish import publish
from training import distributed, loop, run_folder, stages, validation
from training.options import Options
from training.progress import show_log
from training.record import Record
from training.run_folder import RunFolder, pack_state, unpack_state
from utils.arguments import DEFAULT_CHECKPOINT
from utils.files import FileError
from utils.filters import halved
from utils.geometry.warp import resize_flow
from utils.imaging.images import write_image


@pytest.fixture(autouse=True)
def as_before() -> Iterator[None]:
    """Training has torch compute the same every time, for the whole process."""
    yield
    torch.use_deterministic_algorithms(False)


# --- data ---------------------------------------------------------------------------------------------------


def aligned_pairs(root: Path, **splits: str) -> Path:
    """A folder of pairs, all files empty: CT="ttv" gives two pairs to train on and one to validate on."""
    for modality, letters in splits.items():
        folder, rows = root / f"{modality}-MRI", ["split,name"]
        for number, letter in enumerate(letters):
            name = f"{modality}{number}001.png"
            for role in ("MRI", modality):
                (folder / role).mkdir(parents=True, exist_ok=True)
                (folder / role / name).touch()
            rows.append(f"{ {'t': 'train', 'v': 'val'}[letter] },{name}")
        (folder / "split.csv").write_text("\n".join(rows) + "\n")
    return root


@pytest.fixture
def root(tmp_path) -> Path:
    return aligned_pairs(tmp_path / "one", CT="tttv", PET="ttv", SPECT="tvv")


def datasets(*roots: Path, options: tuple[str, ...] = ()) -> tuple[PairDataset, PairDataset]:
    line = ["--root", *map(str, roots), "--epochs", "1", *options]
    return script.load_pairs(script.parse_arguments(line))[0]


def names(pairs: PairDataset) -> set[str]:
    return {path.stem.removesuffix("001") for path in pairs.fixed}


def test_training_and_validation_have_their_own_pairs_and_draws(root):
    train, val = datasets(root, options=("--wide", "0.2", "--seed", "3"))
    assert names(train) == {"CT0", "CT1", "CT2", "PET0", "PET1", "SPECT0"}
    assert names(val) == {"CT3", "PET2", "SPECT1", "SPECT2"} and len(val) == 4
    assert train.augment and not val.augment
    assert train.wide == 0.2 and (train.seed, val.seed) == (3, VAL_SEED)
    for pairs in (train, val):
        assert all(path.parent.name == "MRI" and path.is_file() for path in pairs.fixed)
        assert [path.stem for path in pairs.moving] == [path.stem for path in pairs.fixed]
        assert all(path.parent.name in path.stem and path.is_file() for path in pairs.moving)


def test_the_rarer_modalities_are_trained_on_as_often(root):
    assert Counter(datasets(root)[0].modalities) == {0: 3, 1: 3, 2: 3}
    drawn = [datasets(root, options=("--seed", str(seed)))[0].fixed for seed in range(6)]
    assert any(paths != drawn[0] for paths in drawn), "the seed decides which of them come more often"


def test_several_roots_add_up(root, tmp_path):
    other = aligned_pairs(tmp_path / "other", CT="tv", PET="tv", SPECT="ttttv")
    train, val = datasets(root, other)
    assert len(val) == 4 + 3 and Counter(train.modalities) == {0: 5, 1: 5, 2: 5}
    assert len(set(train.fixed)) == 6 + 6 and set(train.fixed).isdisjoint(val.fixed)
    for pairs in (train, val):
        assert {path.parents[2] for path in pairs.fixed} == {root, other}


def test_one_modality_of_a_folder_of_all(root):
    train, val = datasets(root, options=("--modality", "PET"))
    assert names(train) == {"PET0", "PET1"} and names(val) == {"PET2"}


def test_a_split_that_is_drawn_hangs_on_neither_seed_nor_modality(root):
    for path in root.rglob("split.csv"):
        path.unlink()
    drawn = [names(datasets(root, options=("--seed", str(seed)))[1]) for seed in range(6)]
    assert all(val == drawn[0] for val in drawn)
    alone = [names(datasets(root, options=("--seed", "3", "--modality", kind))[1]) for kind in ("CT", "PET", "SPECT")]
    assert set.union(*alone) == drawn[0]


def test_pairs_are_the_same_ones_under_windows(root, monkeypatch):
    def under_windows(*arguments, **options) -> pd.DataFrame:
        table = find_table(*arguments, **options)
        return table.assign(**{column: table[column].str.replace("/", "\\") for column in ("fixed", "moving")})

    find_table = training_pairs.find_table
    assert load_table([root], "all")[1] == "10 pairs (5a3119fc)"
    monkeypatch.setattr(training_pairs, "find_table", under_windows)
    monkeypatch.setattr("os.linesep", "\r\n")
    monkeypatch.setattr("os.sep", "\\")
    assert load_table([root], "all")[1] == "10 pairs (5a3119fc)"


@pytest.mark.parametrize("letter", ["t", "v"])
def test_pairs_of_one_split_alone_are_refused(tmp_path, letter):
    aligned_pairs(tmp_path, CT=3 * letter, PET=letter, SPECT=letter)
    counts = "5 train, 0 val, 0 test" if letter == "t" else "0 train, 5 val, 0 test"
    advice = f"add one with pairs of the split {'val' if letter == 't' else 'train'}"
    with pytest.raises(DataError, match=f"expected pairs of the splits train and val, found {counts}; .*{advice}"):
        datasets(tmp_path)


def test_pairs_are_others_where_their_split_is(root, tmp_path):
    def actual(folder: Path) -> str:
        return load_table([folder], "all")[1]

    before = actual(root)
    assert actual(root.rename(tmp_path / "moved")) == before
    # As many of each, but exchanged: a run that went on would train on what it was validated on.
    split = tmp_path / "moved/SPECT-MRI/split.csv"
    split.write_text(split.read_text().replace("train,SPECT0", "val,SPECT0").replace("val,SPECT1", "train,SPECT1"))
    assert actual(tmp_path / "moved") != before


def test_one_number_in_two_folders_is_two_patients(tmp_path):
    roots = [aligned_pairs(tmp_path / name, CT=letters, PET="tv") for name, letters in (("one", "tv"), ("two", "vt"))]
    assert shared_patients(load_table(roots, "all")[0]) == 0


def test_overfitting_trains_and_validates_on_the_same_unvaried_pairs(root):
    train, val = datasets(root, options=("--overfit", "3"))
    assert train is val and not train.augment and train.seed == VAL_SEED
    assert sorted(train.modalities) == [0, 1, 2]
    four, _ = datasets(root, options=("--overfit", "4"))
    assert sorted(four.modalities) == [0, 0, 1, 2] and len(names(four)) == 4
    with pytest.raises(DataError, match="one: expected 100 pairs to overfit, found 10$"):
        datasets(root, options=("--overfit", "100"))


# --- options and run folders --------------------------------------------------------------------------------


def status(monkeypatch: pytest.MonkeyPatch, line: list[str]) -> int:
    """What the command line would return."""
    monkeypatch.setattr("sys.argv", ["EDARFusion_train.py", *line])
    try:
        return script.main()
    except SystemExit as end:
        return end.code


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ((), "either --epochs or --minutes, found neither"),
        (("--epochs", "1", "--minutes", "1"), "either --epochs or --minutes, found both"),
        (("--epochs", "1", "--batch-size", "0"), "--batch-size: expected a whole number from 1, found 0"),
        (("--epochs", "1", "--seed", "-1"), "--seed: expected a whole number from 0, found -1"),
        (("--epochs", "1", "--lr", "0"), "--lr: expected a number above 0, found 0"),
        (("--minutes", "nan"), "--minutes: expected a number above 0, found nan"),
        (("--epochs", "1", "--averaging", "2"), "--averaging: expected a share from 0 to 1, found 2"),
        (("--epochs", "1", "--own-offset", "0.7", "--batch-size", "3"), "--own-offset: expected an even --batch-size"),
        (("--epochs", "1", "--own-offset", "0.7", "--overfit", "2"), "--own-offset: expected no --overfit with it"),
        (("--epochs", "1", "--own-offset", "1", "--repeat-after", "1"), "--own-offset: expected no --repeat-after"),
        (("--epochs", "1", "--init", "nowhere.safetensors"), "nowhere.safetensors: expected a checkpoint"),
        (("--epochs", "1", "--device", "mps"), "device: expected one that is here"),
    ],
)
def test_bad_options_are_one_clear_line(tmp_path, monkeypatch, capsys, options, message):
    if "mps" in options and torch.backends.mps.is_available():
        pytest.skip("mps is here")
    line = command(sample_table(tmp_path / "pairs.csv"), "--output", tmp_path / "run", *options)[2:]
    assert status(monkeypatch, line) == 2
    assert message in capsys.readouterr().err.splitlines()[-1]


def test_a_run_of_a_version_without_an_option_goes_on_with_its_default(tmp_path):
    options = script.parse_arguments(["--root", "somewhere", "--epochs", "8", "--seed", "3", "--fusion-share", "0.25"])
    old = {name: value for name, value in asdict(options).items() if name not in ("second_pass", "dropout")}
    record = {"options": old | {"stop_after": None}, "step": 5, "stage": "fusion", "stage_step": 4}
    path = tmp_path / "last.safetensors"
    state = {"raw": torch.zeros(1)}
    save_checkpoint(path, EDARFusion("tiny"), modality="all", training=record, metrics={}, state=state)
    _, actual = run_folder.open_run(script.parse_arguments(["--resume", str(tmp_path)]))
    assert actual.options == options
    assert (actual.step, actual.stage_step, actual.stage, actual.stage_began) == (5, 4, "fusion", 6.0)
    assert actual.pairs is None and actual.history == [] and not actual.finished


def test_a_log_that_cannot_be_written_does_not_end_the_run(tmp_path, caplog):
    row = {"epoch": 1, "epe_CT": 2.5}
    (tmp_path / "history.csv").mkdir()
    record = Record(Options(), "registration", history=[row])
    folder = RunFolder(tmp_path, EDARFusion("tiny"), record, next_epoch=1)
    folder.write_history(with_curve=True)
    assert "history.csv: expected a place to write to" in caplog.text
    (tmp_path / "history.csv").rmdir()
    folder.write_history(with_curve=True)
    folder.close()
    assert pd.read_csv(tmp_path / "history.csv").to_dict("records") == [row]
    assert (tmp_path / "learning_curve.png").is_file()


def test_weights_without_training_state_are_not_resumed(tmp_path):
    shutil.copy(DEFAULT_CHECKPOINT, tmp_path / "last.safetensors")
    with pytest.raises(CheckpointError, match=r"last\.safetensors: expected .*training state, found published weights"):
        run_folder.open_run(script.parse_arguments(["--resume", str(tmp_path)]))


def test_a_state_that_does_not_fit_is_one_clear_line():
    model, other = EDARFusion("tiny"), EDARFusion("fast")
    optimizer = torch.optim.AdamW(model.parameters())
    with pytest.raises(ValueError, match="state_dict") as caught:
        unpack_state(pack_state(other, torch.optim.AdamW(other.parameters())), model, optimizer)
    assert "\n" not in str(caught.value)


def test_runs_without_a_folder_are_numbered(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folders = [run_folder.new_run_folder(modality) for modality in ("CT", "CT", "all")]
    assert [str(folder) for folder in folders] == [str(Path("runs", name)) for name in ("CT-001", "CT-002", "all-001")]
    assert all(folder.is_dir() for folder in folders)


def test_a_file_where_runs_belong_is_named(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").touch()
    with pytest.raises(FileError, match=rf"^{re.escape(str(Path('runs', 'all-001')))}: expected a place .* found \w"):
        run_folder.new_run_folder("all")


@pytest.fixture
def image_folder(tmp_path) -> Path:
    """Three pairs of CT to train on and one to validate on, images of 64 px."""
    root = aligned_pairs(tmp_path / "images", CT="tttv")
    for path in root.rglob("*.png"):
        write_image(path, torch.rand(64, 64, generator=seeded(0, int(path.stem[2]))).numpy())
    return root


@pytest.mark.parametrize("kind", ["truncated", "wrong size", "no network", "no teacher", "no device", "no pairs"])
def test_a_start_that_fails_says_why_at_once_and_leaves_no_folder(
    image_folder, tmp_path, monkeypatch, capsys, kind
):
    # The only validation pair: without the check a run would come to it after its first epochs.
    path = image_folder / "CT-MRI/CT/CT3001.png"
    options = {"no network": ["--init", "nowhere"], "no teacher": ["--teacher", "nowhere"],
               "no pairs": ["--overfit", "5"]}.get(kind, [])  # fmt: skip
    words = {"truncated": f"{path}: expected a complete image", "no network": "nowhere: expected a checkpoint",
             "no teacher": "nowhere: expected a checkpoint",
             "wrong size": f"{path}: expected the size of", "no device": "device: expected one that is here",
             "no pairs": "expected 5 pairs to overfit, found 4"}[kind]  # fmt: skip
    if kind == "truncated":
        path.write_bytes(path.read_bytes()[:-2000])
    elif kind == "wrong size":
        write_image(path, torch.zeros(64, 72).numpy())
    elif kind == "no device":
        monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.chdir(tmp_path)
    line = ["--root", str(image_folder), "--preset", "tiny", "--epochs", "1", "--device",
            "cuda" if kind == "no device" else "cpu"]  # fmt: skip
    assert status(monkeypatch, [*line, *options]) == 2
    assert words in capsys.readouterr().err.splitlines()[-1]
    assert not Path("runs").exists()


def test_a_run_whose_folder_cannot_be_written_to_ends_before_its_first_step(
    image_folder, tmp_path, monkeypatch, capsys
):
    (tmp_path / "file").touch()
    monkeypatch.setattr(steps, "registration_loss", None)
    line = ["--root", str(image_folder), "--preset", "tiny", "--epochs", "1", "--device", "cpu"]
    assert status(monkeypatch, [*line, "--output", str(tmp_path / "file/run")]) == 2
    assert "file/run: expected a place to write to" in capsys.readouterr().err.splitlines()[-1]


# --- schedule, clock, score ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("step", "progress", "expected"), [(0, 0, 0.02), (49, 0, 1), (999, 0.5, 0.51), (999, 1, 0.02), (999, 2, 0.02)]
)
def test_learning_rate_by_hand(step, progress, expected):
    assert stages.learning_rate(1.0, step, progress) == pytest.approx(expected)
    assert stages.learning_rate(3.0, step, progress) == pytest.approx(3 * expected)


def test_mean_weights_forget_the_first_ones_faster():
    def after(steps: int) -> float:
        mean, new = (nn.ParameterList([torch.full((1,), value)]) for value in (1.0, 2.0))
        stages.average_weights(mean, new, steps, 0.998)
        return mean[0].item()

    assert [after(steps) for steps in (0, 1, 90, 10**6)] == pytest.approx([2, 1 + 9 / 11, 1.09, 1.002])


def test_the_clock_counts_on_without_what_is_skipped(monkeypatch):
    now = iter((10.0, 12.0, 20.0, 23.0, 24.0))
    monkeypatch.setattr(loop, "time", SimpleNamespace(perf_counter=lambda: next(now)))
    clock = loop.Clock(5.0)
    assert clock.read() == 7
    clock.skip()
    assert clock.read() == 10 and clock.read() == 11


def test_score_by_hand():
    errors = {"epe_CT": 1, "zero_CT": 2, "epe_PET": 3, "zero_PET": 4}
    assert validation.score(errors, "registration") == 0.625
    kept = {"epe_CT": 9, "zero_CT": 1, "qabf_CT": 0.6}
    assert validation.score(kept, "fusion") == pytest.approx(0.4)
    assert validation.score(kept | {"epe_PET": 9, "qabf_PET": 0.8}, "fusion") == pytest.approx(0.3)


def test_processes_agree_on_the_furthest_and_stop_together(monkeypatch):
    others = torch.tensor([0.5, 1.0], dtype=torch.float64)

    def all_reduce(flags: Tensor, kind: torch.distributed.ReduceOp) -> None:
        both = torch.stack((flags, others))
        flags.copy_({distributed.dist.ReduceOp.MAX: both.amax, distributed.dist.ReduceOp.MIN: both.amin}[kind](0))

    monkeypatch.setattr(distributed.dist, "all_reduce", all_reduce)
    assert distributed.agree(0.7, False, torch.device("cpu"), 2) == (0.7, True)
    assert distributed.agree(0.3, False, torch.device("cpu"), 2) == (0.5, True)


# --- stages -------------------------------------------------------------------------------------------------


@pytest.fixture
def sample_pair(tmp_path) -> Pair:
    """A batch of one pair of the embedded sample, 128 px."""
    table = pd.read_csv(sample_table(tmp_path / "pairs.csv"))
    return next(iter(DataLoader(PairDataset(table, SAMPLE, seed=VAL_SEED, size=128), 1)))


@pytest.mark.parametrize("stage", ["registration", "fusion"])
def test_a_stage_trains_its_part_of_the_network_and_all_of_it(stage):
    model = EDARFusion("tiny")
    _, optimizer = stages.begin_stage(stage, model, script.parse_arguments(["--root", "nowhere", "--epochs", "1"]))
    trained = {id(weight) for group in optimizer.param_groups for weight in group["params"]}
    for name, weight in model.named_parameters():
        assert (id(weight) in trained) == (name.startswith("fusion.") == (stage == "fusion")), name


def test_what_the_registration_finds_is_compared_with_the_truth(sample_pair):
    model = EDARFusion("tiny")
    actual = model.register(sample_pair.fixed, sample_pair.moving, both=True)
    both = torch.cat((sample_pair.flow, sample_pair.inverse_flow))
    truth = CELL * resize_flow(both, tuple(actual.refined.shape[2:]))
    flows = [step._replace(flow=truth) for step in actual.steps]
    model.register = lambda *_, both: actual._replace(steps=flows, refined=truth[:1])
    loss = steps.RegistrationStep(model)(sample_pair, nullcontext())
    assert loss.flow.item() == loss.refined_flow.item() == 0
    # What is left is blur.
    before = (halved(sample_pair.moving) - halved(sample_pair.moving_aligned)).abs().mean()
    assert loss.similarity < 0.5 * before


def test_what_is_asked_of_the_fusion_hangs_on_the_modality(sample_pair):
    step = steps.FusionStep(EDARFusion("tiny"), consistency=True)
    pairs = [sample_pair._replace(modality=torch.tensor([kind])) for kind in range(3)]
    ct, pet, spect = (step(pair, nullcontext()).total.item() for pair in pairs)
    assert ct != pet == spect


def test_what_a_teacher_finds_takes_the_place_of_the_truth(sample_pair):
    model, teacher = EDARFusion("tiny"), EDARFusion("fast")
    actual = teacher.register_averaged(sample_pair.fixed, sample_pair.moving)
    flows = actual.flow.detach(), actual.inverse_flow
    expected = steps.RegistrationStep(model)(sample_pair.with_truth(*flows), nullcontext()).total
    step = steps.RegistrationStep(model, teacher)
    elsewhere = sample_pair._replace(flow=sample_pair.flow + 1, inverse_flow=sample_pair.inverse_flow - 1)
    for pair in (sample_pair, elsewhere):
        loss = step(pair, nullcontext()).total
        assert torch.equal(loss, expected)
    loss.backward()
    assert all(weight.grad is None for weight in teacher.parameters())
    assert {id(weight) for weight in step.parameters()} <= {id(weight) for weight in model.parameters()}


def test_a_fusion_has_nothing_to_learn_from_itself_and_from_others_what_they_fuse(sample_pair):
    model, teacher = EDARFusion("tiny"), EDARFusion("tiny")
    torch.nn.init.constant_(teacher.fusion.head.bias, 0.3)
    assert steps.FusionStep(model, True, model)(sample_pair, nullcontext()).total == 0
    step = steps.FusionStep(model, True, teacher)
    loss = step(sample_pair, nullcontext())
    loss.total.backward()
    assert loss.intensity > 0.01 and loss.tone == 0 < loss.gradient
    assert all(weight.grad is None for weight in teacher.parameters())
    # Both see the alignment of the network that learns.
    model.fusion.load_state_dict(teacher.fusion.state_dict())
    assert step(sample_pair, nullcontext()).total == 0


# --- runs ---------------------------------------------------------------------------------------------------


@pytest.fixture
def train_here(tmp_path, monkeypatch) -> Iterator[Callable[..., Checkpoint]]:
    """Trains in tmp_path / "run", on images of 64 px and without pictures to be quick; gives the last checkpoint."""
    table = sample_table(tmp_path / "pairs.csv")
    monkeypatch.setattr(training_pairs, "PairDataset", partial(PairDataset, size=64))
    monkeypatch.setattr(loop, "picture", lambda *_: Figure(figsize=(1, 1)))
    show_log()
    # Steps so small wait for a second thread longer than they gain from it, where others compute as well.
    threads = torch.get_num_threads()
    torch.set_num_threads(1)

    def run(*options: str | Path, stop: threading.Event | None = None) -> Checkpoint:
        always = ("--output", tmp_path / "run", "--preset", "tiny", "--batch-size", "1")
        script.train(script.parse_arguments(command(table, *always, *options)[2:]), stop or threading.Event())
        return load_checkpoint(tmp_path / "run" / "last.safetensors")

    yield run
    torch.set_num_threads(threads)


@pytest.fixture
def validated(monkeypatch) -> Callable[..., list[tuple[bool, dict[str, Tensor]]]]:
    """Gives validations the results that are to come; returns what was validated: whether fusion, and the weights."""

    def give(*results: dict[str, float]) -> list[tuple[bool, dict[str, Tensor]]]:
        coming, calls = iter(results), []

        def validate(model: EDARFusion, *_, fusion: bool) -> pd.DataFrame:
            calls.append((fusion, copy.deepcopy(model.state_dict())))
            return pd.DataFrame([{"modality": "CT", "zero": 1.0, **next(coming)}])

        monkeypatch.setattr(validation, "validate", validate)
        return calls

    return give


def test_the_best_checkpoint_is_that_of_the_least_score(train_here, validated, tmp_path):
    validated({"epe": 3.0}, {"epe": 1.0}, {"epe": 2.0})
    last = train_here("--overfit", "1", "--epochs", "3", "--val-every", "1", "--stage", "registration")
    best = load_checkpoint(tmp_path / "run" / "best.safetensors")
    assert best.metrics["score"] == 1 and best.training["step"] == 2
    assert last.metrics["score"] == 2 and last.training["step"] == 3


def test_a_score_that_is_no_number_is_never_the_best(train_here, validated, tmp_path, capsys):
    validated({"epe": math.nan}, {"epe": 2.0}, {"epe": math.nan}, {"epe": 1.0})
    train_here("--overfit", "1", "--epochs", "4", "--val-every", "1", "--stage", "registration")
    best = load_checkpoint(tmp_path / "run" / "best.safetensors")
    assert best.metrics["score"] == 1 and best.training["step"] == 4
    text = [line for line in capsys.readouterr().out.splitlines() if "the score is not a number" in line]
    assert [line.split(":")[1] for line in text] == [" step 1", " step 3"]


@pytest.fixture
def refused_saves(monkeypatch) -> set[int]:
    """Numbers of the saves, from 1, that the system is to refuse."""
    numbers, refused, save = itertools.count(1), set(), run_folder.save_checkpoint

    def refusing(path: Path, *arguments, **options) -> None:
        if next(numbers) in refused:
            raise FileError.at(path, "a place to write to", "No space left on device")
        save(path, *arguments, **options)

    monkeypatch.setattr(run_folder, "save_checkpoint", refusing)
    return refused


REFUSED = ("--overfit", "1", "--epochs", "4", "--val-every", "2", "--stage", "registration")
"""Saves last; last, best, last; last; last, best, last; last at the end."""


def test_a_file_that_cannot_be_replaced_for_a_while_does_not_end_the_run(
    train_here, validated, refused_saves, tmp_path, capsys
):
    refused_saves |= {2, 4, 6}
    validated({"epe": 2.0}, {"epe": 1.0})
    last = train_here(*REFUSED)
    text = [line.split(": ")[1] for line in capsys.readouterr().out.splitlines() if "No space left" in line]
    assert text == 3 * [str(tmp_path / "run/last.safetensors")]
    assert last.training["step"] == 4 and last.metrics["score"] == 1
    assert last.training["best"] == 1 == load_checkpoint(tmp_path / "run" / "best.safetensors").metrics["score"]


@pytest.mark.parametrize(("numbers", "name"), [
    ({1}, "last"), ({9}, "last"),  # the first and the last one of a run
    ({4, 5, 6}, "last"),  # the third in a row
    ({7}, "best"),  # last has been saved before
])  # fmt: skip
def test_saves_that_are_needed(train_here, validated, refused_saves, numbers, name):
    refused_saves |= numbers
    validated({"epe": 2.0}, {"epe": 1.0})
    with pytest.raises(FileError, match=rf"{name}\.safetensors: expected a place to write to"):
        train_here(*REFUSED)


def test_a_stage_without_a_step_is_named(train_here, validated, tmp_path, capsys):
    validated({"epe": 1.0}, {"epe": 1.0, "qabf": 0.5})
    train_here("--overfit", "1", "--epochs", "2", "--val-every", "9", "--fusion-share", "0.5")
    assert "no step" not in capsys.readouterr().out
    shutil.rmtree(tmp_path / "run")
    validated({"epe": 1.0})
    train_here("--overfit", "1", "--epochs", "1", "--val-every", "9")
    output = capsys.readouterr().out
    assert "\nfinished (1 step," in output and "warning: no step was left for fusion, " in output


def test_the_fusion_begins_anew_on_the_mean_of_the_registration(train_here, validated, tmp_path):
    calls = validated({"epe": 0.2}, {"epe": 0.1}, {"epe": 0.1, "qabf": 0.4}, {"epe": 0.1, "qabf": 0.3})
    last = train_here("--overfit", "1", "--epochs", "4", "--val-every", "1", "--fusion-share", "0.5", "--lr", "1e-3")
    assert [fusion for fusion, _ in calls] == [False, False, True, True]
    # Scores of the stages do not compare: the best checkpoint is to have learned to fuse.
    best = load_checkpoint(tmp_path / "run" / "best.safetensors")
    assert best.metrics["score"] == pytest.approx(0.6) and best.training["step"] == 3
    # Warm-up and cosine of each stage, by hand.
    rates = [1000 * row["lr"] for row in last.training["history"]]
    assert rates == pytest.approx([0.02, 0.04 * 0.51, 0.02, 0.04 * 0.51])
    for name, value in calls[1][1].items():
        if not name.startswith("fusion."):
            assert torch.equal(last.state[f"raw.{name}"], value), name


def test_fusion_learns_and_leaves_the_registration_as_it_is(train_here, tmp_path):
    torch.manual_seed(0)
    start = EDARFusion("tiny")
    save_checkpoint(tmp_path / "start.safetensors", start, modality="all", training={}, metrics={})
    options = ("--overfit", "2", "--epochs", "20", "--val-every", "20", "--lr", "1e-2")
    last = train_here("--init", tmp_path / "start.safetensors", "--stage", "fusion", *options)
    losses = [row["total"] for row in last.training["history"]]
    assert len(losses) == 20 and losses[-1] < 0.95 * losses[0]
    for name, value in start.state_dict().items():
        if not name.startswith("fusion."):
            assert torch.equal(last.state[f"raw.{name}"], value), name
            assert torch.equal(last.model.state_dict()[name], value), name


def test_second_passes_and_dropout_are_of_the_registration_alone(train_here, monkeypatch):
    events = []

    def watch(owner: object, name: str) -> None:
        function = getattr(owner, name)

        def watched(*arguments):
            events.append(name)
            return function(*arguments)

        monkeypatch.setattr(owner, name, watched)

    for owner, name in ((steps, "registration_loss"), (steps, "fusion_loss"), (Pair, "aligned_by"), (F, "dropout2d")):
        watch(owner, name)
    options = ("--epochs", "10", "--fusion-share", "0.5", "--second-pass", "0.4", "--dropout", "0.2")
    train_here("--overfit", "1", "--val-every", "10", *options)
    begin = events.index("fusion_loss")
    assert events[:begin].count("registration_loss") == 5 and "dropout2d" in events[:begin]
    assert events[begin:] == ["fusion_loss"] * 5
    # Two of five, evenly spread.
    seconds = [place for place, event in enumerate(events) if event == "aligned_by"]
    assert [events[:place].count("registration_loss") for place in seconds] == [2, 4]


def test_pairs_have_two_deformations_in_the_registration_alone(train_here, validated, monkeypatch):
    validated({"epe": 1.0}, {"epe": 1.0, "qabf": 0.5})
    numbers = []
    step = stages.StageTrainer.step

    def watched(trainer: stages.StageTrainer, pair: Pair, *arguments):
        numbers.append((trainer.stage, *pair.number.tolist()))
        return step(trainer, pair, *arguments)

    monkeypatch.setattr(stages.StageTrainer, "step", watched)
    options = ("--epochs", "2", "--val-every", "9", "--fusion-share", "0.5", "--batch-size", "4")
    train_here(*options, "--own-offset", "0.7")
    draws = list(islice(EndlessSampler(6, 4), 16))
    first, second = draws[:4], draws[4:8]  # every second one shows the pair before it
    expected = [("registration", a, a, b, b) for a, _, b, _ in (first, second)]
    assert numbers == [*expected, ("fusion", *draws[8:12]), ("fusion", *draws[12:16])]


def test_second_passes_start_from_the_flow_that_was_found_and_each_step_is_as_long_as_logged(
    train_here, validated, monkeypatch
):
    validated({"epe": 1.0})
    actual, taken, rates = [], [], []
    register, aligned_by, step = EDARFusion.register, Pair.aligned_by, stages.Muon.step

    def watched_register(*arguments, **options):
        actual.append(register(*arguments, **options))
        return actual[-1]

    def watched_aligned_by(pair: Pair, flow: Tensor, inverse_flow: Tensor) -> Pair:
        taken.append(flow is actual[-1].flow and inverse_flow is actual[-1].inverse_flow)
        return aligned_by(pair, flow, inverse_flow)

    def watched_step(optimizer: stages.Muon) -> None:
        rates.append({group["lr"] for group in optimizer.param_groups})
        step(optimizer)

    monkeypatch.setattr(EDARFusion, "register", watched_register)
    monkeypatch.setattr(Pair, "aligned_by", watched_aligned_by)
    monkeypatch.setattr(stages.Muon, "step", watched_step)
    options = ("--overfit", "1", "--epochs", "2", "--val-every", "9", "--stage", "registration")
    last = train_here(*options, "--second-pass", "1")
    assert taken == [True, True]
    assert rates == [{row["lr"]} for row in last.training["history"] if "lr" in row] and rates[0] != rates[1]


@pytest.mark.parametrize("new", [False, True])
def test_dropout_is_of_the_training_alone_whatever_the_run_begins_with(train_here, monkeypatch, tmp_path, new):
    save_checkpoint(tmp_path / "start.safetensors", EDARFusion("tiny"), modality="all", training={}, metrics={})
    modes, validated_in, loss = set(), [], steps.RegistrationStep.forward

    def watched(step: steps.RegistrationStep, *arguments):
        modes.update(module.training for module in step.modules())
        return loss(step, *arguments)

    def validate(model: EDARFusion, *_, fusion: bool) -> pd.DataFrame:
        validated_in.append({module.training for module in model.modules()})
        return pd.DataFrame([{"modality": "CT", "zero": 1.0, "epe": 1.0}])

    monkeypatch.setattr(steps.RegistrationStep, "forward", watched)
    monkeypatch.setattr(validation, "validate", validate)
    options = ("--overfit", "1", "--epochs", "1", "--val-every", "1", "--stage", "registration")
    train_here(*(() if new else ("--init", tmp_path / "start.safetensors")), *options)
    assert modes == {True} and validated_in == [{False}]


def test_each_step_leaves_out_other_channels(train_here, validated, monkeypatch):
    validated({"epe": 1.0})
    left_out, dropout = [], F.dropout2d

    def watched(*arguments, **options) -> Tensor:
        kept = dropout(*arguments, **options)
        left_out.append((kept == 0).all(dim=3).all(dim=2))
        return kept

    monkeypatch.setattr(F, "dropout2d", watched)
    train_here("--overfit", "1", "--epochs", "2", "--val-every", "9", "--stage", "registration", "--dropout", "0.5")
    half = len(left_out) // 2
    first, second = (torch.cat([x.flatten() for x in part]) for part in (left_out[:half], left_out[half:]))
    assert 0.3 < first.float().mean() < 0.7 and not torch.equal(first, second)


def test_without_averaging_the_weights_of_the_last_step_are_kept(train_here, validated):
    validated({"epe": 1.0})
    options = ("--overfit", "1", "--epochs", "3", "--val-every", "9", "--stage", "registration")
    last = train_here(*options, "--averaging", "0")
    assert all(torch.equal(value, last.state[f"raw.{name}"]) for name, value in last.model.state_dict().items())


def test_the_seed_decides_on_the_first_weights_and_the_order(train_here, validated, monkeypatch):
    validated({"epe": 1.0})
    drawn, first, item, network = [], [], PairDataset.__getitem__, script.initial_network

    def watched_network(options: Options) -> tuple[EDARFusion, dict]:
        made = network(options)
        first.append(copy.deepcopy(made[0]))
        return made

    monkeypatch.setattr(PairDataset, "__getitem__", lambda pairs, draws: drawn.append(draws) or item(pairs, draws))
    monkeypatch.setattr(script, "initial_network", watched_network)
    train_here("--overfit", "4", "--epochs", "1", "--val-every", "1", "--stage", "registration", "--seed", "5")
    order, other = (list(islice(EndlessSampler(4, 1, seed=seed), 4)) for seed in (5, 0))
    assert drawn[:4] == [[draw] for draw in order] and order != other
    torch.manual_seed(5)
    expected = EDARFusion("tiny").state_dict()
    assert all(torch.equal(value, expected[name]) for name, value in first[0].state_dict().items())


def test_a_run_of_some_minutes_ends_by_itself_and_is_validated_then(train_here, monkeypatch, capsys, tmp_path):
    def ten_seconds_later(clock: loop.Clock) -> float:
        clock.seconds += 10
        return clock.seconds

    monkeypatch.setattr(loop.Clock, "read", ten_seconds_later)
    last = train_here("--overfit", "3", "--minutes", "1", "--val-every", "100", "--stage", "registration")
    # The clock is read before each step and at the end of the epoch of three steps, so the fourth step is the last.
    epoch, rest = last.training["history"]
    assert (epoch["epoch"], epoch["step"]) == (1, 3) and "score" not in epoch
    assert (rest["epoch"], rest["step"], rest["minutes"]) == (2, 4, 1) and math.isfinite(rest["score"])
    assert last.metrics["score"] == rest["score"]
    assert pd.read_csv(tmp_path / "run/history.csv")["step"].to_list() == [3, 4]
    assert "finished" in capsys.readouterr().out


def test_steps_count_as_training_time_and_saving_does_not(train_here, monkeypatch):
    now = 0.0

    def taking(seconds: float, function: Callable) -> Callable:
        def slow(*arguments, **options):
            nonlocal now
            now += seconds
            return function(*arguments, **options)

        return slow

    clock = SimpleNamespace(perf_counter=lambda: now, monotonic=lambda: now)
    monkeypatch.setattr(loop, "time", clock)
    monkeypatch.setattr(steps, "registration_loss", taking(10, steps.registration_loss))
    save, saved = run_folder.save_checkpoint, []

    def watched(path: Path, *arguments, training: dict, **options) -> None:
        saved.append((path.stem, training["step"], training["seconds"]))
        save(path, *arguments, training=training, **options)

    monkeypatch.setattr(run_folder, "save_checkpoint", taking(1000, watched))
    monkeypatch.setattr(loop, "check", taking(500, loop.check))
    # After each of the first two steps it saves within the epoch.
    last = train_here("--overfit", "3", "--epochs", "1", "--save-minutes", "0.1", "--stage", "registration")
    assert last.training["seconds"] == 30
    assert saved[:3] == [("last", 1, 10), ("last", 2, 20), ("last", 3, 30)]


def test_losses_read_later_and_validation_by_time_change_no_weights(train_here, validated, monkeypatch, tmp_path):
    """Beside an accelerator an epoch may last a second: neither each step nor each epoch waits for the CPU."""

    def trained(name: str, pace: tuple[float, int]) -> tuple[dict[str, Tensor], pd.DataFrame]:
        monkeypatch.setattr(loop, "pace", lambda _: pace)
        validated(*({"epe": 1.0} for _ in range(5)))
        last = train_here("--overfit", "3", "--epochs", "5", "--val-every", "1", "--stage", "registration")
        shutil.move(tmp_path / "run", tmp_path / name)
        return last.model.state_dict(), pd.read_csv(tmp_path / name / "history.csv")

    (weights, history), (late_weights, late_history) = trained("each", (0.0, 1)), trained("late", (3600.0, 20))
    assert all(torch.equal(value, late_weights[name]) for name, value in weights.items())
    scored = history["score"].notna().tolist(), late_history["score"].notna().tolist()
    assert scored == ([True] * 5, [True, False, False, False, True])
    losses = [name for name in history.columns if name == "total" or name.startswith("flow")]
    assert losses and history[losses].equals(late_history[losses])


def test_bfloat16_serves_the_registration_alone(train_here, monkeypatch):
    seen = {"register": set(), "fuse": set()}

    def watch(name: str) -> None:
        method = getattr(EDARFusion, name)

        def watched(self, *arguments, **options):
            if self.training:
                seen[name].add(torch.is_autocast_enabled("cpu"))
            return method(self, *arguments, **options)

        monkeypatch.setattr(EDARFusion, name, watched)

    for name in seen:
        watch(name)
    options = ("--epochs", "4", "--val-every", "4", "--fusion-share", "0.5", "--second-pass", "0.5")
    last = train_here("--amp", "--overfit", "1", *options)
    assert seen == {"register": {True}, "fuse": {False}}
    losses = [row["total"] for row in last.training["history"] if "total" in row]
    assert len(losses) == 4 and all(map(math.isfinite, losses))


def test_every_validation_reaches_tensorboard(train_here, validated, tmp_path):
    validated({"epe": 3.0}, {"epe": 2.0}, {"epe": 1.0, "qabf": 0.5})
    train_here("--overfit", "1", "--epochs", "4", "--val-every", "2", "--fusion-share", "0.25")
    board = EventAccumulator(str(tmp_path / "run" / "tensorboard"), {"images": 0, "scalars": 0})
    board.Reload()
    # The last epoch of the registration, the third, is validated as the stage ends there.
    history = pd.read_csv(tmp_path / "run" / "history.csv").dropna(subset="epe_CT")
    shown = {event.step: event.value for event in board.Scalars("val/epe_CT")}
    assert shown == dict(zip(history["epoch"], history["epe_CT"], strict=True)) and list(shown) == [2, 3, 4]
    assert [event.step for event in board.Images("val/pair")] == [2, 3, 4]


def test_a_run_goes_on_with_the_pairs_that_it_began_with(train_here, validated, tmp_path, monkeypatch):
    validated({"epe": 1.0}, {"epe": 1.0})
    run = tmp_path / "run"
    train_here("--overfit", "1", "--epochs", "3", "--stage", "registration", stop=StopAfter(1))
    before = {path: path.read_bytes() for path in run.iterdir() if path.is_file()}
    rows = pd.read_csv(tmp_path / "pairs.csv")
    rows[rows["modality"] != "SPECT"].to_csv(tmp_path / "fewer.csv", index=False)
    line = ["--resume", str(run), "--csv"]
    expected = rf"fewer.csv: expected the {len(rows)} pairs \(\w+\) that the run began with, found .* pairs \(\w+\)"
    with pytest.raises(DataError, match=expected):
        script.train(script.parse_arguments([*line, str(tmp_path / "fewer.csv")]), threading.Event())
    assert before == {path: path.read_bytes() for path in run.iterdir() if path.is_file()}
    # The number of processes is in the checkpoint.
    with monkeypatch.context() as elsewhere, pytest.raises(CheckpointError, match="expected 1 processes .* found 2"):
        elsewhere.setenv("WORLD_SIZE", "2")
        run_folder.open_run(script.parse_arguments(line[:2]))
    # The same pairs may lie elsewhere.
    (tmp_path / "pairs.csv").rename(tmp_path / "moved.csv")
    script.train(script.parse_arguments([*line, str(tmp_path / "moved.csv")]), StopAfter(1))
    assert load_checkpoint(run / "last.safetensors").training["step"] == 2
    # Where they lie needs to be said once.
    script.train(script.parse_arguments(line[:2]), threading.Event())
    assert load_checkpoint(run / "last.safetensors").training["step"] == 3


def test_a_run_goes_on_with_the_teacher_that_it_began_with(train_here, validated, tmp_path):
    validated(*[{"epe": 1.0, "qabf": 0.5}] * 9)
    first, other = (tmp_path / f"{name}.safetensors" for name in ("first", "other"))
    for path in (first, other):
        torch.nn.init.constant_((teacher := EDARFusion("tiny")).fusion.head.bias, 0.3)
        save_checkpoint(path, teacher, modality="all", training={}, metrics={})
    taught = ("--teacher", first, "--overfit", "1", "--epochs", "4", "--fusion-share", "0.5", "--val-every", "9")
    train_here(*taught, stop=StopAfter(1))
    resumed = ["--resume", str(tmp_path / "run")]
    with pytest.raises(CheckpointError, match=rf"{other.name}: expected the teacher that the run began with"):
        script.train(script.parse_arguments([*resumed, "--teacher", str(other)]), threading.Event())
    moved = first.rename(tmp_path / "moved.safetensors")
    script.train(script.parse_arguments([*resumed, "--teacher", str(moved)]), threading.Event())
    history = pd.read_csv(tmp_path / "run" / "history.csv")
    assert history["stage"].unique().tolist() == ["registration", "fusion"]
    fusion = history[(history["stage"] == "fusion") & history["total"].notna()]
    assert len(fusion) == 2 and (fusion["intensity"] > 0).all() and (fusion["tone"] == 0).all()
    publish(tmp_path / "run" / "last.safetensors", tmp_path / "mine.safetensors")
    published = load_checkpoint(tmp_path / "mine.safetensors").training
    assert str(tmp_path) not in json.dumps(published) and published["options"]["epochs"] == 4


def test_a_finished_run_ends_at_once_and_a_longer_one_goes_on(train_here, validated, tmp_path, capsys):
    validated(*[{"epe": 1.0, "qabf": 0.5}] * 9)
    options = ("--overfit", "1", "--epochs", "4", "--fusion-share", "0.5", "--val-every", "9", "--lr", "1e-3")
    train_here(*options)
    run = tmp_path / "run"
    before = (run / "last.safetensors").read_bytes()
    capsys.readouterr()
    script.train(script.parse_arguments(["--resume", str(run)]), threading.Event())
    assert capsys.readouterr().out == f"{run} is finished after 4 epochs; a larger number prolongs it\n"
    assert (run / "last.safetensors").read_bytes() == before
    with pytest.raises(CheckpointError, match="expected --epochs of at least the run's 4, found 3"):
        script.train(script.parse_arguments(["--resume", str(run), "--epochs", "3"]), threading.Event())
    with pytest.raises(CheckpointError, match="expected no --minutes, as the run has none, found 3"):
        script.train(script.parse_arguments(["--resume", str(run), "--minutes", "3"]), threading.Event())
    script.train(script.parse_arguments(["--resume", str(run), "--epochs", "6"]), threading.Event())
    training = load_checkpoint(run / "last.safetensors").training
    assert (training["step"], training["stage"], training["options"]["epochs"]) == (6, "fusion", 6)
    # The fusion began at step 2 of 4 and ends at 6: steps 5 and 6 are at a half and three quarters of it.
    rates = [row["lr"] for row in training["history"]]
    expected = [stages.learning_rate(1e-3, step, share) for step, share in ((2, 0.5), (3, 0.75))]
    assert rates[-2:] == pytest.approx(expected)


def test_two_runs_do_not_share_a_folder(train_here, tmp_path, monkeypatch):
    monkeypatch.setattr(run_folder, "LOCK_SECONDS", 0.1)
    with run_folder.lock_folder(tmp_path / "run"):
        with pytest.raises(FileError, match="run: expected a folder in which no other run is at work"):
            train_here("--overfit", "1", "--epochs", "1", "--stage", "registration")
    assert not (tmp_path / "run/options.json").exists()


def test_what_was_trained_says_how_it_is_used(train_here, validated):
    validated({"epe": 1.0})
    options = ("--overfit", "1", "--epochs", "1", "--stage", "registration", "--val-every", "9")
    assert train_here(*options).inference() == {"passes": 1, "average": True}
    assert script.initial_network(Options(second_pass=0.5, preset="tiny"))[1] == {"passes": 2, "average": True}
    assert script.initial_network(Options(init=str(DEFAULT_CHECKPOINT)))[1] == {"passes": 2, "average": True}


def test_a_run_that_is_killed_while_it_validates_makes_up_for_that(train_here, monkeypatch, tmp_path):
    kept = []

    def killed_every_other_time(*arguments) -> dict[str, float]:
        kept.append(load_checkpoint(tmp_path / "run" / "last.safetensors").training["step"])
        if len(kept) % 2:
            raise KeyboardInterrupt
        return check(*arguments)

    check = loop.check
    monkeypatch.setattr(run_folder, "learning_curve_figure", lambda _: Figure(figsize=(1, 1)))
    # Two steps an epoch: validates at the end of the second one, of the registration and of the run.
    options = ("--overfit", "2", "--epochs", "3", "--val-every", "2", "--fusion-share", "0.3")
    with monkeypatch.context() as killed:
        killed.setattr(loop, "check", killed_every_other_time)
        with pytest.raises(KeyboardInterrupt):
            train_here(*options)
        resumed = script.parse_arguments(["--resume", str(tmp_path / "run")])
        for _ in range(2):
            with pytest.raises(KeyboardInterrupt):
                script.train(copy.copy(resumed), threading.Event())
        script.train(resumed, threading.Event())
    assert kept == [4, 4, 5, 5, 6, 6]
    actual = train_here(*options, "--output", tmp_path / "whole")
    expected = load_checkpoint(tmp_path / "whole" / "last.safetensors")
    for name, value in expected.model.state_dict().items():
        assert torch.equal(actual.model.state_dict()[name], value), name
    histories = [pd.DataFrame(run.training["history"]).drop(columns="minutes") for run in (expected, actual)]
    pd.testing.assert_frame_equal(*histories, check_exact=True)


def test_what_validation_cannot_tell_is_said(tmp_path, capsys, validated, train_here):
    validated({"epe": 1.0})
    rows = pd.read_csv(tmp_path / "pairs.csv")
    rows.loc[rows["modality"] == "PET", "split"] = "train"
    rows["group"] = [Path(path).stem for path in rows["fixed"]]
    rows.loc[rows["modality"] == "CT", "group"] = "one patient"
    rows.to_csv(tmp_path / "pairs.csv", index=False)
    train_here("--epochs", "1", "--stage", "registration", "--val-every", "9", stop=StopAfter(1))
    said = capsys.readouterr().out
    assert "PET: no pairs to validate on" in said and "CT: no pairs" not in said
    assert "1 patient with slices both to train and to validate on" in said
