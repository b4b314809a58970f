"""What a run leaves in Prefect, as far as no server is needed: keys, and rows of the list."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import influence_batch
from flows.artifacts import _link, artifact_key, as_text, headline, top_suspects
from flows.cli import _print_summary
from influence_batch.review import import_verdicts
from influence_batch.stages import Outcome
from tests.planted import config, make, save, spoil


def test_each_audit_has_a_key_of_its_own() -> None:
    names = ["a-b", "a.b", "a_b", "A-b", "a--b", "a-b-", "A.B", artifact_key("a.b"), "nightly", "Nightly"]
    keys = [artifact_key(name) for name in names]
    assert len(set(keys)) == len(names)
    assert all(re.fullmatch("[a-z0-9]+(-[a-z0-9]+)*", key) for key in keys)
    # A name that is a key stays as it is, so that Prefect goes on showing its nights together.
    assert (artifact_key("a-b"), artifact_key("nightly")) == ("a-b", "nightly")


def test_the_headline_says_what_is_new_and_what_reviewers_measured(tmp_path: Path) -> None:
    frame = make(300)
    spoil(frame, [1, 2, 3, 4])
    save(frame, tmp_path)
    first = influence_batch.audit(config(tmp_path))
    text = headline(Outcome(first.run_dir, first.run))
    assert as_text("The first run of this audit: every suspect is new.") in text
    assert "decided" not in text
    said = tmp_path / "said.csv"
    said.write_text("id,verdict\n1,mislabeled\n2,mislabeled\n3,correct\n")
    import_verdicts(tmp_path / "reports" / "week", str(said))
    spoil(frame, [1, 2, 3, 4, 5])
    save(frame, tmp_path)
    second = influence_batch.audit(config(tmp_path))
    text = headline(Outcome(second.run_dir, second.run))
    changes = second.run["history"]
    assert (changes["new"], changes["resolved"]) == (1, 1)
    since = f"Since run {first.run['run_id']}: 1 new, 3 persisting, 0 reopened, 1 resolved (1 reviewed)."
    assert as_text(since) in text
    assert as_text("Of 3 listed labels that were decided on 67% were wrong (between ") in text


@pytest.mark.parametrize(
    ("name", "code"), [("run_id=1_a*b", "`{}`"), ("a`b``c", "``` {} ```"), ("a](b)<i>", "`{}`")]
)
def test_a_path_stands_as_text_to_copy_beside_its_link(tmp_path: Path, name: str, code: str) -> None:
    """Browsers refuse links to files from a page of a server."""
    path = tmp_path / name
    assert _link(path) == f"{code.format(path)} ([link]({path.as_uri()}))"
    assert not set(path.as_uri()) & set("`]()<> ")


def test_integer_labels_stay_integers_beside_a_row_that_no_label_fits(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    random = np.random.default_rng(0)
    true = random.integers(1, 4, 240)
    x = 8.0 * np.eye(4)[true] + random.standard_normal((240, 4))
    label = true.copy()
    label[:12] = label[:12] % 3 + 1
    x[12] = -60.0  # unlike any class
    x[12, label[12]] = -80.0
    pd.DataFrame(x, columns=list("abcd")).assign(label=label).to_parquet(tmp_path / "train.parquet")
    report = influence_batch.audit(
        {
            "train": {"path": str(tmp_path / "train.parquet"), "label": "label", "features": list("abcd")},
            "model": {"l2": 1e-2},
            "detection": {"budget": 14},
            "reports": str(tmp_path / "reports"),
        }
    )
    suspects = report.suspects
    assert suspects.suggested_label.isna().any()
    assert suspects.suggested_label.notna().any()
    rows = top_suspects(report.run_dir)
    assert len(rows) == 14
    suggested = [row["suggested_label"] for row in rows]
    expected = ["" if np.isnan(one) else str(int(one)) for one in suspects.suggested_label]
    assert suggested == expected
    assert [row["rank"] for row in rows] == list(range(1, 15))
    summary = {
        **report.run["detection"],
        "n_train": 240,
        "seconds": {},
        "notes": [],
        "run_dir": report.run_dir,
    }
    history = {"previous_run": None}
    _print_summary({**summary, "history": history, "review": {"reviewed": 0}, "measured_on": 0})
    table = [line.split("│")[1:-1] for line in capsys.readouterr().out.splitlines() if line.startswith("│")]
    assert [row[3].strip() for row in table] == expected[:10]
