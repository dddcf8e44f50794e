from nanoagent.common.bounded_map import BoundedMap


def filled(most: int, keys: str) -> BoundedMap[str, int]:
    result: BoundedMap[str, int] = BoundedMap(most)
    for number, key in enumerate(keys):
        result[key] = number
    return result


def test_the_entry_written_longest_ago_goes():
    assert filled(2, "abc") == {"b": 1, "c": 2}


def test_an_entry_that_is_written_again_is_the_newest():
    assert filled(2, "abac") == {"a": 2, "c": 3}


def test_reading_does_not_renew_an_entry():
    remembered = filled(2, "ab")
    assert (remembered["a"], remembered.get("a"), "a" in remembered) == (0, 0, True)
    remembered["c"] = 2
    assert remembered == {"b": 1, "c": 2}


def test_entries_can_be_removed_and_counted():
    remembered = filled(3, "abc")
    assert (remembered.pop("b", None), remembered.pop("b", None), len(remembered)) == (1, None, 2)


def test_setdefault_and_update_are_bounded_as_well():
    remembered = filled(2, "ab")
    remembered.setdefault("c", 2)
    remembered.update(d=3)
    assert remembered == {"c": 2, "d": 3}
