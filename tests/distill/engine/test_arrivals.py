"""When a call waits for others to join it, and when not."""

from distill.engine.arrivals import Company
from distill.engine.weights import ModelWeights

WEIGHTS = ModelWeights({"embedding": 0}, adapter=None)
OTHERS = ModelWeights({"embedding": 1}, adapter=None)


def test_a_client_that_is_alone_never_waits() -> None:
    company = Company(1.0)
    for now in range(5):
        company.joined(WEIGHTS, 1)
        assert company.patience(WEIGHTS, 1, float(now)) == 0
        company.left(WEIGHTS, 1)


def test_clients_that_were_there_together_are_waited_for() -> None:
    company = Company(1.0)
    company.joined(WEIGHTS, 1)
    company.joined(WEIGHTS, 2)
    company.left(WEIGHTS, 2)
    company.joined(WEIGHTS, 1)
    assert company.patience(WEIGHTS, 1, 5.0) == 1.0
    assert company.patience(WEIGHTS, 1, 5.75) == 0.25
    assert company.patience(WEIGHTS, 2, 5.8) == 0


def test_who_came_during_a_call_makes_the_next_one_wait_for_those_in_it() -> None:
    company = Company(1.0)
    company.joined(WEIGHTS, 1)
    company.left(WEIGHTS, 1)
    company.joined(WEIGHTS, 2)
    assert company.patience(WEIGHTS, 1, 0.0) == 1.0


def test_who_has_waited_in_vain_does_not_wait_again() -> None:
    company = Company(1.0)
    company.joined(WEIGHTS, 3)
    company.left(WEIGHTS, 3)
    assert company.patience(WEIGHTS, 1, 0.0) == 1.0
    assert company.patience(WEIGHTS, 1, 1.5) == 0
    company.left(WEIGHTS, 1)
    company.joined(WEIGHTS, 1)
    assert company.patience(WEIGHTS, 1, 2.0) == 0


def test_streams_under_other_weights_are_no_company() -> None:
    company = Company(1.0)
    company.joined(OTHERS, 7)
    company.joined(WEIGHTS, 1)
    assert company.patience(WEIGHTS, 1, 0.0) == 0


def test_what_is_remembered_of_old_weights_is_bounded() -> None:
    company = Company(1.0)
    weights = [ModelWeights({"embedding": index}, adapter=None) for index in range(1000)]
    for each in weights:
        company.joined(each, 1)
        company.left(each, 1)
    assert len(company._most) <= 65
