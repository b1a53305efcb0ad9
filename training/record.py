"""What is noted of a training run: every checkpoint keeps it, and a resumed run goes on from it."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from training.options import Options


@dataclass
class Record:
    """The state of a run, but for its weights.

    Attributes:
        options: of the run.
        pairs: number and digest of the pairs that the run trains on; None in a run of an older version.
        processes: number of processes that train together; None in a run of an older version.
        teacher: SHA-256 digest of the teacher's file.
        stage: name of the current stage.
        stage_began: where in the run the stage began, in epochs or minutes.
        step: number of steps made.
        stage_step: number of steps made when the stage began.
        seconds: training time, without validation and saving.
        best: smallest validation score of the stage.
        sums: each loss summed over the steps of the current epoch.
        history: a row per epoch and stage.
        inference: how the network is best used: the arguments `passes` and `average` of `EDARFusion.forward`.
        finished: whether the last stage has ended.
    """

    options: Options
    stage: str
    pairs: str | None = None
    processes: int | None = None
    teacher: str | None = None
    stage_began: float = 0.0
    step: int = 0
    stage_step: int = 0
    seconds: float = 0.0
    best: float | None = None
    sums: dict[str, float] = field(default_factory=dict)
    history: list[dict[str, float | str]] = field(default_factory=list)
    inference: dict[str, int | bool] = field(default_factory=dict)
    finished: bool = False

    def to_json(self) -> dict[str, Any]:
        """Return the record as checkpoints keep it."""
        return vars(self) | {"options": dataclasses.asdict(self.options)}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> "Record":
        """Read what `to_json` or an older version has written; see the attributes for what those did not note."""
        known = {entry.name for entry in dataclasses.fields(cls)}
        values = {name: value for name, value in values.items() if name in known}
        options = Options.from_record(values["options"])
        stage = values.get("stage", next(iter(options.plan)))
        began = options.plan[stage][0] * options.length
        return cls(**{"stage": stage, "stage_began": began} | values | {"options": options})
