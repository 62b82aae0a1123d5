"""Problems out and in again: the same class, and something sensible for what this version does not know."""

from __future__ import annotations

import pickle
from typing import Any

import pytest

from rl_onoff import errors
from rl_onoff.errors import PROBLEM_PREFIX, InvalidField, OnOffError, Overloaded, RequestError, ServiceError


def every(root: type[OnOffError] = OnOffError) -> list[type[OnOffError]]:
    return [root, *(found for child in root.__subclasses__() for found in every(child))]


@pytest.mark.parametrize("cls", every())
def test_a_problem_comes_back_as_its_class(cls: type[OnOffError]) -> None:
    problem = cls("what is wrong", limit=5).problem()
    assert problem["type"] == PROBLEM_PREFIX + cls.slug
    error = errors.from_problem(problem | {"request_id": "r1", "instance": "/x"}, retry_after=2.5)
    assert type(error) is cls
    assert str(error) == error.detail == "what is wrong"
    assert (error.request_id, error.retry_after, error.extensions) == ("r1", 2.5, {"limit": 5})
    assert (error.status, error.retryable) == (cls.status, cls.retryable)
    assert error.problem() == problem | {"retry_after": 2.5}  # in the body too: the event of a stream has no header


def test_every_type_has_its_own_name() -> None:
    slugs = [cls.slug for cls in every()]
    assert len(set(slugs)) == len(slugs)


def test_a_field_is_named() -> None:
    error = InvalidField("must be positive", field="items.0.top_k")
    assert str(error) == "items.0.top_k: must be positive"
    assert error.extensions["errors"] == [{"field": "items.0.top_k", "message": "must be positive"}]
    assert errors.from_problem(error.problem()).problem() == error.problem()


@pytest.mark.parametrize(
    ("status", "cls"), [(400, RequestError), (418, RequestError), (499, RequestError), (500, ServiceError)]
)
def test_an_unknown_type_is_told_by_its_status(status: int, cls: type[OnOffError]) -> None:
    error = errors.from_problem({"type": "urn:other", "status": status, "title": "Odd", "retryable": True})
    assert type(error) is cls
    assert (error.status, error.retryable, error.detail) == (status, True, "Odd")


def test_the_class_is_left_as_it_was() -> None:
    errors.from_problem(Overloaded("full").problem() | {"status": 430, "retryable": False})
    assert (Overloaded.status, Overloaded.retryable) == (429, True)


@pytest.mark.parametrize(
    "problem",
    [
        {},
        {"type": None, "status": "500", "detail": 5},
        {"status": True},
        {"status": 503, "retry_after": 3, "self": "x", "cls": 1, "detail": "d"},
        {"title": "only a title"},
    ],
)
def test_any_object_makes_an_error(problem: dict[str, Any]) -> None:
    error = errors.from_problem(problem)
    assert isinstance(error, OnOffError)
    assert isinstance(error.detail, str)
    assert isinstance(error.status, int)
    assert not isinstance(error.status, bool)


def test_errors_cross_process_borders() -> None:
    for error in (Overloaded("full", retry_after=1.0, queue=3), InvalidField("bad", field="x")):
        copy = pickle.loads(pickle.dumps(error))
        assert (type(copy), str(copy), copy.extensions) == (type(error), str(error), error.extensions)
        assert copy.retry_after == error.retry_after


def test_a_missing_package_names_the_command() -> None:
    error = errors.MissingDependency.of("torch", "hf", "the Hugging Face backend")
    assert "pip install 'rl-onoff[hf]'" in error.detail
