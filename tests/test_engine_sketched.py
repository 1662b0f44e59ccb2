"""The engine "sketched": exact where every element has its own bucket, and close where not."""

from __future__ import annotations

import pytest
from engine_cases import CASES, METHODS, Case, Method, check_same


@pytest.mark.parametrize("method", METHODS, ids=str)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_gives_what_stored_gives_where_no_bucket_is_shared(case: Case, method: Method) -> None:
    check_same(case, method, "sketched", 2e-5 if method.id == "cagrad" else 2e-6)
