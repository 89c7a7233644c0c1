"""Labels that come later are joined with what each model predicted."""

import gc
import math

import numpy as np
import pytest

from headrace.serving.feedback import Feedback, Predicted
from headrace.serving.requests import BadRequest

LABELS = ("click", None, "buy")


def scores(*clicks: float) -> bytes:
    return np.array([[click, 5.0, click / 2] for click in clicks], np.float32).tobytes()


def test_labels_are_joined_with_the_predictions_of_every_model_once() -> None:
    told: list[tuple[str, int, list[float], list[float]]] = []
    feedback = Feedback(on_labels=lambda name, version, p, y: told.append((name, version, p.tolist(), y.tolist())))
    feedback.remember("a", Predicted("main", 3, LABELS, scores(0.5, 0.25)))
    feedback.remember("a", Predicted("new", 7, LABELS, scores(0.75, 0.5)))
    assert feedback.add("a", {"click": [1, 0], "buy": [0, None]}) == 2
    assert feedback.add("a", {"click": [1, 0]}) == 0
    assert told == [("main", 3, [0.5, 0.25], [1.0, 0.0]), ("new", 7, [0.75, 0.5], [1.0, 0.0])]
    found = feedback.quality()
    ne = -(math.log(0.5) + math.log(0.75)) / 2 / math.log(2)
    assert found["main"]["click"] == pytest.approx({"rows": 2, "ne": ne, "calibration": 0.75})
    assert found["new"]["buy"] == {"rows": 1, "ne": None, "calibration": None}


def test_what_waits_is_invisible_to_the_garbage_collector() -> None:
    feedback, scored = Feedback(), scores(0.5)
    for request in range(1000):
        feedback.remember(str(request), Predicted("main", 1, LABELS, scored))
    gc.collect()  # it stops to track tuples when it meets them
    gc.collect()
    assert not [each for each in gc.get_referrers(scored) if isinstance(each, tuple)]


def test_the_oldest_requests_are_forgotten_first() -> None:
    feedback = Feedback(most_rows=4)
    for request in "abc":
        feedback.remember(request, Predicted("main", 1, LABELS, scores(0.5, 0.5)))
    assert [feedback.add(request, {"click": [1, 0]}) for request in "abcd"] == [0, 2, 2, 0]


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ({"clck": [1, 0]}, "labels: given 'clck', expected some of: buy, click"),
        ({"click": [1]}, "labels: click: expected 2 numbers from 0 to 1, or null"),
        ({"click": [1, 2]}, "labels: click: expected 2 numbers"),
        ({"click": [1, "0"]}, "labels: click: expected 2 numbers"),
        ({"click": 1}, "labels: click: expected 2 numbers"),
        ({"click": [1, math.nan]}, "labels: click: expected 2 numbers"),
    ],
)
def test_labels_that_do_not_fit_are_refused_and_the_request_can_be_labelled_again(
    labels: dict[str, object], message: str
) -> None:
    feedback = Feedback()
    feedback.remember("a", Predicted("main", 1, LABELS, scores(0.5, 0.5)))
    with pytest.raises(BadRequest, match=message):
        feedback.add("a", labels)
    assert feedback.add("a", {"click": [1, 0]}) == 2
