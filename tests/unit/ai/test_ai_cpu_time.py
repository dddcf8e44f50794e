from __future__ import annotations

from nanoagent.ai.cpu_time import CpuTimeLimit


def test_half_a_second_at_once_is_free_and_a_tenth_of_a_core_after_that():
    now = [0.0]
    cpu_time = CpuTimeLimit(lambda: now[0])
    cpu_time.charge(0.5)
    assert cpu_time.delay_s() == 0
    cpu_time.charge(0.01)
    assert round(cpu_time.delay_s(), 6) == 0.1
    now[0] = 0.1
    assert round(cpu_time.delay_s(), 6) == 0
    now[0] = 1000  # what was not taken does not pile up
    cpu_time.charge(0.6)
    assert round(cpu_time.delay_s(), 6) == 1.0
