"""The ledger counts bytes exactly; estimates follow what elements really need."""

import pytest

from headrace.pipeline.engine.ledger import NUM_RECENT, SAFETY, Charge, Estimator, Ledger


def test_a_charge_replaces_its_reservation_and_is_given_back_by_its_last_owner() -> None:
    ledger = Ledger(100)
    ledger.add(40)
    charge = Charge(ledger, 30, reserved_bytes=40)
    assert ledger.used_bytes == 30
    charge.share()
    charge.release()
    assert ledger.used_bytes == 30
    charge.release()
    assert (ledger.used_bytes, ledger.peak_bytes) == (0, 40)


def test_giving_a_charge_back_twice_is_caught() -> None:
    charge = Charge(Ledger(100), 10)
    charge.release()
    with pytest.raises(AssertionError, match="twice"):
        charge.release()


def test_fits_until_the_budget_is_reached() -> None:
    ledger = Ledger(100)
    ledger.add(60)
    assert ledger.fits(40)
    assert not ledger.fits(41)


def test_an_estimate_is_above_the_largest_recent_need() -> None:
    estimator = Estimator()
    for ratio in (1.0, 3.0, 2.0):
        estimator.learn(100, int(100 * ratio))
    assert estimator.reserve(1000) == int(3000 * SAFETY)


def test_an_estimate_forgets_what_was_long_ago() -> None:
    estimator = Estimator()
    estimator.learn(100, 900)
    for _ in range(NUM_RECENT):
        estimator.learn(100, 100)
    assert estimator.reserve(1000) == int(1000 * SAFETY)


def test_elements_without_bytes_teach_nothing() -> None:
    estimator = Estimator()
    estimator.learn(0, 500)
    assert not estimator.is_known


def test_copies_of_the_input_are_reserved_too() -> None:
    estimator = Estimator(copies=1)
    estimator.learn(100, 100)
    assert estimator.reserve(1000) == int(1000 * SAFETY) + 1000
