"""When a training stops early, and which evaluation was the best."""

import json
import math

from llm_trainer.watch.stopping import Stopping
from peftjob.training import Training


def feed(made: Stopping, *losses: float) -> list[bool]:
    return [made.update(10 * (i + 1), loss) for i, loss in enumerate(losses)]


def stopping(patience: int | None, threshold: float = 0.0) -> Stopping:
    training = Training(early_stopping_patience=patience, early_stopping_threshold=threshold)
    return Stopping.of(training)


def test_it_stops_after_so_many_evaluations_without_a_better_one() -> None:
    made = stopping(2)
    feed(made, 3.0, 2.0, 2.5)
    assert not made.stop
    made.update(40, 2.0)
    assert made.stop
    assert (made.best_step, made.best_loss) == (20, 2.0)


def test_a_better_one_starts_the_count_anew() -> None:
    made = stopping(2)
    feed(made, 3.0, 3.5, 2.0, 2.5)
    assert not made.stop


def test_without_patience_it_never_stops_and_still_knows_the_best() -> None:
    made = stopping(None)
    assert feed(made, 2.0, 9.0, 1.0, 9.0, 9.0) == [True, False, True, False, False]
    assert not made.stop
    assert made.best_step == 30


def test_less_than_the_threshold_does_not_count_as_better_but_is_the_best() -> None:
    made = stopping(3, threshold=0.1)
    assert feed(made, 2.0, 1.95, 1.92) == [True, True, True]
    assert not made.stop
    made.update(40, 1.91)
    assert made.stop
    assert made.best_step == 40


def test_small_gains_add_up_to_a_threshold() -> None:
    made = stopping(2, threshold=0.1)
    feed(made, 2.0, 1.95, 1.85, 1.8)
    assert not made.stop


def test_a_loss_that_is_no_number_is_never_the_best() -> None:
    made = stopping(3)
    assert feed(made, math.nan, 2.0, math.nan) == [False, True, False]
    assert (made.best_step, made.best_loss) == (20, 2.0)


def test_state_survives_a_checkpoint() -> None:
    whole, first, second = stopping(2), stopping(2), stopping(2)
    feed(whole, 3.0, 2.0, 2.5, 2.4)
    feed(first, 3.0, 2.0, 2.5)
    second.load_state_dict(json.loads(json.dumps(first.state_dict())))
    second.update(40, 2.4)
    assert second.stop == whole.stop
    assert second.state_dict() == whole.state_dict()


def test_the_reason_names_the_evaluation_that_was_not_beaten() -> None:
    made = stopping(2, threshold=0.1)
    feed(made, 3.0, 2.0, 1.95, 1.92)
    assert made.stop
    assert made.reason == (
        "none of the last 2 evaluations was better by 0.1 than that of step 20 (2.0000)"
    )
    never = stopping(2)
    feed(never, math.nan, math.nan)
    assert never.reason == "none of 2 evaluations gave a loss that is a number"
