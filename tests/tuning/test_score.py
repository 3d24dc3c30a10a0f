"""Fronts, hypervolume, the knee and the modes' numbers, against slow definitions."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tuning.score import Aim, Point, dominates, front, hypervolume, knee

POINTS = st.lists(st.builds(Point, st.integers(0, 12).map(float), st.integers(1, 12).map(float)), min_size=1)


@given(POINTS)
def test_the_front_is_the_points_that_no_other_dominates(points: list[Point]) -> None:
    members = front(points)
    expected = {point for point in points if not any(dominates(other, point) for other in points)}
    assert {points[index] for index in members} == expected
    assert len(members) == len(expected)
    assert [points[index].bits for index in members] == sorted(points[index].bits for index in members)


@given(POINTS)
def test_the_hypervolume_is_the_area_that_some_point_dominates(points: list[Point]) -> None:
    reference = Point(-1.0, 13.0)
    squares = [(accuracy + 0.5, bits + 0.5) for accuracy in range(-1, 13) for bits in range(13)]
    covered = sum(any(p.accuracy > accuracy and p.bits < bits for p in points) for accuracy, bits in squares)
    assert hypervolume(points, reference) == pytest.approx(covered)


def test_a_margin_asks_for_that_much_more_accuracy() -> None:
    assert dominates(Point(80, 100), Point(77, 100), margin=3)
    assert not dominates(Point(79.9, 100), Point(77, 100), margin=3)
    assert not dominates(Point(90, 101), Point(77, 100), margin=3)
    assert not dominates(Point(80, 100), Point(80, 100))


def test_the_knee_is_where_accuracy_stops_to_pay() -> None:
    points = [Point(50, 1e3), Point(80, 2e3), Point(82, 64e3), Point(60, 3e3)]
    assert knee(points) == 1
    assert knee(points[:1]) == 0
    assert knee([Point(50, 1e3), Point(80, 2e3)]) == 1


@given(POINTS, st.integers(1, 12))
def test_the_most_accurate_set_under_a_budget_has_the_highest_value(points: list[Point], budget: int) -> None:
    aim = Aim("best-under-budget", kilobits=budget / 1000)
    best = aim.best(points)
    fitting = [point for point in points if point.bits <= budget]
    assert (best is None) == (not fitting)
    if best is not None:
        assert points[best].accuracy == max(point.accuracy for point in fitting)
        assert aim.values(points[best]) == max(aim.values(point) for point in points)


@given(POINTS, st.integers(1, 12))
def test_the_fewest_bits_at_an_accuracy_have_the_lowest_value(points: list[Point], wanted: int) -> None:
    aim = Aim("target-accuracy", accuracy=float(wanted))
    best = aim.best(points)
    fitting = [point for point in points if point.accuracy >= wanted]
    assert (best is None) == (not fitting)
    if best is not None:
        assert points[best].bits == min(point.bits for point in fitting)
        assert aim.values(points[best]) == min(aim.values(point) for point in points)


def test_a_set_that_misses_leads_towards_the_number() -> None:
    budget = Aim("best-under-budget", kilobits=10)
    assert budget.values(Point(90, 20e3)) == (-1.0,)
    assert budget.values(Point(90, 40e3)) < budget.values(Point(10, 20e3)) < budget.values(Point(0, 9e3))
    target = Aim("target-accuracy", accuracy=80)
    assert target.values(Point(79, 1e3)) > target.values(Point(80, 1e9))
    assert target.values(Point(80, 1e6)) == (math.log2(1000),)
    assert Aim().best([Point(50, 1e3), Point(80, 2e3), Point(82, 64e3)]) == 1
