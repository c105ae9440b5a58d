"""All sampling jobs share one budget of memory."""

from distill.engine.cache_budget import CacheBudget


def granted(*leases):
    return [lease.is_granted for lease in leases]


def test_leases_are_granted_in_order_while_their_sum_fits() -> None:
    budget = CacheBudget(10)
    first, second, third, small = (budget.ask(count) for count in (6, 4, 8, 1))
    # The small one would fit no sooner than the one before it: else that might wait for ever.
    assert granted(first, second, third, small) == [True, True, False, False]
    first.release()
    assert granted(third, small) == [False, False]
    second.release()
    assert granted(third, small) == [True, True]


def test_a_lease_beyond_the_budget_is_granted_alone() -> None:
    budget = CacheBudget(10)
    first, large, last = budget.ask(1), budget.ask(100), budget.ask(1)
    assert granted(first, large, last) == [True, False, False]
    first.release()
    assert granted(large, last) == [True, False]
    large.release()
    assert granted(last) == [True]


def test_a_lease_that_is_given_up_while_it_waits_makes_way() -> None:
    budget = CacheBudget(10)
    first, large, last = budget.ask(6), budget.ask(10), budget.ask(4)
    large.release()
    large.release()  # may be repeated
    assert granted(first, large, last) == [True, False, True]
    first.release()
    assert granted(budget.ask(6), budget.ask(1)) == [True, False]
