"""pyDVL's side of `pydvl.py`: runs in pyDVL's own environment, imports nothing of this project.

    python pydvl_peer.py PROBLEM.npz INFLUENCES.npz direct|cg

PROBLEM has float64 `features` (n, d), `labels`, `test_features`, `test_labels`, `coef` (k, d),
`intercept` (k,), `l2`, `batch`, and for `cg` the residual `tolerance` and whether to solve
`simultaneously`. Prints a JSON object with seconds of the fit and of fit and influences together, as they are
timed here, after the imports; writes `influences` (m, n) and `factors` (m, p), H^-1 of the test gradients.
"""

from __future__ import annotations

import json
import sys
import time
import warnings

warnings.filterwarnings("ignore")

import numpy as np  # noqa: E402
import torch  # type: ignore[import-not-found] # noqa: E402
from pydvl.influence.torch import CgInfluence, DirectInfluence  # type: ignore[import-not-found] # noqa: E402
from torch.utils.data import DataLoader, TensorDataset  # type: ignore[import-not-found] # noqa: E402


def main(source: str, target: str, kind: str) -> None:
    problem = np.load(source)
    arrays = {name: torch.tensor(problem[name]) for name in problem.files}
    x, y = arrays["features"], arrays["labels"]
    test_x, test_y = arrays["test_features"], arrays["test_labels"]
    model = torch.nn.Linear(x.shape[1], len(arrays["coef"])).double()
    with torch.no_grad():
        model.weight.copy_(arrays["coef"])
        model.bias.copy_(arrays["intercept"])
    l2, batch = float(arrays["l2"]), int(arrays["batch"])
    loader = DataLoader(TensorDataset(x, y), batch_size=batch)
    loss = torch.nn.functional.cross_entropy
    if kind == "direct":
        influence = DirectInfluence(model, loss, regularization=l2)
    else:
        # Its CG stops at a residual of max(atol^2, ...), though the documentation says atol.
        atol = float(arrays["tolerance"]) ** 0.5
        influence = CgInfluence(
            model,
            loss,
            regularization=l2,
            rtol=0.0,
            atol=atol,
            solve_simultaneously=bool(arrays["simultaneously"]),
        )
    start = time.perf_counter()
    influence = influence.fit(loader)
    fitted = time.perf_counter() - start
    factors = influence.influence_factors(test_x, test_y)
    parts = [influence.influences_from_factors(factors, part, labels) for part, labels in loader]
    values = torch.cat(parts, dim=1)
    seconds = time.perf_counter() - start
    np.savez(target, influences=values.detach().numpy(), factors=factors.detach().numpy())
    sys.stdout.write(
        json.dumps({"fit": fitted, "seconds": seconds, "threads": torch.get_num_threads()}) + "\n"
    )


if __name__ == "__main__":
    main(*sys.argv[1:])
