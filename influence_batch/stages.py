"""What the stages of an audit hand to each other."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa

from influence_batch.config import AuditConfig
from influence_batch.dataset import Dataset, Inspection
from influence_batch.dataset.columns import storage_type
from influence_batch.dataset.shards import Step
from influence_batch.dataset.showing import Shown
from influence_batch.detection import Reading, Settled
from influence_batch.execution import Executor
from influence_batch.execution.parts import Store
from influence_batch.influence import ApproximationError, Fit, Objective, TrainInfluence
from influence_batch.models import Loss
from influence_batch.plan import Plan
from influence_batch.solvers import Deferred, SolveResult
from influence_batch.storage import Place
from influence_batch.verdicts import Located

# (stage, how much is done, of how much)
Progress = Callable[[str, int, int], None]


def quiet(stage: str, done: int, total: int) -> None:
    """Progress that nobody watches."""


@dataclass(frozen=True)
class Prepared:
    """What config and file footers say: `read` does the rest.

    Attributes:
        files: state of each file that the audit reads, before it does.
        verdicts: of reviewers, as `check_verdicts` gives them; None where there are none.
        shown: how the page shows examples; None where there is no page.
    """

    config: AuditConfig
    train: Dataset
    test: Dataset | None
    regression: bool
    files: Mapping[str, str]
    verdicts: pd.DataFrame | None = None
    shown: Shown | None = None


@dataclass(frozen=True)
class Data:
    """Checked data: datasets that encode their labels, ids and labels of every row, the loss.

    Attributes:
        executor: where shards are worked on.
        store: where the stages keep what they have computed.
        located: reviewers' verdicts, by row.
    """

    prepared: Prepared
    plan: Plan
    train: Dataset
    test: Dataset | None
    train_inspection: Inspection
    test_inspection: Inspection | None
    loss: Loss
    executor: Executor
    store: Store
    located: Located | None = None

    @property
    def settled(self) -> Settled:
        """Rows of which verdicts leave nothing to be asked."""
        return Settled() if self.located is None else self.located.settled

    def decode(self, values: np.ndarray) -> pa.Array:
        """Class codes, or numbers of a regression, as labels in the user's type."""
        if self.train.classes is None:
            return pa.array(values, type=pa.float64())
        return pa.array(self.train.classes, type=storage_type(self.train.columns.label_type)).take(
            pa.array(values)
        )


@dataclass(frozen=True)
class Model:
    """A model at its optimum: objective (features fitted, intercept in place) and weights.

    Attributes:
        l2: as configured or chosen.
        l2_losses: mean leave-one-out loss by l2, of those that were tried.
        begun_at: the earlier run from whose weights the fit began, if there was one.
        inverse: the inverse Hessian, where the fit had to form it.
    """

    objective: Objective
    test: Dataset | None
    fit: Fit
    l2: float
    l2_losses: Mapping[float, float] = field(default_factory=dict)
    begun_at: str | None = None
    inverse: Deferred | None = None

    @property
    def coefficients(self) -> np.ndarray:
        """Weights (k, d) without the intercept's, 0 of features that are left out."""
        dataset = self.objective.dataset
        weights = self.fit.weights
        return dataset.widened(weights[:, : weights.shape[1] - dataset.intercept])

    def arrays_of(self, step: Step) -> dict[str, np.ndarray]:
        """A fitted step's arrays, with features that are left out: standardize leaves those as they are."""
        dataset = self.objective.dataset
        if dataset.used is None:
            return dict(vars(step))
        return {name: dataset.widened(values, float(name == "scale")) for name, values in vars(step).items()}


@dataclass(frozen=True)
class Explained:
    """The inverse Hessian of so many parameters, and what it says of each training example.

    Attributes:
        factored: whether a solve is no pass over the data, and exact.
        error: of an approximate inverse.
    """

    inverse: Deferred
    factored: bool
    parameters: int
    train: TrainInfluence
    error: ApproximationError | None = None

    def as_preconditioner(self, objective: Objective) -> Objective:
        """An objective of nearly all of the same rows, CG on whose Hessian begins from this inverse.

        It takes some three passes in the place of ten; without a factored inverse nothing changes.
        """
        if not self.factored:
            return objective
        return objective.with_near_inverse(self.inverse.backsolve)


@dataclass(frozen=True)
class Crossed:
    """Test points and mean influences; cross_influence itself is on disk already.

    Attributes:
        test_points: columns of the table.
        own_rows: (m,) rows of train that are the test points, None where there is a test set.
        mean_first_order, mean_leave_one_out: (n,) influence on the mean test loss.
        mean_solve: the solve behind those.
        mean_gradient: (p,) of the mean test loss.
    """

    test_points: Mapping[str, Any]
    own_rows: np.ndarray | None
    mean_first_order: Any
    mean_leave_one_out: Any
    mean_solve: SolveResult
    mean_gradient: np.ndarray

    def mean_over_others(
        self, rows: slice, self_influence: np.ndarray, self_leave_one_out: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """Mean influences of some rows, that of a row on itself left out: it says nothing of others."""
        first, corrected = self.mean_first_order[rows], self.mean_leave_one_out[rows]
        if self.own_rows is None or len(self.own_rows) == 1:
            return first, corrected
        first, corrected = first.copy(), corrected.copy()
        n_test = len(self.own_rows)
        own = self.own_rows[(self.own_rows >= rows.start) & (self.own_rows < rows.stop)] - rows.start
        first[own] = (n_test * first[own] - self_influence[own]) / (n_test - 1)
        corrected[own] = (n_test * corrected[own] - self_leave_one_out[own]) / (n_test - 1)
        return first, corrected


@dataclass(frozen=True)
class Listing:
    """The order of suspicion.

    Attributes:
        rank: (n,) 1 for the most suspect example.
        suspect: (n,) mask of the list.
    """

    rank: np.ndarray
    suspect: np.ndarray

    @property
    def rows(self) -> np.ndarray:
        """Rows of the list (s,), by rank."""
        listed = np.flatnonzero(self.suspect)
        rows: np.ndarray = listed[np.argsort(self.rank[listed])]
        return rows


@dataclass(frozen=True)
class Evidence:
    """What speaks against the label of the first e examples on the list, by rank.

    Attributes:
        columns: of the table `suspects`, (e,) each.
        outlier: (e,) whether the example is like no class, so that no label can be suggested.
    """

    columns: Mapping[str, Any]
    outlier: np.ndarray


@dataclass(frozen=True)
class Groups:
    """Groups of rows, compared.

    Attributes:
        tables: columns of the table `groups`, a block for each column of `group_by`.
        unconverged: steps without a group that missed their tolerance; what rests on them is NaN.
    """

    tables: Sequence[Mapping[str, Any]] = ()
    unconverged: int = 0


@dataclass(frozen=True)
class Found:
    """What detection hands to the report.

    Attributes:
        self_check: predicted against real change, None where it was not asked for.
    """

    reading: Reading
    listing: Listing
    evidence: Evidence
    groups: Groups = Groups()
    self_check: Mapping[str, Any] | None = None


@dataclass(frozen=True)
class Outcome:
    """A finished run."""

    run_dir: Place
    run: Mapping[str, Any] = field(repr=False)

    def summary(self) -> dict[str, Any]:
        """The object that `influence-batch audit --json` prints."""
        detection = self.run["detection"]
        return {
            "run_dir": str(self.run_dir),
            "n_train": self.run["train"]["rows"],
            "n_test": self.run["test"]["rows"],
            "n_suspects": detection["n_suspects"],
            "estimated_errors": detection["estimated_errors"],
            "estimated_errors_low": detection["estimated_errors_low"],
            "estimated_errors_high": detection["estimated_errors_high"],
            "estimated_precision": detection["estimated_precision"],
            **{name: value for name, value in detection.items() if name.startswith("measured_")},
            "history": self.run["history"],
            "review": self.run["review"],
            "notes": self.run["notes"],
            "gates": self.run["gates"],
            "seconds": self.run["seconds"],
        }


class Clock:
    """Wall time by stage, in seconds: `with clock("fit"): ...`."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._stage = ""
        self._start = 0.0

    def __call__(self, stage: str) -> Clock:
        self._stage = stage
        return self

    def __enter__(self) -> None:
        self._start = time.perf_counter()

    def described(self) -> dict[str, Any]:
        """What run.json has of it beside the seconds; see `profile.Profile`."""
        return {}

    def __exit__(self, *_: object) -> None:
        self.seconds[self._stage] = time.perf_counter() - self._start
