"""Training that has gone wrong is seen, and training that goes well is left alone."""

from confcascade.bench.training.verbalized.guards import CollapseGuard


def after(guard, steps, **told):
    return [guard.problem({f"stated/{name}": value for name, value in told.items()}) for _ in range(steps)]


def test_statements_that_cannot_be_read():
    said = after(CollapseGuard(window=5), 5, read=0.4, alike=0.1)
    assert said[:4] == [None] * 4
    assert said[4] == "only 40% of the last 5 steps' statements can be read"


def test_one_number_for_everything():
    assert after(CollapseGuard(window=5), 5, read=1.0, alike=0.99)[-1] == (
        "99% of the last 5 steps' statements are the same number"
    )


def test_a_bad_beginning_is_forgiven():
    guard = CollapseGuard(window=5)
    assert after(guard, 2, read=0.0) == [None] * 2
    assert after(guard, 20, read=1.0, alike=0.5) == [None] * 20


def test_lines_of_the_log_without_statements_are_passed_over():
    assert after(CollapseGuard(window=1), 3) == [None] * 3
