"""The one schema of the config file: keys, defaults, checks and their messages."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import (
    AfterValidator,
    BeforeValidator,
    ByteSize,
    Field,
    SerializerFunctionWrapHandler,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_serializer,
    model_validator,
)
from pydantic_core import PydanticCustomError

from influence_batch.config_errors import told
from influence_batch.config_files import apply_override, apply_settings, check_place, plain, read_yaml
from influence_batch.config_gates import GatesConfig, flagged_for_gate, require_possible
from influence_batch.config_notify import NotifyConfig
from influence_batch.config_report import ReportConfig, with_absolute_folder
from influence_batch.config_section import Float as _Float
from influence_batch.config_section import Int as _Int
from influence_batch.config_section import Section as _Section
from influence_batch.config_section import no_truth_value as _no_truth_value
from influence_batch.errors import InputError


class TrainSource(_Section):
    path: str = Field(description="a Parquet file, folder, glob or fsspec URL")
    id: str | None = Field(
        None, description="name of the column with unique ids; without it the row number serves"
    )
    label: str = Field(description="name of the label column")
    features: str | list[str] | None = Field(
        None,
        description="a column name, a list of names, or patterns such as 'pixel_*'; "
        "without it, the only list column, or else every numeric column beside id and label",
    )


class TestSource(_Section):
    path: str = Field(description="a Parquet file, folder, glob or fsspec URL")
    id: str | None = Field(None, description="name of the id column (default: as in train)")
    label: str | None = Field(None, description="name of the label column (default: as in train)")
    features: str | list[str] | None = Field(None, description="feature columns (default: as in train)")
    trusted: bool = Field(False, description="true or false: true when the test labels are known to be right")


class Standardize(_Section):
    kind: Literal["standardize"] = "standardize"


class UnitNorm(_Section):
    kind: Literal["unit_norm"] = "unit_norm"


class Pca(_Section):
    kind: Literal["pca"] = "pca"
    components: _Int = Field(50, ge=1, description="a whole number of components, 1 or more")
    whiten: bool = Field(False, description="true or false: true scales every component to unit variance")


_Positive = Annotated[_Float, Field(gt=0, allow_inf_nan=False)]
_Seconds = Annotated[
    _Positive, Field(description="seconds to wait for the scheduler and for a first worker: a number above 0")
]
_Gamma = Annotated[
    _Positive | Literal["scale"],
    Field(description="a number above 0, or scale for near 1 / (d * variance): kernel exp(-gamma |x - y|^2)"),
]


class RandomFourier(_Section):
    kind: Literal["random_fourier"] = "random_fourier"
    components: _Int = Field(1000, ge=1, description="a whole number of features, 1 or more")
    gamma: _Gamma = "scale"


class Nystroem(_Section):
    kind: Literal["nystroem"] = "nystroem"
    components: _Int = Field(500, ge=1, description="a whole number of landmark rows, 1 or more")
    gamma: _Gamma = "scale"


StepConfig = Annotated[Standardize | UnitNorm | Pca | RandomFourier | Nystroem, Field(discriminator="kind")]


def _with_kind(value: Any) -> Any:
    """`cg` for `{kind: cg}`; a section that names no kind keeps the default one."""
    if isinstance(value, str):
        return {"kind": value}
    return {"kind": "auto", **value} if isinstance(value, Mapping) else value


def _with_cluster_kind(value: Any) -> Any:
    """`local` for `{kind: local}`; an empty section is no cluster."""
    if value == {}:
        return {"kind": "none"}
    return {"kind": value} if isinstance(value, str) else value


def _as_steps(value: Any) -> Any:
    """`raw`, a name, a mapping or a list of those, as a list of mappings."""
    if value is None or value == "raw":
        return []
    steps = value if isinstance(value, (list, tuple)) else [value]
    return [{"kind": step} if isinstance(step, str) else step for step in steps if step != "raw"]


def _as_names(value: Any) -> Any:
    """One name as a list, nothing as an empty one."""
    if value is None:
        return []
    return [value] if isinstance(value, str) else value


def _without_repetitions(names: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(names))


class ModelConfig(_Section):
    kind: Literal["squared", "logistic", "softmax", "smooth_hinge"] = Field(
        "softmax", description="squared, logistic, softmax or smooth_hinge"
    )
    task: Literal["auto", "classification", "regression"] = Field(
        "auto",
        description="auto, classification or regression; auto takes numeric labels under `squared` "
        "for regression and everything else for classification",
    )
    l2: Annotated[_Float, Field(ge=0, allow_inf_nan=False)] | Literal["auto"] = Field(
        1e-3, description="a number, 0 or more, or auto (by leave-one-out loss)"
    )
    intercept: bool = Field(True, description="true or false")
    penalize_intercept: bool = Field(False, description="true or false")
    temperature: _Float = Field(
        0.1, gt=0, allow_inf_nan=False, description="smooth_hinge only: a number above 0"
    )
    features: Annotated[tuple[StepConfig, ...], BeforeValidator(_as_steps)] = Field(
        (), description="raw, standardize, unit_norm, pca, random_fourier, nystroem, or a list of steps"
    )
    weights: str | None = Field(
        None,
        description="path of an .npz file with coef (d, k) or (d,) and, with an intercept, intercept (k,)",
    )
    require_optimum: bool = Field(
        True, description="true or false: true refuses weights that are no optimum of the objective"
    )
    gradient_tolerance: _Float = Field(
        1e-8,
        gt=0,
        allow_inf_nan=False,
        description="a number above 0: largest gradient norm of the objective, "
        "relative to the root mean square norm of the examples' gradients at zero weights",
    )
    max_iterations: _Int = Field(200, ge=1, description="a whole number of Newton iterations, 1 or more")

    @model_validator(mode="after")
    def _weights_have_their_l2(self) -> Self:
        if self.weights is not None and self.l2 == "auto":
            raise PydanticCustomError("l2_of_weights", "weights with the l2 that they were fitted with")
        return self


_Rtol = Annotated[_Float, Field(gt=0, lt=1, description="a number between 0 and 1: largest |b - Hx| / |b|")]


class _SolverSection(_Section):
    rtol: _Rtol = 1e-8
    on_unconverged: Literal["raise", "flag"] = Field(
        "raise",
        description="raise, or flag (the row is written with converged = false); default: raise, or flag "
        "where gates.unconverged is set",
    )
    precision: Literal["auto", "float64", "float32"] = Field(
        "auto", description="auto, float64 or float32: of the products that leverages are made of"
    )


class AutoSolver(_SolverSection):
    kind: Literal["auto"] = "auto"


class DirectSolver(_SolverSection):
    kind: Literal["direct"] = "direct"


class CgSolver(_SolverSection):
    kind: Literal["cg"] = "cg"
    max_iterations: _Int = Field(1000, ge=1, description="a whole number of iterations, 1 or more")


class LissaSolver(_SolverSection):
    kind: Literal["lissa"] = "lissa"
    rtol: _Rtol = 1e-6
    scale: _Positive | Literal["auto"] = Field(
        "auto", description="a number above the largest eigenvalue of H, or auto (found by power iteration)"
    )
    depth: _Int = Field(100, ge=1, description="terms of the series a round: a whole number, 1 or more")
    repeat: _Int = Field(
        1, ge=1, description="independent series averaged a round: a whole number, 1 or more"
    )
    batch_size: _Int = Field(
        1000, ge=1, description="training examples drawn a term: a whole number, 1 or more"
    )
    max_rounds: _Int = Field(
        200, ge=1, description="rounds, each on the residual of the last: a whole number, 1 or more"
    )


class EkfacSolver(_SolverSection):
    kind: Literal["ekfac"] = "ekfac"
    rtol: _Rtol = 1e-3
    max_iterations: _Int = Field(1000, ge=1, description="a whole number of iterations, 1 or more")


SolverConfig = Annotated[
    AutoSolver | DirectSolver | CgSolver | LissaSolver | EkfacSolver,
    Field(discriminator="kind"),
    BeforeValidator(_with_kind),
]


class InfluenceConfig(_Section):
    top_k: _Int = Field(20, ge=1, description="a whole number, 1 or more")
    estimator: Literal["leave_one_out", "first_order"] = Field(
        "leave_one_out", description="leave_one_out or first_order: ranks cross_influence"
    )
    same_label: bool = Field(
        False,
        description="true or false: true ranks, for each test point, only training examples of its own label",
    )
    damping: _Float = Field(
        0.0, ge=0, allow_inf_nan=False, description="a number, 0 or more: added to the diagonal of H"
    )
    test_sample: _Int = Field(
        1000,
        ge=2,
        description="a whole number, 2 or more: rows of train that serve as test points where there is no "
        "test set",
    )


class DetectionConfig(_Section):
    # At the edge of the list one row in three is wrong: an error that is missed costs more than a row that is
    # looked at for nothing, and mean F1 is at its highest there (README, "Measured").
    threshold: _Float = Field(0.33, ge=0, le=1, description="a number from 0 to 1 on p_mislabeled")
    budget: _Int | None = Field(
        None,
        ge=1,
        description="a whole number, 1 or more: length of the list, which then replaces the threshold",
    )
    target_precision: _Float | None = Field(
        None,
        gt=0,
        le=1,
        description="a number above 0, up to 1: estimated share of the list that is wrong, which then "
        "replaces the threshold",
    )
    evidence: _Int = Field(
        5000,
        ge=0,
        description="a whole number, 0 or more: rows from the top of the list that get neighbours, "
        "test points and a reason",
    )

    @model_validator(mode="after")
    def _budget_or_precision(self) -> Self:
        if self.budget is not None and self.target_precision is not None:
            raise PydanticCustomError("budget_and_precision", "budget or target_precision, not both")
        return self


class NoCluster(_Section):
    kind: Literal["none"] = "none"


class LocalCluster(_Section):
    kind: Literal["local"] = "local"
    workers: Annotated[_Int, Field(ge=1)] | Literal["auto"] = Field(
        "auto",
        description="a whole number of processes on this machine, 1 or more, or auto (one for each core)",
    )
    threads_per_worker: _Int = Field(1, ge=1, description="a whole number, 1 or more")


class ClusterAddress(_Section):
    kind: Literal["address"] = "address"
    address: str = Field(description="address of a running Dask scheduler, such as tcp://10.0.0.7:8786")
    timeout: _Seconds = 60.0


class Adapt(_Section):
    minimum: _Int = Field(1, ge=1, description="a whole number of workers, 1 or more")
    maximum: _Int = Field(ge=1, description="a whole number of workers, at least minimum")

    @model_validator(mode="after")
    def _maximum_is_larger(self) -> Self:
        if self.maximum < self.minimum:
            raise PydanticCustomError("smaller_maximum", "a maximum that is at least the minimum")
        return self


class ClusterClass(_Section):
    kind: Literal["class"] = "class"
    class_path: str = Field(
        alias="class",
        pattern=r"^[A-Za-z_]\w*(\.[A-Za-z_]\w*)+$",
        description="import path of a Dask cluster class, such as dask_jobqueue.SLURMCluster",
    )
    kwargs: dict[str, Any] = Field({}, description="a mapping with the arguments of the class")
    scale: _Int | None = Field(
        None, ge=1, description="a whole number of workers, 1 or more (default: as the class starts)"
    )
    adapt: Adapt | None = None
    # Batch systems queue: workers come when the job starts.
    timeout: _Seconds = 300.0

    @model_validator(mode="after")
    def _scale_or_adapt(self) -> Self:
        if self.scale is not None and self.adapt is not None:
            raise PydanticCustomError("scale_and_adapt", "scale or adapt, not both")
        return self

    @model_serializer(mode="wrap")
    def _as_written(self, serialize: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Under the key `class`, so that a config in run.json can be read again."""
        return {"class" if key == "class_path" else key: item for key, item in serialize(self).items()}


ClusterConfig = Annotated[
    NoCluster | LocalCluster | ClusterAddress | ClusterClass,
    Field(discriminator="kind"),
    BeforeValidator(_with_cluster_kind),
]


class AuditConfig(_Section):
    """One audit, as its config file describes it. Paths are absolute once loaded."""

    name: str = Field(
        "audit",
        pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$",
        description="letters, digits, dot, dash and underscore, a letter or digit first: the folder of its "
        "reports (default: name of the config file)",
    )
    train: TrainSource = Field(description="a mapping with the keys path, id, label, features")
    test: TestSource | None = None
    model: ModelConfig = ModelConfig()
    solver: SolverConfig = AutoSolver()
    influence: InfluenceConfig = InfluenceConfig()
    detection: DetectionConfig = DetectionConfig()
    group_by: Annotated[tuple[str, ...], BeforeValidator(_as_names), AfterValidator(_without_repetitions)] = (
        Field((), description="a column name of train, or a list of them, such as [annotator, source]")
    )
    self_check: _Int = Field(
        0,
        ge=0,
        description="a whole number, 0 or more: examples that are really left out and refitted without",
    )
    gates: GatesConfig = GatesConfig()
    notify: NotifyConfig | None = Field(None, description="a mapping with the keys url, on, headers")
    report: ReportConfig = ReportConfig()
    cluster: ClusterConfig = NoCluster()
    memory_limit: Annotated[ByteSize, BeforeValidator(_no_truth_value)] = Field(
        ByteSize(2 * 1024**3), ge=1024**2, description="a size such as 2GiB or 500MB, at least 1MiB"
    )
    shard_rows: _Int | None = Field(
        None, ge=1, description="a whole number, 1 or more: rows a shard (default: from memory_limit)"
    )
    reuse_features: bool = Field(
        True, description="true or false: whether features that cost are kept on disk for the next run"
    )
    seed: _Int = Field(0, ge=0, description="a whole number, 0 or more")
    reports: str = Field("reports", description="path of a folder, or an fsspec URL, for the reports")
    keep: _Int | None = Field(
        None,
        ge=1,
        description="a whole number, 1 or more: how many of the newest runs stay, and reviewed ones besides "
        "(default: all)",
    )

    @model_validator(mode="before")
    @classmethod
    def _flagged_for_the_gate(cls, content: Any) -> Any:
        return flagged_for_gate(content)

    @field_validator("gates")
    @classmethod
    def _gates_that_can_fail(cls, gates: GatesConfig, info: ValidationInfo) -> GatesConfig:
        return require_possible(gates, info.data)


def load_config(
    config: str | Path | Mapping[str, Any] | AuditConfig,
    overrides: Sequence[str] = (),
    reports: str | Path | None = None,
    settings: Mapping[str, Any] | None = None,
) -> AuditConfig:
    """Read, override and check a config.

    Args:
        config: path of a YAML file, or its content as a mapping. Relative paths in a file count
            from the file's folder, those in a mapping from the working directory.
        overrides: `key.key=value`, the value read as YAML.
        reports: replaces `reports`; counts from the working directory.
        settings: keys to change, laid out as in a config; overrides go on top.

    Raises:
        InputError: with every problem found, one a line.
    """
    if isinstance(config, AuditConfig):
        if not overrides and reports is None and not settings:
            return config
        set_keys = config.solver.model_fields_set
        config = config.model_dump(mode="json")
        if "on_unconverged" not in set_keys:
            del config["solver"]["on_unconverged"]  # its default depends on a gate, which overrides may set
    if isinstance(config, Mapping):
        source, folder, content = "config", Path.cwd(), plain(config)
    else:
        source, folder = str(config), Path(config).absolute().parent
        content = read_yaml(Path(config))
    apply_settings(content, settings or {})
    for override in overrides:
        apply_override(content, override)
    # `test: null` and an empty section mean the defaults.
    content = {key: value for key, value in content.items() if value is not None}
    if not isinstance(config, Mapping):
        content.setdefault("name", Path(config).stem)
    try:
        checked = AuditConfig.model_validate(content)
    except ValidationError as error:
        # A union reports each of its members: the first says enough.
        messages: dict[str, str] = {}
        for item in error.errors():
            key, message = told(item, AuditConfig)
            messages.setdefault(key.split("[")[0] if item["type"].endswith("_type") else key, message)
        raise InputError("\n".join(f"{source}: {message}" for message in messages.values())) from None
    return _with_absolute_paths(checked, folder, reports)


def _with_absolute_paths(config: AuditConfig, folder: Path, reports: str | Path | None) -> AuditConfig:
    def absolute(path: str) -> str:
        return path if "://" in path else str((folder / Path(path).expanduser()).resolve())

    update: dict[str, Any] = {"train": config.train.model_copy(update={"path": absolute(config.train.path)})}
    if config.test is not None:
        update["test"] = config.test.model_copy(update={"path": absolute(config.test.path)})
    if config.model.weights is not None:
        update["model"] = config.model.model_copy(update={"weights": absolute(config.model.weights)})
    update["report"] = with_absolute_folder(config.report, absolute)
    given = config.reports if reports is None else str(reports)
    check_place(given)
    update["reports"] = absolute(given) if reports is None or "://" in given else str(Path(given).absolute())
    return config.model_copy(update=update)
