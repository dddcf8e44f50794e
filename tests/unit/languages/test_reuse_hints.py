from __future__ import annotations

import pytest

from nanoagent.languages import reuse_hints
from nanoagent.supervisor.wire import ImportsState

_SILENT = {ImportsState.OFF, ImportsState.REUSED}


@pytest.mark.parametrize("state", ImportsState)
def test_each_reason_has_a_hint_in_both_languages(state):
    hint = reuse_hints.hint_for(state)
    assert (hint is None) == (state in _SILENT)
    if hint is not None:
        assert "reuse" in hint.en
        assert "reuse" in hint.ko
        assert hint.en != hint.ko
