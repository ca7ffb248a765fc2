"""Markup in every text of a result that its page can be made of."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

from prunus.errors import PrunusError

MARKUP = "<script>alert(1)</script><img src=x onerror=alert(2)>\"'"
Place = tuple[Any, ...]


def places(tree: Any, path: Place = ()) -> list[tuple[Place, bool]]:
    """Where a tree has texts: (path, whether it is the key there or the value)."""
    found: list[tuple[Place, bool]] = []
    items = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list | tuple) else ()
    for key, value in items:
        if isinstance(value, str):
            found.append(((*path, key), False))
        if isinstance(key, str):
            found.append(((*path, key), True))
        found += places(value, (*path, key))
    return found


def poisoned(result: Any, at: list[tuple[Place, bool]]) -> Any:
    """A copy with markup behind these texts; keys change last, innermost first, so that paths stay right."""
    tree = _plain(copy.deepcopy(result))
    for path, is_key in sorted(at, key=lambda place: (place[1], -len(place[0]))):
        holder = tree
        for key in path[:-1]:
            holder = holder[key]
        last = path[-1]
        if is_key:
            items = [(f"{key}{MARKUP}" if key == last else key, value) for key, value in holder.items()]
            holder.clear()
            holder.update(items)
        else:
            holder[last] = f"{holder[last]}{MARKUP}"
    return tree


def _plain(tree: Any) -> Any:
    if isinstance(tree, dict):
        return {key: _plain(value) for key, value in tree.items()}
    return [_plain(value) for value in tree] if isinstance(tree, list | tuple) else tree


def texts_that_stayed_text(render: Callable[[Any], str], result: Any) -> int:
    """How many texts of ``result`` could hold markup; asserts that none of it became part of the page.

    Some texts are the page's own words, of which others make no page: halves are tried until only those are left out.
    """
    tried = [places(result)]
    stayed = 0
    while tried:
        at = tried.pop()
        try:
            page = render(poisoned(result, at))
        except (PrunusError, KeyError, TypeError, ValueError, StopIteration, IndexError):
            if len(at) > 1:
                tried += [at[: len(at) // 2], at[len(at) // 2 :]]
            continue
        assert "<script>alert" not in page and "<img src=x" not in page, f"markup in {at[:5]} is part of the page"
        stayed += len(at)
    return stayed
