"""The one schema of the config file: keys, defaults, checks and their messages."""

from __future__ import annotations

import difflib
import re
import types
import typing
from collections.abc import Mapping, Sequence
from datetime import date
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import (
    BaseModel,
    BeforeValidator,
    ByteSize,
    ConfigDict,
    Field,
    ValidationError,
)
from pydantic_core import PydanticCustomError

from influence_batch.errors import InputError


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())


def _no_truth_value(value: Any) -> Any:
    """Pydantic would take `l2: true` for 1.0."""
    if isinstance(value, bool):
        raise PydanticCustomError("truth_value", "a truth value is no number")
    return value


_Int = Annotated[int, BeforeValidator(_no_truth_value)]
_Float = Annotated[float, BeforeValidator(_no_truth_value)]


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
_Gamma = Annotated[
    _Positive | Literal["scale"],
    Field(description="a number above 0, or scale for 1 / (d * variance): kernel exp(-gamma |x - y|^2)"),
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


def _as_steps(value: Any) -> Any:
    """`raw`, a name, a mapping or a list of those, as a list of mappings."""
    if value is None or value == "raw":
        return []
    steps = value if isinstance(value, (list, tuple)) else [value]
    return [{"kind": step} if isinstance(step, str) else step for step in steps if step != "raw"]


class ModelConfig(_Section):
    kind: Literal["squared", "logistic", "softmax", "smooth_hinge"] = Field(
        "softmax", description="squared, logistic, softmax or smooth_hinge"
    )
    task: Literal["auto", "classification", "regression"] = Field(
        "auto",
        description="auto, classification or regression; auto takes numeric labels under `squared` "
        "for regression and everything else for classification",
    )
    l2: _Float = Field(1e-3, ge=0, allow_inf_nan=False, description="a number, 0 or more")
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


_Rtol = Annotated[_Float, Field(gt=0, lt=1, description="a number between 0 and 1: largest |b - Hx| / |b|")]


class _SolverSection(_Section):
    rtol: _Rtol = 1e-8
    on_unconverged: Literal["raise", "flag"] = Field(
        "raise", description="raise, or flag (the row is written with converged = false)"
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


SolverConfig = Annotated[
    AutoSolver | DirectSolver | CgSolver | LissaSolver,
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
    threshold: _Float = Field(0.5, ge=0, le=1, description="a number from 0 to 1 on p_mislabeled")
    budget: _Int | None = Field(
        None,
        ge=1,
        description="a whole number, 1 or more: length of the list, which then replaces the threshold",
    )


class ClusterConfig(_Section):
    kind: Literal["none"] = Field("none", description="none (this version runs in process)")


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
    cluster: ClusterConfig = ClusterConfig()
    memory_limit: Annotated[ByteSize, BeforeValidator(_no_truth_value)] = Field(
        ByteSize(2 * 1024**3), ge=1024**2, description="a size such as 2GiB or 500MB, at least 1MiB"
    )
    shard_rows: _Int | None = Field(
        None, ge=1, description="a whole number, 1 or more: rows a shard (default: from memory_limit)"
    )
    seed: _Int = Field(0, ge=0, description="a whole number, 0 or more")
    reports: str = Field("reports", description="path of a local folder, for the reports")


def load_config(
    config: str | Path | Mapping[str, Any] | AuditConfig,
    overrides: Sequence[str] = (),
    reports: str | Path | None = None,
) -> AuditConfig:
    """Read, override and check a config.

    Args:
        config: path of a YAML file, or its content as a mapping. Relative paths in a file count
            from the file's folder, those in a mapping from the working directory.
        overrides: `key.key=value`, the value read as YAML.
        reports: replaces `reports`; counts from the working directory.

    Raises:
        InputError: with every problem found, one a line.
    """
    if isinstance(config, AuditConfig):
        if not overrides and reports is None:
            return config
        config = config.model_dump(mode="json")
    if isinstance(config, Mapping):
        source, folder, content = "config", Path.cwd(), _plain(config)
    else:
        source, folder = str(config), Path(config).absolute().parent
        content = _read_yaml(Path(config))
    for override in overrides:
        _apply_override(content, override)
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
            key, message = _message(item)
            messages.setdefault(key.split("[")[0] if item["type"].endswith("_type") else key, message)
        raise InputError("\n".join(f"{source}: {message}" for message in messages.values())) from None
    return _with_absolute_paths(checked, folder, reports)


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return str(value) if isinstance(value, Path) else value


class _Loader(yaml.SafeLoader):
    """Refuses a key that stands twice in one mapping, of which YAML would keep the last."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.tag != "tag:yaml.org,2002:merge":
                if key.value in seen:
                    raise yaml.constructor.ConstructorError(
                        None, None, f"the key {key.value} stands twice", key.start_mark
                    )
                seen.add(key.value)
        return super().construct_mapping(node, deep)


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        content = yaml.load(path.read_text(encoding="utf-8"), _Loader)
    except FileNotFoundError:
        raise InputError(f"{path}: no such file; expected the path of a YAML config") from None
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: cannot be read ({error}); expected a YAML config") from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f"line {mark.line + 1}, column {mark.column + 1}: " if mark else ""
        problem = getattr(error, "problem", None) or "not readable"
        raise InputError(f"{path}: {where}not valid YAML ({problem})") from None
    if not isinstance(content, dict):
        found = "nothing" if content is None else type(content).__name__
        raise InputError(f"{path}: found {found}; expected keys such as `train:` and `model:`")
    plain: dict[str, Any] = _plain(content)
    return plain


def _apply_override(content: dict[str, Any], override: str) -> None:
    key, separator, text = override.partition("=")
    if not separator or not all(key.split(".")):
        raise InputError(f"--set {override}: expected KEY=VALUE, such as model.l2=1e-4")
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError:
        raise InputError(f"--set {override}: {text!r} is not a YAML value") from None
    *parents, last = key.split(".")
    section = content
    for parent in parents:
        inner = section.get(parent)
        if inner is None:
            inner = section[parent] = {}
        elif not isinstance(inner, dict):
            raise InputError(f"--set {override}: {parent} has no keys of its own, it is {inner!r}")
        section = inner
    section[last] = value


def _with_absolute_paths(config: AuditConfig, folder: Path, reports: str | Path | None) -> AuditConfig:
    def absolute(path: str) -> str:
        return path if "://" in path else str((folder / Path(path).expanduser()).resolve())

    update: dict[str, Any] = {"train": config.train.model_copy(update={"path": absolute(config.train.path)})}
    if config.test is not None:
        update["test"] = config.test.model_copy(update={"path": absolute(config.test.path)})
    if config.model.weights is not None:
        update["model"] = config.model.model_copy(update={"weights": absolute(config.model.weights)})
    # pathlib makes one slash of two.
    given = config.reports if reports is None else str(reports)
    if re.match(r"[A-Za-z][A-Za-z0-9+.-]+:/", given):
        raise InputError(f"reports: found the URL {given}; accepted in this version: a local folder")
    update["reports"] = absolute(given) if reports is None else str(Path(reports).absolute())
    return config.model_copy(update=update)


def _message(error: Any) -> tuple[str, str]:
    """One pydantic error in the user's words: its key, and key, what was found, what is accepted."""
    section, keys, field, kinds = _locate(error["loc"])
    key = ".".join(keys)
    found = _shown(error["input"])
    accepted = field.description if field is not None and field.description else error["msg"]
    if error["type"] == "extra_forbidden":
        known = list(section.model_fields) if section else []
        near = difflib.get_close_matches(keys[-1], known, n=1, cutoff=0.5)
        hint = f"did you mean `{near[0]}`? " if near else ""
        return key, f"{key}: unknown key; {hint}known keys: {', '.join(known)}"
    if error["type"] == "missing":
        return key, f"{key}: missing; this key has no default; accepted: {accepted}"
    if kinds and error["type"] in ("model_type", "model_attributes_type", "union_tag_not_found"):
        return key, f"{key}: found {found}; accepted: a mapping with `kind`: {', '.join(kinds)}"
    if section and error["type"] in ("model_type", "model_attributes_type"):
        return (
            key,
            f"{key}: found {found}; accepted: a mapping with the keys {', '.join(section.model_fields)}",
        )
    if error["type"] == "union_tag_invalid":
        tag = str(error["ctx"]["tag"])
        near = difflib.get_close_matches(tag, kinds, n=1, cutoff=0.5)
        hint = f" (did you mean {near[0]}?)" if near else ""
        # A feature step is mostly written as its name alone.
        part = key if key.endswith("]") else f"{key}.kind"
        return key, f"{part}: found {tag!r}{hint}; accepted: {', '.join(kinds)}"
    if error["type"] == "string_type" and not isinstance(error["input"], (list, dict, type(None))):
        return key, f"{key}: found {found}, which is no text without quotes; accepted: {accepted}"
    return key, f"{key}: found {found}; accepted: {accepted}"


def _shown(value: Any) -> str:
    """A value as YAML has it, near enough."""
    if value is None:
        return "nothing"
    if isinstance(value, bool):
        return str(value).lower()
    return str(value) if isinstance(value, date) else repr(value)


def _locate(loc: Sequence[str | int]) -> tuple[type[_Section] | None, list[str], Any, list[str]]:
    """The section an error stands in, its key as the user wrote it, its field, the kinds it may have."""
    section: type[_Section] | None = AuditConfig
    keys: list[str] = []
    field: Any = None
    options: list[type[_Section]] = []
    for part in loc:
        tagged = [s for s in options if s.model_fields["kind"].default == part]
        if tagged:
            section, options, field = tagged[0], [], None
            continue
        if isinstance(part, int):
            keys = [*keys[:-1], f"{keys[-1]}[{part}]"]
            continue
        if section is None or part not in section.model_fields:
            # Inside a union pydantic names the member type, which is none of the user's keys.
            if part not in ("str", "int", "float", "bool") and not any(mark in part for mark in "[(-"):
                keys.append(str(part))
            continue
        keys.append(str(part))
        field = section.model_fields[part]
        options = _sections_in(field.annotation)
        if len(options) == 1:
            section, options = options[0], []
        elif options:
            section = None
    return section, keys, field, [str(option.model_fields["kind"].default) for option in options]


def _sections_in(annotation: Any) -> list[type[_Section]]:
    if isinstance(annotation, type) and issubclass(annotation, _Section):
        return [annotation]
    if isinstance(annotation, types.UnionType) or typing.get_origin(annotation) is not None:
        return [section for part in typing.get_args(annotation) for section in _sections_in(part)]
    return []
