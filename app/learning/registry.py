"""Registry: the options type of a recipe -> the implementation that carries it out.

Knows: which implementation belongs to which options type. Must never know: what an implementation does.

Laws:
    * One implementation for one options type; registering a second one is an error.
    * An unknown type is an error that lists the known names.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Generic, TypeVar

T = TypeVar("T")


class Registry(Generic[T]):
    """Implementations of one kind (criteria, networks, ...), by the type of their options."""

    def __init__(self, kind: str) -> None:
        self._kind = kind
        self._implementations: dict[type, T] = {}

    def register(self, options: type) -> Callable[[T], T]:
        """Decorator: carry out ``options`` by what is decorated.

        Raises:
            ValueError: when ``options`` has an implementation already.
        """

        def add(implementation: T) -> T:
            if options in self._implementations:
                raise ValueError(f"{self._kind} {options.__name__} is registered already")
            self._implementations[options] = implementation
            return implementation

        return add

    def __getitem__(self, options: object) -> T:
        """The implementation for an options value.

        Raises:
            LookupError: when its type is unknown; lists the known ones.
        """
        found = self._implementations.get(type(options))
        if found is None:
            known = ", ".join(kind.__name__ for kind in self._implementations) or "none"
            raise LookupError(f"no {self._kind} is registered for {type(options).__name__}; registered: {known}")
        return found

    def __contains__(self, options: object) -> bool:
        return type(options) in self._implementations
