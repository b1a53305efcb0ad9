"""Standardised uptake values of PET (SUV, by body weight)."""

from datetime import datetime

from pydicom.dataset import Dataset
from pydicom.valuerep import DA, TM


def suv_factor(dataset: Dataset) -> float | None:
    """Compute the factor from activity in Bq/ml to SUV in g/ml; None if the header does not tell it for sure.

    SUV = activity (g body weight) / (dose decayed to the time that the images are corrected to), as in the
    vendor-neutral scheme of the Quantitative Imaging Biomarkers Alliance (FDG-PET/CT profile 1.13, appendix G).

    Args:
        dataset: a PET image with Units BQML.
    """
    if dataset.get("Units") != "BQML" or not dataset.get("PatientWeight"):
        return None
    if "ATTN" not in (dataset.get("CorrectedImage") or []):
        return None
    drug = (dataset.get("RadiopharmaceuticalInformationSequence") or [Dataset()])[0]
    dose = float(drug.get("RadionuclideTotalDose") or 0)
    correction = dataset.get("DecayCorrection")
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


def _time(date: str | None, time: str | None) -> datetime | None:
    try:
        return datetime.combine(DA(date), TM(time)) if date and time else None
    except ValueError:
        return None
