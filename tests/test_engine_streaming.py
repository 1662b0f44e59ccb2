"""The engine "streaming": what "stored" gives, by one backward for all tasks."""

from __future__ import annotations

import pytest
from engine_cases import CASES, METHODS, Case, Method, check_same


@pytest.mark.parametrize("method", METHODS, ids=str)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_gives_what_stored_gives(case: Case, method: Method) -> None:
    check_same(case, method, "streaming")
