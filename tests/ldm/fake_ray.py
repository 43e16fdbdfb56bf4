"""The library ray in one process, for tests of what is spread over workers."""

from collections.abc import Callable
from functools import partial
from types import SimpleNamespace
from typing import Any

import cloudpickle

from tests.conftest import ROOT


class RayError(Exception):
    pass


class RayTaskError(RayError):
    def __init__(self, cause: Exception) -> None:
        super().__init__(f"traceback of {cause}")
        self.cause = cause


class FakeRay:
    """The part of ray that is used, in this process: calls run when they are waited for, the last one first.

    pickles: what calls are given, as between processes
    A call that raises KeyboardInterrupt ends its worker: its calls, then and later, have no answer.
    """

    exceptions = SimpleNamespace(RayError=RayError, RayTaskError=RayTaskError)

    def __init__(self, *nodes: dict[str, float], pickles: bool = False) -> None:
        self.pickles = pickles
        self.where, self.workers, self.dead, self.calls = nodes, list[Any](), set[int](), list[Any]()

    def init(self, address: str, **options: Any) -> None:
        assert options["runtime_env"]["env_vars"]["PYTHONPATH"].startswith(str(ROOT))

    def shutdown(self) -> None:
        self.dead |= set(map(id, self.workers))

    def nodes(self) -> list[dict[str, Any]]:
        return [{"Alive": True, "Resources": node} for node in self.where] + [{"Alive": False}]

    def remote(self, kind: type) -> Any:
        def start() -> Any:
            worker = kind()
            self.workers.append(worker)
            remote = lambda name: SimpleNamespace(remote=partial(self.call, worker, name))  # noqa: E731
            return Handle(prepare=remote("prepare"), work=remote("work"), me=worker)

        def options(**needs: Any) -> Any:
            assert needs.pop("scheduling_strategy") == "SPREAD"
            self.needs = needs
            return SimpleNamespace(remote=start)

        return SimpleNamespace(options=options)

    def call(self, worker: Any, name: str, *given: Any) -> "Call":
        given = cloudpickle.loads(cloudpickle.dumps(given)) if self.pickles else given
        self.calls.append(call := Call(worker, partial(getattr(worker, name), *given)))
        return call

    def wait(self, calls: list["Call"], timeout: float) -> tuple[list["Call"], list["Call"]]:
        mine = [call for call in calls if call.worker is calls[-1].worker]
        return [mine[0]], calls  # a worker does its calls in turn

    def get(self, call: "Call") -> Any:
        try:
            if id(call.worker) in self.dead:
                raise KeyboardInterrupt
            return call.work()
        except KeyboardInterrupt:
            self.dead.add(id(call.worker))
            raise RayError("the worker is dead\nand gone") from None
        except Exception as error:
            raise RayTaskError(error) from error

    def kill(self, handle: Any) -> None:
        self.dead.add(id(handle.me))


class Handle(SimpleNamespace):
    __hash__ = object.__hash__
    __eq__ = object.__eq__


class Call:
    def __init__(self, worker: Any, work: Callable[[], Any]) -> None:
        self.worker, self.work = worker, work
