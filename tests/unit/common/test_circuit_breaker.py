from nanoagent.common.circuit_breaker import CircuitBreaker


def breaker(*, counts_late: bool = False) -> CircuitBreaker:
    return CircuitBreaker(3, first_s=1, longest_s=30, counts_late=counts_late)


def opened(*, counts_late: bool = False) -> CircuitBreaker:
    """At 0, with a pause of one second."""
    result = breaker(counts_late=counts_late)
    result.open("down", 0.0)
    return result


def test_failures_in_a_row_open_it_and_a_success_begins_anew():
    tried = breaker()
    tried.record_failure("slow", 0.0)
    tried.record_failure("slow", 0.0)
    tried.record_success()
    tried.record_failure("slow", 0.0)
    tried.record_failure("slow", 0.0)
    assert not tried.is_open
    tried.record_failure("down", 0.0)
    assert (tried.is_open, tried.reason, tried.open_until) == (True, "down", 1.0)


def test_failures_for_the_same_cause_count_once():
    tried = breaker()
    for cause in ("a", "a", "b", "a", "b"):
        tried.record_failure("down", 0.0, cause=cause)
    assert (tried.failures, tried.is_open) == (2, False)
    tried.record_failure("down", 0.0)
    assert tried.is_open


def test_one_call_at_a_time_is_allowed_after_the_pause():
    tried = opened()
    assert not tried.allows(0.9, in_flight=0)
    assert tried.allows(1.0, in_flight=0)
    assert not tried.allows(1.0, in_flight=1)


def test_a_failure_of_a_call_from_before_it_opened_changes_nothing():
    tried = opened()
    tried.open("later", 0.5)
    assert (tried.reason, tried.open_until) == ("down", 1.0)


def test_such_a_failure_lengthens_the_pause_where_late_ones_count():
    tried = opened(counts_late=True)
    tried.open("later", 0.5)
    assert (tried.reason, tried.open_until) == ("later", 2.5)


def test_opened_again_after_its_pause_it_stays_so_for_longer():
    tried = opened()
    tried.open("still", 1.0)
    assert (tried.reason, tried.open_until) == ("still", 3.0)


def test_on_trial_every_call_is_allowed_and_one_failure_opens_it_again():
    tried = opened()
    tried.try_again()
    assert (tried.is_open, tried.trial_reason) == (False, "down")
    assert tried.allows(1.0, in_flight=5)
    tried.record_failure("again", 1.0)
    assert (tried.is_open, tried.open_until) == (True, 3.0)


def test_a_success_on_trial_closes_it_and_the_pauses_begin_anew():
    tried = opened()
    tried.try_again()
    tried.record_success()
    assert (tried.is_open, tried.trial_reason) == (False, None)
    tried.open("down", 10.0)
    assert tried.open_until == 11.0
