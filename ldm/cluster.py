"""Bulk work here, or on the devices of a Ray cluster: one worker each, an item at a time (docs/scale.md).

Plain Ray actors: Ray Data tries a row that ends its worker again without end, and the run never passes it.
"""

import contextlib
import logging
import os
import signal
import socket
from collections import Counter, deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from typing import Any

from tqdm.auto import tqdm

from ldm.files import ROOT, check_stopped, excerpt, first_line

log = logging.getLogger(__name__)

Stream = Callable[[Iterable[Any]], Iterator[Any]]
TRIES = 3  # workers that an item may end before it counts as failed; chosen
AHEAD = 8  # items per worker that may be finished before an earlier one is; chosen
CARRIED = ("BIFROST_", "HF_", "TRANSFORMERS_", "OMP_NUM_THREADS")  # environment that the workers get
ANSWERS_S = 10.0  # seconds in which a cluster must answer, which ray awaits for minutes; chosen
SHOWN = 3  # failed items that an error names


def spread(
    make: Callable[[], Stream],
    items: Sequence[Any],
    address: str,
    lost: Callable[[Any, str], Any] | None = None,
    block: int = 1,
) -> Generator[Any]:
    """The results of `make()(items)` in order; with an address, on the workers of a cluster.

    make: loads what the work needs, once in each worker, and gives the generator that maps items to results;
    it, items and results are pickled.
    lost: the result of an item whose work has failed in a worker, and why; without it the failed items are a
    ValueError when all others are done.
    block: items that a worker gets together; where one ends with an error, its items are done one by one
    """
    if not address:
        yield from make()(items)
        return
    failed: list[str] = []
    for number, results, why in _on_workers(make, items, address, block):
        if why and lost is not None:
            yield lost(items[number], why)
        elif why:
            failed.append(f"{excerpt(items[number])}: {why}")
            log.error("failed: %s", failed[-1])
        yield from results
    if failed:
        count = f"{len(failed)} of {len(items)} parts of the work failed"
        raise ValueError(f"{count}; the same command tries them again: {'; '.join(failed[:SHOWN])}")


class _Worker:
    """What does items on one device, in a process of the cluster."""

    def prepare(self, folder: str, make: Callable[[], Stream]) -> None:
        """Begin in the driver's folder, where relative paths start."""
        if not os.path.isdir(folder):
            raise ValueError(f"the node {os.uname().nodename} has no {folder}; all need the command's disk")
        os.chdir(folder)
        self.stream = make()

    def work(self, *items: Any) -> list[Any]:
        return list(self.stream(items))


def _on_workers(
    make: Callable[[], Stream], items: Sequence[Any], address: str, block: int
) -> Iterator[tuple[int, list[Any], str]]:
    """First item, results and why it failed or "", of every block in order. Ended workers are replaced."""
    if not items:
        return
    with _connected(address) as ray:
        if not (places := worker_places(ray.nodes())):
            raise ValueError(f"--ray {address}: the cluster has neither GPUs nor CPUs")
        block = max(1, min(block, len(items) // (2 * len(places))))  # so that all have work to the end
        calls: dict[Any, tuple[Any, range]] = {}  # to a worker: items; none: it prepares itself
        needs: dict[Any, dict[str, int]] = {}  # what a worker takes of its node
        queue = deque(range(len(items))[at : at + block] for at in range(0, len(items), block))
        idle, results = list[Any](), dict[int, tuple[range, list[Any], str]]()
        tries = Counter[range]()

        def start(place: dict[str, int]) -> None:
            worker = ray.remote(_Worker).options(scheduling_strategy="SPREAD", **place).remote()
            needs[worker] = place
            calls[worker.prepare.remote(os.getcwd(), make)] = worker, range(0)

        def take(call: Any) -> None:
            worker, numbers = calls.pop(call)
            found, why, alive = list[Any](), "", True
            try:
                found = ray.get(call)
            except ray.exceptions.RayTaskError as error:  # what the work raised
                if not numbers:
                    raise error.cause from error
                if not isinstance(error.cause, ValueError | OSError):
                    log.error("%s", error)
                why = " ".join(str(error.cause).split()) or type(error.cause).__name__
            except ray.exceptions.RayError as error:
                alive, tries[numbers] = False, tries[numbers] + 1
                why = f"ended {TRIES} workers: {first_line(error)}"
                if not numbers and tries[numbers] >= TRIES * count:
                    raise ValueError(f"--ray {address}: loading the networks {why}") from error
            if alive:
                idle.append(worker)
            else:
                ray.kill(worker)
                start(needs[worker])
            if why and len(numbers) > 1:
                queue.extendleft(range(number, number + 1) for number in reversed(numbers))
            elif not alive and numbers and tries[numbers] < TRIES:
                queue.appendleft(numbers)
            elif numbers:
                results[numbers[0]] = numbers, found, why

        count = min(len(places), len(queue))
        for place in places[:count]:
            start(place)
        at, bar = 0, tqdm(total=len(items), desc=f"{count} workers", disable=None)
        while at < len(items):
            while at not in results:
                while idle and queue and queue[0][0] < at + AHEAD * count * block:
                    worker, given = idle.pop(), queue.popleft()
                    calls[worker.work.remote(*(items[number] for number in given))] = worker, given
                for call in ray.wait(list(calls), timeout=1)[0]:
                    take(call)
                check_stopped()
            numbers, found, why = results.pop(at)
            yield at, found, why
            at += len(numbers)
            bar.update(len(numbers))


@contextlib.contextmanager
def _connected(address: str) -> Iterator[Any]:
    """The library, connected to a cluster; all workers end with the connection."""
    try:
        import ray
    except ImportError:
        from ldm.doctor import requirement

        lack = f"--ray {address}: the library ray is missing; pip install {requirement('ray')}"
        raise ValueError(f"{lack} (requirements-extras.txt)") from None
    carried = {name: value for name, value in os.environ.items() if name.startswith(CARRIED)}
    carried["PYTHONPATH"] = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    options = {"include_dashboard": False} if address == "local" else {}
    handler = signal.getsignal(signal.SIGTERM)  # ray puts one of its own there
    host, _, port = address.removeprefix("ray://").rpartition(":")
    try:
        if port.isdecimal():
            socket.create_connection((host, int(port)), timeout=ANSWERS_S).close()
        ray.init(address, runtime_env={"env_vars": carried}, logging_level=logging.WARNING, **options)
    except (OSError, RuntimeError, ValueError, ray.exceptions.RayError) as error:
        raise ValueError(f"--ray {address}: {first_line(error)}") from error
    finally:
        with contextlib.suppress(ValueError):  # in a thread, where ray sets none either
            signal.signal(signal.SIGTERM, handler)
    try:
        yield ray
    finally:
        ray.shutdown()


def worker_places(nodes: Sequence[dict[str, Any]]) -> list[dict[str, int]]:
    """What each worker takes: a GPU; without GPUs OMP_NUM_THREADS CPUs, or all of a node."""
    resources = [node["Resources"] for node in nodes if node["Alive"]]
    places = [{"num_gpus": 1, "num_cpus": 0} for has in resources for _ in range(int(has.get("GPU", 0)))]
    for cpus in [int(has.get("CPU", 0)) for has in resources if not places]:
        threads = max(1, min(cpus, int(os.environ.get("OMP_NUM_THREADS", cpus))))
        places += [{"num_cpus": threads}] * (cpus // threads)
    return places
