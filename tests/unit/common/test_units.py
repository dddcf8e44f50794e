from nanoagent.common.units import MIB


def test_a_mebibyte_is_two_to_the_power_of_20():
    assert MIB == 1_048_576
