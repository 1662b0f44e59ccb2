"""Packs the certified answers of the methods in ``tests/cases.py`` into ``oracle.npz``.

    python tests/data/make_oracle.py FOLDER

FOLDER holds ``cases.npz`` (per case a Jacobian, orders, the weights of every method and flags) and
``stateful.npz`` (streams of losses, norms and Jacobians, and the weights of every stateful method).
Everything that the tests do not read is left out. The cases' Jacobians are stored as float32, which
is exact.
"""

import json
import sys
from pathlib import Path

import numpy as np

ANSWERS = [
    *("pcgrad", "pcgrad_selfproj", "gradvac_step1", "gradvac_step2"),
    *(f"cagrad_c{c}" for c in (0.1, 0.4, 0.5, 0.9)),
    *("mgda", "upgrad", "dualproj", "pcd_tau0.02_eps0"),
    *("nash", "nash_maxnorm1", "fairgrad_a0.5", "fairgrad_a2.0"),
    *("imtlg", "alignedmtl_min", "alignedmtl_median", "alignedmtl_rmse", "config"),
    *("krum_f0_sq", "krum_f0_unsq", "krum_f1m2_sq"),
]
DIRECTIONS = ["graddrop_d", "trimmedmean1_d"]
STREAMS = [
    *(f"gradnorm_{form}a{alpha}" for form in ("w_", "softmax_w_") for alpha in (0.12, 1.5)),
    *("famo_w", "famo_logits", "dwa_w", "uw_w_sgd0.1", "imtll_w_sgd0.01"),
    *("gls_w", *(f"stch_w_mu{mu}" for mu in ("0.01", "0.1", "1.0"))),
    *("gradvac_w", "gradvac_phi", "sdmgrad_w", "modo_w", "excessmtl_w"),
]


def main(folder: Path) -> None:
    packed: dict[str, np.ndarray] = {}
    with np.load(folder / "cases.npz") as cases:
        meta = json.loads(str(cases["meta_json"]))
        for case in meta:
            key = case["key"]
            jacobian = cases[f"{key}/J"]
            small = jacobian.astype(np.float32)
            if not np.array_equal(small.astype(np.float64), jacobian):
                raise ValueError(f"{key}/J: expected values exact in float32, found others")
            packed[f"{key}/J"] = small
            packed[f"{key}/perms"] = cases[f"{key}/perms"].astype(np.uint8)
            # [number of answers, K]; a degenerate answer is checked by its invariants only.
            # NaN: none was computed for this K.
            packed[f"{key}/answers"] = np.stack(
                [cases.get(f"{key}/{name}", np.full(len(jacobian), np.nan)) for name in ANSWERS]
            )
            packed[f"{key}/degenerate"] = np.array(
                [bool(case["flags"].get(name.split("_max")[0], False)) for name in ANSWERS]
            )
            packed[f"{key}/pareto"] = np.array(bool(case["flags"]["pareto"]))
            packed[f"{key}/uniform"] = cases[f"{key}/graddrop_U"]
            for name in DIRECTIONS:
                if f"{key}/{name}" in cases:
                    packed[f"{key}/{name}"] = cases[f"{key}/{name}"]
    packed["keys"] = np.array([case["key"] for case in meta])
    packed["answers"] = np.array(ANSWERS)
    with np.load(folder / "stateful.npz") as streams:
        for num_tasks in (1, 2, 3, 8):
            for name in ("losses", "norms", "J", *STREAMS):
                packed[f"K{num_tasks}/{name}"] = streams[f"K{num_tasks}/{name}"]
    np.savez_compressed(Path(__file__).with_name("oracle.npz"), allow_pickle=False, **packed)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
