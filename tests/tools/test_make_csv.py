"""tools/make_csv.py: tables are complete, split by patient and repeatable; bad tables give one clear line."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

from data.splits import find_table, make_table, shared_patients
from data.table import DataError, read_table
from tools.make_csv import main
from utils.files import FileError

REPOSITORY = Path(__file__).parents[2]
HARVARD = REPOSITORY / "../shared/data/harvard"
COLUMNS = ["fixed", "moving", "modality", "group", "split"]


def add_pairs(root: Path, modality: str, names: list[str]) -> None:
    for folder in ("MRI", modality):
        (root / f"{modality}-MRI" / folder).mkdir(parents=True)
        for name in names:
            (root / f"{modality}-MRI" / folder / f"{name}.png").touch()


def slices(case: int, count: int) -> list[str]:
    return [f"{case}{i:03d}" for i in range(1, count + 1)]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """CT: 5 patients of 4 slices; PET: 3 patients, of whom case 2 is also in CT; SPECT: 2 patients, 7 also in PET."""
    folder = tmp_path / "root"
    add_pairs(folder, "CT", [name for case in (2, 3, 16, 20, 31) for name in slices(case, 4)])
    add_pairs(folder, "PET", [name for case in (2, 7, 8) for name in slices(case, 5)])
    add_pairs(folder, "SPECT", [name for case in (7, 9) for name in slices(case, 3)])
    return folder


@pytest.fixture
def table_file(root: Path, tmp_path: Path):
    """Write lines as a CSV file below a header and give its path."""
    def write(*lines: str, header: str = "fixed,moving,modality,group,split") -> Path:
        path = tmp_path / "table.csv"
        path.write_text("\n".join([header, *lines]) + "\n")
        return path

    return write


def row(name: str, modality: str = "CT", split: str = "train") -> str:
    return f"{modality}-MRI/MRI/{name}.png,{modality}-MRI/{modality}/{name}.png,{modality},{name[:-3]},{split}"


def message_of(call, *words: str) -> str:
    with pytest.raises(FileError) as caught:
        call()
    message = str(caught.value)
    assert "\n" not in message and "expected" in message and "found" in message
    for word in words:
        assert word in message, message
    return message


class TestMakeTable:
    def test_rows(self, root):
        table = make_table(root, "CT")
        assert list(table.columns) == COLUMNS and len(table) == 20
        assert table.iloc[0].tolist()[:4] == ["CT-MRI/MRI/2001.png", "CT-MRI/CT/2001.png", "CT", "2"]
        assert table["fixed"].tolist()[-1] == "CT-MRI/MRI/31004.png"
        assert set(table["group"]) == {"2", "3", "16", "20", "31"}

    def test_patients_stay_whole_and_the_ratio_is_met(self, root):
        for seed in range(20):
            table = make_table(root, "CT", ratio=0.8, seed=seed)
            assert (table.groupby("group")["split"].nunique() == 1).all()
            assert (table["split"] == "val").sum() == 4

    def test_all_places_a_patient_once(self, root):
        for seed in range(20):
            table = make_table(root, "all", ratio=0.6, seed=seed)
            assert table["modality"].value_counts().to_dict() == {"CT": 20, "PET": 15, "SPECT": 6}
            assert (table.groupby("group")["split"].nunique() == 1).all()
            assert (table.groupby("modality")["split"].nunique() == 2).all()

    def test_all_is_all_that_is_there(self, root, tmp_path):
        shutil.rmtree(root / "PET-MRI")
        assert make_table(root, "all")["modality"].value_counts().to_dict() == {"CT": 20, "SPECT": 6}
        # What is wanted by name, or begun, must be there.
        message_of(lambda: make_table(root, "PET"), "PET-MRI", "nothing there")
        shutil.rmtree(root / "SPECT-MRI/MRI")
        message_of(lambda: make_table(root, "all"), str(Path("SPECT-MRI/MRI")), "nothing there")
        for place, words in ((root / "CT-MRI", "none of them; for .*MRI give one --modality"),
                             (root / "CT-MRI/CT", "none of them$"), (tmp_path / "none", "nothing there$")):
            message = message_of(lambda place=place: make_table(place, "all"), "CT-MRI, PET-MRI, SPECT-MRI")
            assert re.match(f"{re.escape(str(place))}: expected .* found {words}", message), message

    def test_the_draw_is_the_same_everywhere(self, root):
        # Another one would train new runs on what the published weights were validated on.
        tables = [make_table(root, "CT", seed=seed) for seed in range(4)]
        drawn = [set(table.loc[table["split"] == "val", "group"]) for table in tables]
        assert drawn == [{"20"}, {"31"}, {"20"}, {"31"}]

    def test_a_patient_too_large_for_the_share_is_trained_on(self, tmp_path):
        # A fifth of ten slices is two: three are nearer to it than none, four are not.
        add_pairs(tmp_path, "CT", [name for case, count in ((1, 3), (2, 3), (3, 4)) for name in slices(case, count)])
        for seed in range(8):
            table = make_table(tmp_path, "CT", ratio=0.8, seed=seed)
            assert (table["split"] == "val").sum() == 3

    @pytest.mark.parametrize(("splits", "side"), [("vvvt", "val"), ("vttt", "train")])
    def test_a_patient_given_to_both_sides_goes_where_most_slices_are(self, root, splits, side):
        given = {"t": "train", "v": "val"}
        lines = [f"{given[letter]},{case}{number:03d}" for case in (2, 3, 16, 20, 31)
                 for number, letter in enumerate(splits, 1)]
        (root / "CT-MRI/split.csv").write_text("\n".join(["split,name", *lines]))
        table = find_table(root, "PET")
        assert set(table.loc[table["group"] == "2", "split"]) == {side}

    def test_seed_decides(self, root):
        tables = [make_table(root, "CT", seed=seed) for seed in (0, 0, *range(1, 9))]
        assert tables[0].equals(tables[1])
        assert len({tuple(t["split"]) for t in tables}) > 2

    @pytest.mark.parametrize(("ratio", "splits"), [(0, {"val"}), (1, {"train"}), (0.01, {"train", "val"}),
                                                   (0.99, {"train", "val"})])
    def test_extreme_ratios(self, root, ratio, splits):
        assert set(make_table(root, "CT", ratio=ratio)["split"]) == splits

    def test_group_pattern(self, root):
        assert set(make_table(root, "CT", group_pattern=r"(.).*")["group"]) == {"2", "3", "1"}
        assert make_table(root, "CT", group_pattern=r".*")["group"].nunique() == 20

    def test_the_group_pattern_is_that_of_the_whole_name(self, root):
        for role in ("MRI", "CT"):
            (root / f"CT-MRI/{role}/16005_b.png").touch()
        message_of(lambda: make_table(root, "CT"), "group pattern", "'16005_b'")

    def test_one_modality_without_the_outer_folder(self, root):
        inner = make_table(root / "CT-MRI", "CT")
        assert inner["moving"].iloc[0] == "CT/2001.png"
        assert inner["split"].tolist() == make_table(root, "CT")["split"].tolist()

    def test_given_split(self, root):
        names = [Path(fixed).name for fixed in make_table(root, "CT")["fixed"]]
        lines = [f"{'val' if i % 2 else 'train'},{name}" for i, name in enumerate(names)]
        (root / "CT-MRI/split.csv").write_text("\n".join(["split,name", *lines]))
        expected = ["train", "val"] * 10
        assert make_table(root, "CT", split_csv="split.csv")["split"].tolist() == expected
        assert make_table(root, "CT", split_csv=root / "CT-MRI/split.csv")["split"].tolist() == expected

    def test_a_given_split_goes_by_name_in_whatever_order(self, root):
        lines = [f"{'val' if case == 16 else 'train'},{case}{number:03d}.png" for case in (16, 31, 2, 20, 3, 99)
                 for number in (3, 1, 4, 2)]
        (root / "CT-MRI/split.csv").write_text("\n".join(["split,name", *lines]))
        table = make_table(root, "CT", split_csv="split.csv")
        assert table.loc[table["split"] == "val", "fixed"].tolist() == [f"CT-MRI/MRI/1600{n}.png" for n in (1, 2, 3, 4)]

    def test_patients_that_are_placed_already_count_to_the_share(self, root):
        # Patient 2 has a third of PET's slices: more than a fifth, so that the others are trained on.
        (root / "CT-MRI/split.csv").write_text(
            "\n".join(["split,name", *(f"val,{name}" for case in (2, 3, 16, 20, 31) for name in slices(case, 4))])
        )
        table = find_table(root, "PET")
        assert set(table.loc[table["split"] == "val", "group"]) == {"2"}

    def test_a_given_split_in_another_form_of_unicode(self, tmp_path):
        add_pairs(tmp_path, "CT", ["cafe\u0301001"])
        (tmp_path / "CT-MRI/split.csv").write_text("split,name\nval,caf\u00e9001.png\n", encoding="utf-8")
        assert find_table(tmp_path, "CT")["split"].tolist() == ["val"]

    def test_names_without_a_patient_in_them(self, root, tmp_path):
        for role in ("MRI", "CT"):
            folder = tmp_path / "CT-MRI" / role
            folder.mkdir(parents=True)
            for number, path in enumerate(sorted((root / "CT-MRI" / role).iterdir())):
                shutil.copy(path, folder / f"{number % 4}_{number}.png")
        message_of(lambda: make_table(tmp_path, "CT"), "--group-pattern", "0_0")
        assert set(find_table(tmp_path, "CT", group_pattern="(.)_.*")["group"]) == set("0123")
        # Where the split is given nobody needs to know.
        names = [path.name for path in (tmp_path / "CT-MRI/MRI").iterdir()]
        (tmp_path / "CT-MRI/split.csv").write_text("split,name\n" + "\n".join(f"train,{name}" for name in names))
        table = find_table(tmp_path, "CT")
        assert set(table["split"]) == {"train"} and table["group"].nunique() == 20

    @pytest.mark.parametrize("inner", [False, True])
    def test_a_split_is_taken_where_it_lies_and_drawn_elsewhere(self, root, inner, monkeypatch, tmp_path):
        # One in the working folder belongs to something else.
        monkeypatch.chdir(tmp_path)
        Path("split.csv").write_text("split,name\n")
        names = [path.name for path in (root / "CT-MRI/MRI").iterdir()]
        (root / "CT-MRI/split.csv").write_text("split,name\n" + "\n".join(f"val,{name}" for name in names))
        if inner:
            assert set(find_table(root / "CT-MRI", "CT")["split"]) == {"val"}
            return
        table = find_table(root, "all")
        assert set(table.loc[table["modality"] == "CT", "split"]) == {"val"}
        for modality in ("PET", "SPECT"):
            assert set(table.loc[table["modality"] == modality, "split"]) == {"train", "val"}
            alone = table[table["modality"] == modality].reset_index(drop=True)
            pd.testing.assert_frame_equal(find_table(root, modality), alone)
        # Patient 2 has a CT as well, whose side is given.
        assert set(table.loc[table["group"] == "2", "split"]) == {"val"}

    def test_a_patient_is_on_one_side_whatever_is_asked_for(self, root):
        table = make_table(root, "all")
        for modality in ("CT", "PET", "SPECT"):
            alone = table[table["modality"] == modality].reset_index(drop=True)
            pd.testing.assert_frame_equal(make_table(root, modality), alone)
        # What else is there must be in order for that, but not where the split is given.
        (root / "SPECT-MRI/SPECT/9001.png").unlink()
        message_of(lambda: make_table(root, "CT"), "9001", "SPECT")
        names = [path.name for path in (root / "CT-MRI/MRI").iterdir()]
        (root / "CT-MRI/split.csv").write_text("split,name\n" + "\n".join(f"Val,{name}" for name in names))
        assert set(find_table(root, "CT")["split"]) == {"val"}

    def test_bad_input(self, root, tmp_path):
        message_of(lambda: make_table(root, "US"), "US", "CT, PET, SPECT")
        message_of(lambda: make_table(root, "CT", ratio=1.2), "1.2")
        message_of(lambda: make_table(root, "CT", group_pattern="("), "regular expression")
        message_of(lambda: make_table(root, "CT", group_pattern="x(.*)"), "2001.png")
        message_of(lambda: make_table(root, "CT", group_pattern=".*()"), "two patients")
        message_of(lambda: make_table(tmp_path, "SPECT"), "SPECT-MRI")
        (root / "CT-MRI/CT/16002.png").unlink()
        message_of(lambda: make_table(root, "CT"), "16002", str(root / "CT-MRI/CT"))

    def test_bad_split_files(self, root, tmp_path):
        path = tmp_path / "split.csv"
        message_of(lambda: make_table(root, "CT", split_csv=path), str(path), "nothing there")
        path.write_text("split,name\ntrain,2001.png\n")
        message_of(lambda: make_table(root, "CT", split_csv=path), str(path), "none for 19", "2002")
        path.write_text("split,name\nnone,2001.png\n")
        message_of(lambda: make_table(root, "CT", split_csv=path), "line 2", "'none'")
        path.write_text("split,name\ntrain,2001.png\nval,2001.png\n")
        message_of(lambda: make_table(root, "CT", split_csv=path), "2001.png in train and val")
        path.write_text("name\n2001.png\n")
        message_of(lambda: make_table(root, "CT", split_csv=path), "columns split, name")


def test_shared_patients_are_those_both_trained_and_validated_on():
    rows = [("a", "train"), ("a", "val"), ("a", "val"), ("b", "train"), ("b", "test"), ("c", "val"), ("d", "train")]
    assert shared_patients(pd.DataFrame(rows, columns=["group", "split"])) == 1


class TestReadTable:
    def test_reads_what_make_table_made(self, root, tmp_path):
        made = make_table(root, "all", ratio=0.6)
        made.to_csv(tmp_path / "t.csv", index=False)
        table = read_table(tmp_path / "t.csv", root)
        assert table[COLUMNS].astype(object).equals(made.astype(object))
        assert table["name"].tolist() == [Path(p).stem for p in made["fixed"]]

    def test_a_table_without_modalities_is_of_the_one_that_is_asked_for(self, root, table_file):
        path = table_file("CT-MRI/MRI/2001.png,CT-MRI/CT/2001.png,train", header="fixed,moving,split")
        assert read_table(path, root, modality="CT")["modality"].tolist() == ["CT"]
        assert "modality" not in read_table(path, root, modality="all")
        message_of(lambda: find_table(root, csv=path), "column modality")

    def test_names_of_ones_own(self, root, table_file):
        first, second = "CT-MRI/MRI/2001.png,CT-MRI/CT/2001.png", "CT-MRI/MRI/2001.png,CT-MRI/CT/2002.png"
        header = "fixed,moving,name"
        path = table_file(f"{first},p1 slice.2", f"{second},p2", header=header)
        assert read_table(path, root)["name"].tolist() == ["p1 slice.2", "p2"]
        message_of(lambda: read_table(table_file(f"{first},a", f"{second},a", header=header), root), "one row a name")
        for name in ("../a", "a/b", "a\\b", ".a", "c:d", "a\tb", "a\x00b", "ä" * 101, ""):
            message_of(lambda name=name: read_table(table_file(f"{first},{name}", header=header), root), "line 2")

    def test_choice_of_rows(self, root, table_file):
        path = table_file(row("2001"), row("2002", split="val"), row("2001", "PET"))
        assert read_table(path, root)["name"].tolist() == ["2001", "2002", "2001"]
        assert read_table(path, root, split="val")["name"].tolist() == ["2002"]
        assert read_table(path, root, modality="PET")["moving"].tolist() == ["PET-MRI/PET/2001.png"]
        assert len(read_table(path, root, modality="all")) == 3
        message_of(lambda: read_table(path, root, modality="PET", split="val"), "split val", "train")
        message_of(lambda: read_table(path, root, split="test"), "split test")

    def test_rows_left_out_are_named_and_not_among_the_others(self, root, table_file):
        left_out: list[str] = []
        path = table_file(row("2001"), row("2099"), row("2002").replace(",CT,", ",MR,"), row("2003"))
        assert read_table(path, root, left_out=left_out)["name"].tolist() == ["2001", "2003"]
        assert len(left_out) == 2 and "line 4" in left_out[0] and "line 3" in left_out[1]

    def test_only_the_needed_columns(self, root, table_file):
        path = table_file("CT-MRI/MRI/2001.png,CT-MRI/CT/2001.png", header="fixed,moving")
        assert read_table(path, root)["name"].tolist() == ["2001"]
        message_of(lambda: read_table(path, root, split="val"), str(path), "column split")

    def test_blank_lines_and_a_byte_order_mark_are_no_matter(self, root, tmp_path):
        text = "\ufefffixed, moving\n\nCT-MRI/MRI/2001.png, CT-MRI/CT/2001.png\n\n"
        (tmp_path / "t.csv").write_text(text, encoding="utf-8")
        assert read_table(tmp_path / "t.csv", root)["moving"].tolist() == ["CT-MRI/CT/2001.png"]

    def test_spaces_and_capitals_are_no_matter(self, root, table_file):
        header = "Fixed , MOVING,Modality,note ,a,a"
        path = table_file("CT-MRI/MRI/2001.png,CT-MRI/CT/2001.png,ct,as it is ,1,2", header=header)
        table = read_table(path, root, modality="CT")
        assert list(table.columns) == ["fixed", "moving", "modality", "note ", "a", "a.1", "name"]
        assert table["moving"].tolist() == ["CT-MRI/CT/2001.png"] and table["modality"].tolist() == ["CT"]
        path = table_file("CT-MRI/MRI/2001.png,CT-MRI/CT/2001.png,", header="fixed,moving,Moving")
        message_of(lambda: read_table(path, root), "each column once", "moving twice")
        path = table_file(row("2001") + ",CT-MRI/CT/2002.png", header="fixed,moving,modality,group,split,moving")
        message_of(lambda: read_table(path, root), "each column once", "moving twice")

    def test_tables_of_windows_and_excel(self, root, table_file):
        path = table_file(row("2001", split="Val").replace("/", "\\"))
        table = read_table(path, root, split="val")
        assert table["fixed"].tolist() == ["CT-MRI/MRI/2001.png"] and table["name"].tolist() == ["2001"]
        for way in ("..\\CT-MRI\\MRI\\2001.png", "C:\\2001.png"):
            table_file(row("2001").replace("CT-MRI/MRI/2001.png", way))
            message_of(lambda: read_table(path, root), "inside the root", "line 2")
        path.write_bytes((path.read_text() + "ü").encode("cp1252"))
        message_of(lambda: read_table(path, root), "CSV UTF-8", "another encoding")

    def test_rows_that_are_not_chosen_are_not_looked_at(self, root, table_file):
        others = [row("2099"), row("2001"), row("2099", "PET", "val"), row("2001", split="val").replace("CT/", "../")]
        path = table_file(row("2001"), *others, row("2002", split="val"))
        expected = {"modality": "CT", "split": "val"}
        message_of(lambda: read_table(path, root, **expected), "line 6")
        path = table_file(row("2001"), *others[:3], row("2001", split="val"))
        table = read_table(path, root, **expected)
        assert table[["name", "modality", "split"]].values.tolist() == [["2001", "CT", "val"]]
        message_of(lambda: read_table(path, root), "line 3", "2099")

    @pytest.mark.parametrize(("header", "actual"), [
        ("fixed;moving", "fixed;moving; is it separated by semicolons?"),
        ("fixed\tmoving", "fixed\tmoving; is it separated by tabs?"),
        ("# pairs of 2024", "# pairs of 2024"),
    ])
    def test_a_header_that_is_none_is_shown(self, root, table_file, header, actual):
        path = table_file("fixed,moving", "CT-MRI/MRI/2001.png,CT-MRI/CT/2001.png", header=header)
        message = message_of(lambda: read_table(path, root), "columns fixed, moving in line 1, separated by commas")
        assert message.endswith(f"found no fixed, moving among {actual}")

    def test_a_patient_called_NA_is_no_empty_cell(self, root, table_file):
        path = table_file("CT-MRI/MRI/2001.png,CT-MRI/CT/2001.png,CT,NA,train")
        assert read_table(path, root)["group"].tolist() == ["NA"]

    @pytest.mark.parametrize(("line", "words"), [
        (",CT-MRI/CT/2002.png,CT,2,train", ("column fixed in line 3", "empty cell")),
        ("CT-MRI/MRI/2002.png,CT-MRI/CT/2002.png,CT,,train", ("column group in line 3", "empty cell")),
        ("CT-MRI/MRI/2002.png,CT-MRI/CT/2002.png", ("column modality in line 3", "empty cell")),
        ("CT-MRI/MRI/2002.png,CT-MRI/CT/2002.png,CT,2,train,more", ("CSV file",)),
        ("CT-MRI/MRI/2002.png,CT-MRI/CT/2002.png,US,2,train", ("CT, PET, SPECT", "line 3", "'US'")),
        ("CT-MRI/MRI/2002.png,CT-MRI/CT/2002.png,CT,2,valid", ("train, val, test", "line 3", "'valid'")),
        ("CT-MRI/MRI/2001.png,CT-MRI/CT/2002.png,CT,2,train", ("one row a name", "'2001' in lines 2 and 3")),
        ("CT-MRI/MRI/9.png,CT-MRI/CT/2002.png,CT,2,train", ("line 3", "CT-MRI/MRI/9.png")),
        ("CT-MRI/MRI,CT-MRI/CT/2002.png,CT,2,train", ("line 3", "a file")),
        ("../root/CT-MRI/MRI/2002.png,CT-MRI/CT/2002.png,CT,2,train", ("inside the root in line 3",)),
        ("CT-MRI/../../root/CT-MRI/MRI/2002.png,CT-MRI/CT/2002.png,CT,2,train", ("inside the root in line 3",)),
        ("/etc/hostname,CT-MRI/CT/2002.png,CT,2,train", ("inside the root in line 3, relative to it (--root DIR)",)),
        (r"..\x.png,CT-MRI/CT/2002.png,CT,2,train", ("inside the root in line 3",)),
        (r"C:\x.png,CT-MRI/CT/2002.png,CT,2,train", ("inside the root in line 3",)),
        ("a\0b.png,CT-MRI/CT/2002.png,CT,2,train", ("line 3",)),
        ("a" * 5000 + ",CT-MRI/CT/2002.png,CT,2,train", ("line 3",)),
    ])
    def test_bad_rows(self, root, table_file, line, words):
        path = table_file(row("2001"), line)
        message_of(lambda: read_table(path, root), str(path), *words)

    def test_more_cells_than_columns_in_every_row(self, root, table_file):
        path = table_file("CT-MRI/MRI/2001.png,CT-MRI/CT/2001.png,more", header="fixed,moving")
        message_of(lambda: read_table(path, root), str(path), "CSV file")

    def test_bad_files(self, root, tmp_path, table_file):
        message_of(lambda: read_table(tmp_path / "none.csv", root), "none.csv", "nothing there")
        message_of(lambda: read_table(tmp_path, root), "a folder")
        message_of(lambda: read_table(table_file(), root), "only the header")
        message_of(lambda: read_table(table_file("a,b", header="mri,ct"), root), "fixed, moving", "mri, ct")
        (tmp_path / "empty.csv").touch()
        message_of(lambda: read_table(tmp_path / "empty.csv", root), "empty file")
        (tmp_path / "binary.csv").write_bytes(bytes(range(256)) * 4)
        message_of(lambda: read_table(tmp_path / "binary.csv", root), "binary.csv")
        (tmp_path / "quote.csv").write_text('fixed,moving\n"open,end\n')
        message_of(lambda: read_table(tmp_path / "quote.csv", root), "quote.csv")

    def test_a_data_error_is_caught_with_the_errors_of_files(self):
        assert issubclass(DataError, FileError) and issubclass(DataError, ValueError)


class TestCommand:
    def test_writes_and_tells(self, root, tmp_path, capsys):
        output = tmp_path / "new/ct.csv"
        assert main(["--root", str(root), "--modality", "CT", "--output", str(output)]) == 0
        assert pd.read_csv(output, dtype=str).equals(make_table(root, "CT").astype("str"))
        text = capsys.readouterr().out
        assert "train   16 pairs of 4 patients" in text and "val      4 pairs of 1 patients" in text

    def test_a_table_that_is_there_stays(self, root, tmp_path, monkeypatch, capsys):
        monkeypatch.chdir(tmp_path)
        (tmp_path / "CT.csv").write_text("by hand")
        assert main(["--root", str(root), "--modality", "CT"]) == 2
        assert "CT.csv: expected a table that is not there yet (--output FILE)" in capsys.readouterr().err
        assert (tmp_path / "CT.csv").read_text() == "by hand"

    def test_warns_of_patients_on_both_sides(self, root, tmp_path, capsys):
        lines = [f"{'val' if name.endswith('1') else 'train'},{name}" for case in (2, 3, 16, 20, 31)
                 for name in slices(case, 4)]
        (root / "CT-MRI/split.csv").write_text("\n".join(["split,name", *lines]))
        # The split that is there is taken, as in training.
        main(["--root", str(root), "--modality", "CT", "--output", str(tmp_path / "a.csv")])
        assert "5 patients with slices in both train and val" in capsys.readouterr().out
        main(["--root", str(root), "--modality", "all", "--output", str(tmp_path / "b.csv")])
        assert read_table(tmp_path / "b.csv", root).drop(columns="name").equals(find_table(root))
        assert main(["--root", str(root), "--modality", "CT", "--output", str(tmp_path / "c.csv"), "--draw"]) == 0
        capsys.readouterr()
        assert (read_table(tmp_path / "c.csv", root).groupby("group")["split"].nunique() == 1).all()
        with pytest.raises(SystemExit):
            main(["--root", str(root), "--modality", "CT", "--draw", "--split-csv", "split.csv"])
        assert "--draw or --split-csv" in capsys.readouterr().err

    @pytest.mark.parametrize("start", [["-m", "tools.make_csv"], ["tools/make_csv.py"]])
    def test_errors_are_one_line_and_status_2(self, tmp_path, start):
        done = subprocess.run([sys.executable, *start, "--root", str(tmp_path / "none"), "--modality", "CT"],
                              check=False, cwd=REPOSITORY, capture_output=True, text=True)
        assert done.returncode == 2 and done.stdout == ""
        assert done.stderr.count("\n") == 1 and str(tmp_path / "none") in done.stderr


@pytest.mark.skipif(not HARVARD.is_dir(), reason="the Harvard pairs are not beside this checkout")
class TestHarvard:
    @pytest.mark.parametrize(("modality", "train"), [("CT", 144), ("PET", 194), ("SPECT", 260)])
    def test_usual_split(self, modality, train):
        table = make_table(HARVARD, modality, split_csv="split.csv")
        assert table["split"].value_counts().to_dict() == {"train": train, "val": 20}

    def test_split_by_patient(self, tmp_path):
        table = make_table(HARVARD, "all")
        assert len(table) == 144 + 194 + 260 + 60
        assert (table.groupby("group")["split"].nunique() == 1).all()
        assert {"2", "16"} <= set(table.loc[table["modality"] == "CT", "group"])
        table.to_csv(tmp_path / "all.csv", index=False)
        assert len(read_table(tmp_path / "all.csv", HARVARD, split="val")) == (table["split"] == "val").sum()
