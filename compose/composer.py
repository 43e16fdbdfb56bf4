"""Composites of many jobs in one process: repeated files are read once, and jobs that fit share batches.

On a CPU every image is that of the job alone, to the bit; on a GPU up to rounding.
"""

import logging
from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import Any

from compose.models import JobNetworks
from compose.painters import Work, at_once
from compose.pipeline import Result, compose_prepared, prepare
from ldm.denoise import Monitor
from ldm.files import check_stopped, first_line
from ldm.settings.resources import resources_named

logger = logging.getLogger(__name__)

FAILURES = (ValueError, OSError, RuntimeError)  # of one job; the others go on
REMEMBERED = 2**29  # bytes; chosen: 60 images of a megapixel with their depth


class Composer:
    """Composes jobs, which have `settings`, with the networks of the last one; remembers repeated files."""

    def __init__(self) -> None:
        self.networks = JobNetworks(remembers=REMEMBERED)

    def at_once(self, job: Any) -> int:
        """How many jobs to take with this one."""
        try:
            return at_once(self.networks.of(job.settings))
        except FAILURES:  # the job itself says so
            return 1

    def results(self, jobs: Sequence[Any]) -> Iterator[tuple[Any, Result | Exception]]:
        """Every job with its result or its error."""
        groups = defaultdict[Any, list[tuple[Any, Work]]](list)
        for job in jobs:
            try:
                models = self.networks.of(job.settings)
                with resources_named(job.settings):
                    work = prepare(job.settings, models)
            except FAILURES as error:
                yield job, error
            else:
                if work.group is None:
                    yield from self.painted([(job, work)])
                else:
                    groups[work.group].append((job, work))
        for group in groups.values():
            yield from self.painted(group)

    def painted(self, group: Sequence[tuple[Any, Work]]) -> Iterator[tuple[Any, Result | Exception]]:
        """The results of works with one `group`; where their batch fails, of each alone."""
        jobs, works = zip(*group, strict=True)
        try:
            with resources_named(jobs[0].settings):
                results = compose_prepared(works, Monitor(progress=False))
        except FAILURES as error:
            check_stopped()
            if len(group) > 1:
                logger.warning("%d jobs in one batch: %s; each alone now", len(group), first_line(error))
                for one in group:
                    yield from self.painted([one])
            else:
                yield jobs[0], error
        else:
            yield from zip(jobs, results, strict=True)
