"""What a run leaves in Prefect, as far as no server is needed: keys, and rows of the list."""

from __future__ import annotations

import re

from flows.artifacts import artifact_key


def test_each_audit_has_a_key_of_its_own() -> None:
    names = ["a-b", "a.b", "a_b", "A-b", "a--b", "a-b-", "A.B", artifact_key("a.b"), "nightly", "Nightly"]
    keys = [artifact_key(name) for name in names]
    assert len(set(keys)) == len(names)
    assert all(re.fullmatch("[a-z0-9]+(-[a-z0-9]+)*", key) for key in keys)
    # A name that is a key stays as it is, so that Prefect goes on showing its nights together.
    assert (artifact_key("a-b"), artifact_key("nightly")) == ("a-b", "nightly")
