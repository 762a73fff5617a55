"""The user's mistake inside the layers of exceptions that Ray wraps around it."""

from collections.abc import Iterator

from rayeffdet.errors import UserError


def user_error_in(error: BaseException) -> UserError | None:
    """Returns the first :class:`UserError` that an exception of Ray carries, or None.

    Ray keeps the original in different places: ``cause`` of a failed task, ``worker_failures`` of a
    training run, ``controller_failure`` of its controller, ``_base_exc`` of a worker's thread.
    """
    for inner in _carried(error, set()):
        if isinstance(inner, UserError):
            # Ray raises an instance of a class that derives from both; only the plain one has
            # the right type name and problems.
            return inner
    return None


def _carried(error: object, seen: set[int]) -> Iterator[BaseException]:
    if not isinstance(error, BaseException) or id(error) in seen:
        return
    seen.add(id(error))
    failures = getattr(error, "worker_failures", None) or {}
    candidates = [
        getattr(error, "cause", None),
        getattr(error, "_base_exc", None),
        getattr(error, "controller_failure", None),
        *failures.values(),
        error.__cause__,
        error.__context__,
    ]
    for candidate in candidates:
        yield from _carried(candidate, seen)
    yield error
