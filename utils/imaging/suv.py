"""Standardised uptake values of PET (SUV, by body weight)."""

from datetime import datetime

from pydicom.dataset import Dataset
from pydicom.valuerep import DA, TM


def suv_factor(dataset: Dataset) -> float | None:
    """Compute the factor from activity in Bq/ml to SUV in g/ml; None if the header does not tell it for sure.

    SUV = activity (g body weight) / (dose decayed to the time that the images are corrected to), as in the
    vendor-neutral scheme of the Quantitative Imaging Biomarkers Alliance (FDG-PET/CT profile 1.13, appendix G).

    Args:
        dataset: a PET image with Units BQML, in capitals or not.
    """
    if _term(dataset, "Units").replace("/", "") != "BQML" or not dataset.get("PatientWeight"):
        return None
    if "ATTN" not in _term(dataset, "CorrectedImage"):
        return None
    drug = (dataset.get("RadiopharmaceuticalInformationSequence") or [Dataset()])[0]
    dose = float(drug.get("RadionuclideTotalDose") or 0)
    correction = _term(dataset, "DecayCorrection")
    decay = 1.0
    if correction == "START":
        half_life = float(drug.get("RadionuclideHalfLife") or 0)
        scan = _time(dataset.get("SeriesDate"), dataset.get("SeriesTime"))
        acquisition = _time(dataset.get("AcquisitionDate"), dataset.get("AcquisitionTime"))
        injection = _time(dataset.get("SeriesDate"), drug.get("RadiopharmaceuticalStartTime"))
        # A series that was made anew later than it was taken does not say when the scan began.
        if not half_life or not scan or not injection or not acquisition or scan > acquisition:
            return None
        seconds = (scan - injection).total_seconds() % 86400  # injections before midnight
        decay = 0.5 ** (seconds / half_life)
    elif correction != "ADMIN":
        return None
    return 1000 * float(dataset.PatientWeight) / (dose * decay) if dose > 0 else None


def _term(dataset: Dataset, name: str) -> str:
    """Return the terms of a tag, in capitals as DICOM writes them."""
    return str(dataset.get(name) or "").strip().upper()


def _time(date: str | None, time: str | None) -> datetime | None:
    try:
        return datetime.combine(DA(date), TM(time)) if date and time else None
    except ValueError:
        return None
