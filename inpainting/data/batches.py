"""Work by a language model in batches: journalled, and the same answers whether or not it was interrupted.

A network's answers depend a little on which images share a batch, so batches are fixed beforehand: a batch
that was cut off is done again as a whole.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

from tqdm.auto import tqdm

from ldm.journal import Journal

log = logging.getLogger(__name__)

T = TypeVar("T")


def run_batches(
    journal: Journal,
    items: Sequence[str],
    load: Callable[[str], T],
    answer: Callable[[Sequence[T]], Sequence[Mapping[str, Any]]],
    batch: int,
) -> None:
    """Load each item, answer them in batches, record the answers.

    An item that cannot be loaded (ValueError) is left out, and tried again at the next call.
    """
    with tqdm(total=len(items), desc=journal.name) as bar:
        for start in range(0, len(items), batch):
            group = items[start : start + batch]
            pending = [item for item in group if item not in journal.done]
            if any(item not in journal.left_out for item in pending):
                pending = list(group)
            loaded: dict[str, T] = {}
            for item in pending:
                try:
                    loaded[item] = load(item)
                except ValueError as error:
                    journal.leave_out(item, str(error))
            if loaded:
                journal.add_all(dict(zip(loaded, answer(list(loaded.values())), strict=True)))
            bar.update(len(group))
    journal.finish()


def share(items: Sequence[str], index: int, count: int) -> list[str]:
    """The items of process `index` of `count`."""
    return list(items[index::count])
