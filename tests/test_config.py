"""The config file: defaults, paths, overrides, and what is said of every kind of mistake."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from influence_batch.config import (
    AutoSolver,
    CgSolver,
    LissaSolver,
    Nystroem,
    Pca,
    RandomFourier,
    Standardize,
    load_config,
)
from influence_batch.config_gates import GatesConfig
from influence_batch.errors import InputError

TRAIN = "train: {path: train.parquet, label: y}\n"
MODEL_KEYS = (
    "kind, task, l2, intercept, penalize_intercept, temperature, features, weights, require_optimum, "
    "gradient_tolerance, max_iterations"
)
TOP_KEYS = (
    "name, train, test, model, solver, influence, detection, group_by, self_check, gates, notify, "
    "report, cluster, memory_limit, shard_rows, reuse_features, seed, reports, keep"
)
STEPS = "standardize, unit_norm, pca, random_fourier, nystroem"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "nightly.yaml"


def load(file: Path, text: str, *overrides: str, **options: Any) -> Any:
    file.write_text(text, encoding="utf-8")
    return load_config(file, overrides, **options)


def refusal(file: Path, text: str, *overrides: str) -> str:
    """The message, without the file's name that every line starts with."""
    with pytest.raises(InputError) as caught:
        load(file, text, *overrides)
    lines = str(caught.value).splitlines()
    assert all(line.startswith(f"{file}: ") for line in lines)
    return "\n".join(line.removeprefix(f"{file}: ") for line in lines)


def test_defaults(file: Path, tmp_path: Path) -> None:
    assert load(file, TRAIN).model_dump(mode="json") == {
        "name": "nightly",
        "train": {"path": str(tmp_path / "train.parquet"), "id": None, "label": "y", "features": None},
        "test": None,
        "model": {
            "kind": "softmax",
            "task": "auto",
            "l2": 1e-3,
            "intercept": True,
            "penalize_intercept": False,
            "temperature": 0.1,
            "features": [],
            "weights": None,
            "require_optimum": True,
            "gradient_tolerance": 1e-8,
            "max_iterations": 200,
        },
        "solver": {"kind": "auto", "rtol": 1e-8, "on_unconverged": "raise", "precision": "auto"},
        "influence": {
            "top_k": 20,
            "estimator": "leave_one_out",
            "same_label": False,
            "damping": 0.0,
            "test_sample": 1000,
        },
        "detection": {"threshold": 0.33, "budget": None, "target_precision": None, "evidence": 5000},
        "group_by": [],
        "self_check": 0,
        "gates": dict.fromkeys(GatesConfig.model_fields),
        "notify": None,
        "report": {"page": True, "show": {"kind": "row", "columns": None}},
        "cluster": {"kind": "none"},
        "memory_limit": 2 * 1024**3,
        "shard_rows": None,
        "reuse_features": True,
        "seed": 0,
        "reports": str(tmp_path / "reports"),
        "keep": None,
    }


def test_empty_sections_mean_the_defaults(file: Path) -> None:
    assert load(file, TRAIN + "name:\ntest:\nmodel:\nsolver:\nshard_rows:\n") == load(file, TRAIN)


def test_a_loaded_config_stays_as_it_is(file: Path) -> None:
    config = load(file, TRAIN + "model: {features: [pca]}\nsolver: {kind: lissa}")
    assert load_config(config) is config
    assert load_config(config, ["seed=0"]) == config
    assert load_config(config.model_dump(mode="json")) == config


class TestPaths:
    def test_those_of_a_file_count_from_its_folder(self, tmp_path: Path) -> None:
        (tmp_path / "configs").mkdir()
        text = (
            "train: {path: ../data/*.parquet, label: y}\ntest: {path: more/}\n"
            "model: {weights: w.npz}\nreports: out\n"
        )
        config = load(tmp_path / "configs" / "c.yaml", text)
        assert config.train.path == str(tmp_path / "data" / "*.parquet")
        assert config.test.path == str(tmp_path / "configs" / "more")
        assert config.model.weights == str(tmp_path / "configs" / "w.npz")
        assert config.reports == str(tmp_path / "configs" / "out")

    def test_urls_and_absolute_paths_stay(self, file: Path) -> None:
        config = load(file, "train: {path: 's3://bucket/a', label: y}\nreports: /srv/reports")
        assert config.train.path == "s3://bucket/a"
        assert config.reports == "/srv/reports"

    def test_home(self, file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("HOME", "/home/ada")
        assert load(file, "train: {path: ~/t.parquet, label: y}").train.path == "/home/ada/t.parquet"

    def test_those_of_a_mapping_and_of_the_command_count_from_the_working_directory(
        self, file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        (tmp_path / "elsewhere").mkdir()
        monkeypatch.chdir(tmp_path / "elsewhere")
        given = {"train": {"path": Path("t.parquet"), "label": "y"}}
        config = load_config(given)
        assert config.train.path == str(tmp_path / "elsewhere" / "t.parquet")
        assert config.name == "audit"
        assert given == {"train": {"path": Path("t.parquet"), "label": "y"}}
        assert load(file, TRAIN, reports="out").reports == str(tmp_path / "elsewhere" / "out")

    def test_reports_may_be_a_url(self, file: Path) -> None:
        assert load(file, TRAIN, reports="s3://bucket/r").reports == "s3://bucket/r"
        assert load(file, TRAIN + "reports: s3://bucket/r").reports == "s3://bucket/r"
        # pathlib turns `s3://bucket` into `s3:/bucket`, a folder like any other.
        with pytest.raises(InputError, match=r"^reports: found s3:/bucket/r; accepted: a URL with two"):
            load(file, TRAIN, reports=Path("s3://bucket/r"))


class TestOverrides:
    def test_values_are_yaml(self, file: Path) -> None:
        config = load(
            file,
            TRAIN + "model: {l2: 0.1}\n",
            "model.l2=1e-4",
            "model.intercept=false",
            "model.features=[standardize, {kind: pca, components: 3}]",
            "memory_limit=500MB",
            "train.label=other=one",
            "test.path=test.parquet",
        )
        assert config.model.l2 == 1e-4
        assert config.model.intercept is False
        assert config.model.features == (Standardize(), Pca(components=3))
        assert config.memory_limit == 500_000_000
        assert config.train.label == "other=one"
        assert config.test.path == str(file.parent / "test.parquet")

    def test_the_last_one_counts(self, file: Path) -> None:
        assert load(file, TRAIN, "seed=1", "seed=2").seed == 2

    def test_of_a_section_that_is_not_there(self, file: Path) -> None:
        assert load(file, TRAIN, "solver.rtol=1e-4").solver == AutoSolver(rtol=1e-4)
        assert load(file, TRAIN, "solver.kind=cg", "solver.rtol=1e-4").solver == CgSolver(rtol=1e-4)

    def test_null_takes_a_section_out(self, file: Path) -> None:
        config = load(file, TRAIN + "test: {path: t}\nname: x", "test=null", "name=null")
        assert config.test is None
        assert config.name == "nightly"

    @pytest.mark.parametrize(
        ("override", "message"),
        [
            ("model.l2", "--set model.l2: expected KEY=VALUE, such as model.l2=1e-4"),
            ("=3", "--set =3: expected KEY=VALUE, such as model.l2=1e-4"),
            ("model..l2=3", "--set model..l2=3: expected KEY=VALUE, such as model.l2=1e-4"),
            ("model.l2=[1", "--set model.l2=[1: '[1' is not a YAML value"),
            ("seed.x=3", "--set seed.x=3: seed has no keys of its own, it is 7"),
        ],
    )
    def test_mistakes(self, file: Path, override: str, message: str) -> None:
        with pytest.raises(InputError) as caught:
            load(file, TRAIN + "seed: 7\n", override)
        assert str(caught.value) == message

    def test_an_unknown_key(self, file: Path) -> None:
        assert (
            refusal(file, TRAIN, "model.l3=1")
            == f"model.l3: unknown key; did you mean `l2`? known keys: {MODEL_KEYS}"
        )


class TestUnions:
    def test_solvers(self, file: Path) -> None:
        assert load(file, TRAIN + "solver: {kind: lissa, scale: 4}").solver == LissaSolver(scale=4.0)
        assert load(file, TRAIN + "solver: lissa").solver.rtol == 1e-6
        assert load(file, TRAIN + "solver: {rtol: 0.001}").solver == AutoSolver(rtol=1e-3)

    @pytest.mark.parametrize(
        ("text", "steps"),
        [
            ("raw", ()),
            ("[]", ()),
            ("[raw, pca]", (Pca(),)),
            ("nystroem", (Nystroem(),)),
            ("{kind: random_fourier, gamma: 0.5}", (RandomFourier(gamma=0.5),)),
            ("[standardize, {kind: nystroem, gamma: scale}]", (Standardize(), Nystroem())),
        ],
    )
    def test_feature_steps(self, file: Path, text: str, steps: tuple[Any, ...]) -> None:
        assert load(file, TRAIN + f"model: {{features: {text}}}").model.features == steps


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("modle: {}", f"modle: unknown key; did you mean `model`? known keys: {TOP_KEYS}"),
        ("xyzzy: {}", f"xyzzy: unknown key; known keys: {TOP_KEYS}"),
        ("1: {}", f"1: unknown key; known keys: {TOP_KEYS}"),
        ("model: {77: 3}", f"model.77: unknown key; known keys: {MODEL_KEYS}"),
        (
            "model: {temprature: 1}",
            f"model.temprature: unknown key; did you mean `temperature`? known keys: {MODEL_KEYS}",
        ),
        (
            "test: {path: a, labl: y}",
            "test.labl: unknown key; did you mean `label`? known keys: path, id, label, features, trusted",
        ),
        (
            "test: {}",
            "test.path: missing; this key has no default; accepted: a Parquet file, folder, glob or "
            "fsspec URL",
        ),
        (
            "test: a.parquet",
            "test: found 'a.parquet'; accepted: a mapping with the keys path, id, label, features, trusted",
        ),
        (
            "test: {path: a, trusted: 7}",
            "test.trusted: found 7; accepted: true or false: true when the test labels are known to be right",
        ),
        ("model: [a]", f"model: found ['a']; accepted: a mapping with the keys {MODEL_KEYS}"),
        (
            "model: {kind: sofmax}",
            "model.kind: found 'sofmax'; accepted: squared, logistic, softmax or smooth_hinge",
        ),
        (
            "group_by: [{a: 1}]",
            "group_by[0]: found {'a': 1}; accepted: a column name of train, or a list of them, such as "
            "[annotator, source]",
        ),
        (
            "model: {l2: abc}",
            "model.l2: found 'abc'; accepted: a number, 0 or more, or auto (by leave-one-out loss)",
        ),
        (
            "model: {l2: -1}",
            "model.l2: found -1; accepted: a number, 0 or more, or auto (by leave-one-out loss)",
        ),
        (
            "model: {l2: .inf}",
            "model.l2: found inf; accepted: a number, 0 or more, or auto (by leave-one-out loss)",
        ),
        (
            "model: {l2: .nan}",
            "model.l2: found nan; accepted: a number, 0 or more, or auto (by leave-one-out loss)",
        ),
        (
            "model: {l2: true}",
            "model.l2: found true; accepted: a number, 0 or more, or auto (by leave-one-out loss)",
        ),
        (
            "model: {l2: }",
            "model.l2: found nothing; accepted: a number, 0 or more, or auto (by leave-one-out loss)",
        ),
        (
            "model: {max_iterations: 1.5}",
            "model.max_iterations: found 1.5; accepted: a whole number of Newton iterations, 1 or more",
        ),
        ("model: {features: 7}", f"model.features[0]: found 7; accepted: a mapping with `kind`: {STEPS}"),
        (
            "model: {features: standardise}",
            f"model.features[0]: found 'standardise' (did you mean standardize?); accepted: {STEPS}",
        ),
        (
            "model: {features: [pca, {components: 3}]}",
            f"model.features[1]: found {{'components': 3}}; accepted: a mapping with `kind`: {STEPS}",
        ),
        (
            "model: {features: [unit_norm, {kind: pca, components: 0}]}",
            "model.features[1].components: found 0; accepted: a whole number of components, 1 or more",
        ),
        (
            "model: {features: [{kind: pca, component: 3}]}",
            "model.features[0].component: unknown key; did you mean `components`? known keys: kind, "
            "components, whiten",
        ),
        (
            "model: {features: {kind: nystroem, gamma: -3}}",
            "model.features[0].gamma: found -3; accepted: a number above 0, or scale for near 1 / (d * "
            "variance): kernel exp(-gamma |x - y|^2)",
        ),
        (
            "solver: {kind: cgg}",
            "solver.kind: found 'cgg' (did you mean cg?); accepted: auto, direct, cg, lissa, ekfac",
        ),
        (
            "solver: [cg]",
            "solver: found ['cg']; accepted: a mapping with `kind`: auto, direct, cg, lissa, ekfac",
        ),
        (
            "solver: {kind: cg, depth: 3}",
            "solver.depth: unknown key; known keys: rtol, on_unconverged, precision, kind, max_iterations",
        ),
        (
            "solver: {kind: cg, rtol: 2}",
            "solver.rtol: found 2; accepted: a number between 0 and 1: largest |b - Hx| / |b|",
        ),
        (
            "solver: {kind: lissa, scale: big}",
            "solver.scale: found 'big'; accepted: a number above the largest eigenvalue of H, or auto "
            "(found by power iteration)",
        ),
        ("influence: {top_k: 0}", "influence.top_k: found 0; accepted: a whole number, 1 or more"),
        ("influence: {top_k: true}", "influence.top_k: found true; accepted: a whole number, 1 or more"),
        (
            "influence: {same_label: maybe}",
            "influence.same_label: found 'maybe'; accepted: true or false: true ranks, for each test "
            "point, only training examples of its own label",
        ),
        (
            "detection: {threshold: 1.5}",
            "detection.threshold: found 1.5; accepted: a number from 0 to 1 on p_mislabeled",
        ),
        (
            "detection: {budget: 0}",
            "detection.budget: found 0; accepted: a whole number, 1 or more: length of the list, which "
            "then replaces the threshold",
        ),
        (
            "memory_limit: lots",
            "memory_limit: found 'lots'; accepted: a size such as 2GiB or 500MB, at least 1MiB",
        ),
        (
            "memory_limit: true",
            "memory_limit: found true; accepted: a size such as 2GiB or 500MB, at least 1MiB",
        ),
        (
            "shard_rows: 0",
            "shard_rows: found 0; accepted: a whole number, 1 or more: rows a shard (default: from "
            "memory_limit)",
        ),
        ("seed: -1", "seed: found -1; accepted: a whole number, 0 or more"),
        (
            "keep: 0",
            "keep: found 0; accepted: a whole number, 1 or more: how many of the newest runs stay, and "
            "reviewed ones besides (default: all)",
        ),
        (
            "name: a/b",
            "name: found 'a/b'; accepted: letters, digits, dot, dash and underscore, a letter or digit "
            "first: the folder of its reports (default: name of the config file)",
        ),
        (
            "reports: 3",
            "reports: found 3, which is no text without quotes; accepted: path of a folder, or an fsspec "
            "URL, for the reports",
        ),
    ],
)
def test_a_wrong_value_is_told_with_key_found_and_accepted(file: Path, text: str, message: str) -> None:
    assert refusal(file, TRAIN + text) == message


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "model: {}",
            "train: missing; this key has no default; accepted: a mapping with the keys path, id, label, "
            "features",
        ),
        (
            "train:",
            "train: missing; this key has no default; accepted: a mapping with the keys path, id, label, "
            "features",
        ),
        (
            "train: a.parquet",
            "train: found 'a.parquet'; accepted: a mapping with the keys path, id, label, features",
        ),
        (
            "train: {path: a, label: yes}",
            "train.label: found true, which is no text without quotes; accepted: name of the label column",
        ),
        (
            "train: {path: a, label: 3}",
            "train.label: found 3, which is no text without quotes; accepted: name of the label column",
        ),
        (
            "train: {path: a, label: y, features: [a, 3]}",
            "train.features: found ['a', 3]; accepted: a column name, a list of names, or patterns such "
            "as 'pixel_*'; without it, the only list column, or else every numeric column beside id and "
            "label",
        ),
    ],
)
def test_train_is_required(file: Path, text: str, message: str) -> None:
    assert refusal(file, text) == message


def test_all_mistakes_are_told_at_once(file: Path) -> None:
    assert refusal(file, "train: {path: a}\nmodel: {l2: -1}\nseed: x") == (
        "train.label: missing; this key has no default; accepted: name of the label column\n"
        "model.l2: found -1; accepted: a number, 0 or more, or auto (by leave-one-out loss)\n"
        "seed: found 'x'; accepted: a whole number, 0 or more"
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "train:\n  path: [a\nlabel: x",
            "line 3, column 6: not valid YAML (expected ',' or ']', but got ':')",
        ),
        (
            "train:\n\tpath: a",
            "line 2, column 1: not valid YAML (found character '\\t' that cannot start any token)",
        ),
        (
            "train: {path: a, label: y}\nseed: 1\nseed: 2",
            "line 3, column 1: not valid YAML (the key seed stands twice)",
        ),
        ("train: {path: a,\n  path: b}", "line 2, column 3: not valid YAML (the key path stands twice)"),
        ("", "found nothing; expected keys such as `train:` and `model:`"),
        ("- train", "found list; expected keys such as `train:` and `model:`"),
    ],
)
def test_yaml_errors_name_the_line(file: Path, text: str, message: str) -> None:
    assert refusal(file, text) == message


def test_yaml_makes_no_objects(file: Path) -> None:
    message = refusal(file, TRAIN + "name: !!python/object/apply:os.getcwd []")
    assert message.startswith(
        "line 2, column 7: not valid YAML (could not determine a constructor for the tag"
    )


def test_merged_keys_are_not_twice(file: Path) -> None:
    config = load(file, "train: &t {path: a, label: y}\ntest: {<<: *t, path: b}")
    assert (config.test.path, config.test.label) == (str(file.parent / "b"), "y")


def test_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    missing = tmp_path / "none.yaml"
    with pytest.raises(InputError) as caught:
        load_config(missing)
    assert str(caught.value) == f"{missing}: no such file; expected the path of a YAML config"
    with pytest.raises(InputError, match=r"cannot be read \(.*Is a directory.*\); expected a YAML config$"):
        load_config(tmp_path)
    binary = tmp_path / "t.parquet"
    binary.write_bytes(b"PAR1\xff\xfe")
    with pytest.raises(InputError, match=r"t.parquet: cannot be read \(.*utf-8.*\); expected a YAML config$"):
        load_config(binary)
