"""utils/imaging/suv.py: uptake values by body weight, and None where the header leaves a doubt."""

import pytest
from pydicom.dataset import Dataset

from utils.imaging.suv import suv_factor


def pet(**tags: object) -> Dataset:
    """FDG: 70 kg, 370 MBq one half-life before the scan."""
    drug = Dataset()
    drug.RadionuclideTotalDose, drug.RadionuclideHalfLife = 370e6, 6586.2
    drug.RadiopharmaceuticalStartTime = "081013.8"
    dataset = Dataset()
    defaults = {
        "Units": "BQML", "PatientWeight": 70, "CorrectedImage": ["DECY", "ATTN"], "DecayCorrection": "START",
        "SeriesDate": "20240301", "AcquisitionDate": "20240301", "SeriesTime": "100000", "AcquisitionTime": "100200",
        "RadiopharmaceuticalInformationSequence": [drug],
    }  # fmt: skip
    for name, value in (defaults | tags).items():
        if value is not None:
            setattr(dataset, name, value)
    return dataset


def test_half_of_the_dose_is_left_after_a_half_life() -> None:
    assert suv_factor(pet()) == pytest.approx(70_000 / 185e6, rel=1e-6)


@pytest.mark.parametrize("units", ["bqml", "Bq/ml", " BQML "])
def test_capitals_make_no_difference(units: str) -> None:
    dataset = pet(CorrectedImage=["decy", "attn"], DecayCorrection="start")
    dataset.add_new("Units", "LO", units)
    assert suv_factor(dataset) == suv_factor(pet())


def test_a_dose_given_for_the_time_of_injection_does_not_decay() -> None:
    assert suv_factor(pet(DecayCorrection="ADMIN")) == pytest.approx(70_000 / 370e6, rel=1e-6)


def test_an_injection_before_midnight_counts_from_the_day_before() -> None:
    dataset = pet(SeriesTime="003000", AcquisitionTime="003100")
    dataset.RadiopharmaceuticalInformationSequence[0].RadiopharmaceuticalStartTime = "233000"
    assert suv_factor(dataset) == pytest.approx(70_000 / (370e6 * 0.5 ** (3600 / 6586.2)), rel=1e-6)


@pytest.mark.parametrize(
    "tags",
    [
        {"Units": "CNTS"}, {"PatientWeight": None}, {"CorrectedImage": ["DECY"]}, {"DecayCorrection": "NONE"},
        {"SeriesTime": "113000"}, {"AcquisitionTime": None}, {"RadiopharmaceuticalInformationSequence": None},
    ],
)  # fmt: skip
def test_no_factor_where_the_header_does_not_say(tags: dict) -> None:
    assert suv_factor(pet(**tags)) is None
