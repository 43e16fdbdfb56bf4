"""Kills, two at once, full disk and threads over all long commands: is the end state that of a run alone?

    python -m benchmarks.campaign --kills 240 --renames 10                 (minutes on two quiet cores)
    python -m benchmarks.campaign --only precompute_depth --kills 4        (a minute; other rows stay)

This process imports the product once and forks, so that a kill hits work and not imports; the child calls the
command's own app in a session of its own. `kills`: SIGKILL, SIGTERM or SIGINT at random moments, several in a
row. `at renames`: SIGKILL just before the n-th. `together`: two processes, at once or one later. `full disk`:
a small file system, or small files where none may be mounted. `threads`: twice in one process. Then the
command runs once more, and what it leaves is compared with a run alone, without times. wrong: a file differs
or is missing; refused: the command cannot go on; left over: a file that a run alone does not leave;
traceback: an error of several lines; exit: an unexpected exit code, or an orphan.
"""

import contextlib
import importlib
import json
import logging
import os
import resource
import shlex
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from omegaconf import OmegaConf

from benchmarks import campaign_state as state
from benchmarks.harness import RESULTS, Out, write_results
from ldm.files import read_json
from ldm.settings.cli import INTERRUPTED, run_app, run_module, single_app

log = logging.getLogger(__name__)

COMMANDS = Path("benchmarks/campaign.yaml")
SIGNALS = [signal.SIGKILL] * 4 + [signal.SIGTERM, signal.SIGINT]  # KILL most often, as it is the hardest
ENDS = {signal.SIGKILL: (-9,), signal.SIGTERM: (-15, 143), signal.SIGINT: (130,)}  # exit codes
LONGEST = 60, 40  # seconds, and times the duration alone, that a run may take; a machine grows busy
STAYS_S = 30  # that processes of a session may outlive the one that was killed
BUSY = "another process is writing"
ROUNDS = 5  # kills in a row, before the command may end
DISKS = (0.05, 0.5)  # parts of what a run alone leaves
FAULTS = ("wrong", "refused", "left over", "traceback", "exit")


@dataclass
class Campaign:
    """One command: where it works, what a run alone leaves, and what was found."""

    place: Path
    data: Path
    job: dict[str, str]  # of campaign.yaml
    web: str = ""  # address that serves the data
    alone: dict[str, str] = field(default_factory=dict)
    seconds: float = 30.0  # alone; a guess until it is known
    cpu_s: float = 0.0  # of the processor, whatever else runs
    renames: int = 0
    bytes: int = 0
    counts: Counter = field(default_factory=Counter)
    findings: list[str] = field(default_factory=list)

    def call(self, argv: str, place: Path) -> int:
        module, _, name = self.job["app"].partition(":")
        build = getattr(importlib.import_module(module), name)
        return run_app(build, shlex.split(argv.format(out=place / "out", data=self.data, web=self.web)))

    def start(self, argv: str = "", rename: int = 0, size: int = 0, beside: Path | None = None) -> int:
        """Fork a child that runs `argv`, by default the job's; returns its process id. rename: before which
        it kills itself; size: largest file, bytes; beside: where a second thread runs the same
        """
        if child := os.fork():
            return child
        code, argv = 1, argv or self.job["argv"]
        try:
            os.setsid()
            state.output_to(self.place.with_suffix(".log"))
            os.environ["BIFROST_MODELS"] = str(self.place)
            importlib.import_module("torch").set_num_threads(1)  # here: threads do not survive a fork
            logging.getLogger().setLevel(logging.WARNING)
            renames = state.count_renames(rename)
            limits = resource.getrlimit(resource.RLIMIT_FSIZE)
            resource.setrlimit(resource.RLIMIT_FSIZE, (size or limits[0], limits[1]))
            places = [self.place, beside] if beside else [self.place]
            with ThreadPoolExecutor() as threads:
                works = [threads.submit(self.call, argv, place) for place in places[1:]]
                code = max([self.call(argv, self.place), *(work.result() for work in works)])
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
            found = {"renames": renames[0], "cpu_s": time.process_time(), "modules": sorted(sys.modules)}
            self.place.with_suffix(".json").write_text(json.dumps(found))
        except (SystemExit, KeyboardInterrupt) as error:  # of Ctrl-C before or after the command itself
            code = getattr(error, "code", INTERRUPTED)
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stderr.flush()
            os._exit(code)

    def finish(self, child: int, case: str) -> int:
        """Wait for a child; its exit code, negative for a signal. Notes what stays of its session."""
        code = state.wait(child, LONGEST[0] + LONGEST[1] * self.seconds)
        ends = time.monotonic() + (STAYS_S if code is not None else 0)
        with contextlib.suppress(ProcessLookupError):
            while time.monotonic() < ends:
                os.killpg(child, 0)
                time.sleep(0.02)
            os.killpg(child, signal.SIGKILL)
            self.note("exit", case, "processes stay")
        return (state.wait(child, 60) or 0) if code is None else code

    def output(self) -> str:
        return self.place.with_suffix(".log").read_text(errors="replace").strip()

    def said(self) -> str:
        return self.output().rpartition("\n")[2]

    def note(self, kind: str, case: str, what: str) -> None:
        self.counts[kind] += 1
        self.findings.append(f"{case}: {kind}: {what.replace(str(self.place.parent), '')}"[:300])
        log.warning("%s: %s", self.job["argv"][:40], self.findings[-1])

    def prepare(self) -> None:
        before = self.place.with_suffix(".before")
        shutil.rmtree(self.place, ignore_errors=True)
        self.place.with_suffix(".log").write_text("")
        if before.exists():
            shutil.copytree(before, self.place)
        self.place.mkdir(parents=True, exist_ok=True)
        if "first" in self.job and not before.exists():
            if self.finish(self.start(self.job["first"]), "first"):
                raise ValueError(f"{self.job['first']}: {self.said()}")
            shutil.copytree(self.place, before)

    def measure(self) -> bool:
        """Two runs alone: the first imports what is imported late. Returns whether both end."""
        for repeat in range(2):
            self.prepare()
            started, before = time.monotonic(), self.alone
            if code := self.finish(self.start(), "alone"):
                self.note("refused", "alone", f"{code}: {self.said()}")
                return False
            self.seconds = time.monotonic() - started
            found = read_json(self.place.with_suffix(".json"))
            self.renames, self.cpu_s = found["renames"], found["cpu_s"]
            self.alone = state.contents(self.place)
            for name in found["modules"]:
                with contextlib.suppress(Exception):
                    importlib.import_module(name)
            if repeat and (changed := state.differences(self.alone, before)):
                self.note("wrong", "alone twice", ", ".join(changed))
        self.bytes = sum(path.stat().st_size for path in self.place.rglob("*") if path.is_file())
        return True

    def judge(self, case: str) -> None:
        """Run the command to its end, and compare."""
        if code := self.finish(self.start(), case):
            self.note("refused", case, f"{code}: {self.said()}")
        else:
            self.compare(case, self.place)

    def compare(self, case: str, place: Path) -> None:
        if "Traceback" in self.output():
            first, _, rest = self.output().partition("Traceback")
            self.note("traceback", case, f"{first[-60:]} ... {rest.partition('Traceback')[0][-180:]}")
        now = state.contents(place, self.place)
        if more := now.keys() - self.alone.keys():
            self.note("left over", case, ", ".join(sorted(more)[:4]))
        if changed := [name for name in state.differences(now, self.alone) if name not in more]:
            self.note("wrong", case, ", ".join(changed))

    def kill_at_random(self, count: int, rng: np.random.Generator) -> None:
        killed = chain = tries = 0
        while killed < count and (tries := tries + 1) <= 6 * count:
            if not chain:
                self.prepare()
            number, after = SIGNALS[rng.integers(len(SIGNALS))], rng.uniform(0.02, 0.95) * self.cpu_s
            case = f"{number.name} after {after:.2f} of {self.cpu_s:.2f} CPU seconds"
            child = self.start()
            if (code := state.wait(child, LONGEST[1] * self.seconds, after)) is None:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(child, number)
                code, killed, chain = self.finish(child, case), killed + 1, chain + 1
                if code not in (*ENDS[number], 0):
                    self.note("exit", case, f"{code}: {self.said()}")
            elif code:
                self.note("refused", case, f"{code}: {self.said()}")
            if chain and (code == 0 or chain == ROUNDS or killed == count):
                self.judge(case)
                chain = 0
        self.counts["kills"] += killed

    def kill_at_renames(self, most: int) -> None:
        for number in sorted({round(x) for x in np.linspace(1, self.renames, min(most, self.renames))}):
            self.prepare()
            if self.finish(self.start(rename=number), f"rename {number}") == -signal.SIGKILL:
                self.counts["at renames"] += 1
            self.judge(f"rename {number} of {self.renames}")

    def run_together(self) -> None:
        for delay in (0.0, 0.3 * self.seconds):
            self.prepare()
            case, children = f"two, {delay:.1f} s apart", [self.start()]
            time.sleep(delay)
            children.append(self.start(self.job.get("also", "")))
            codes = sorted(self.finish(child, case) for child in children)
            self.counts["together"] += 1
            if codes != [0, 0] and not (codes == [0, 2] and BUSY in self.output()):
                self.note("exit", case, f"{codes}: {self.said()}")
            self.judge(case)

    def fill_disk(self, part: float) -> None:
        self.prepare()
        case = f"disk of {part} of {self.bytes >> 10} kB"
        with state.small_disk(self.place, int(part * self.bytes)) as mounted:
            code = self.finish(self.start(size=0 if mounted else int(part * self.bytes) // 4), case)
            names = state.contents(self.place)
        self.counts["full disk"] += 1
        if code not in (0, 1, 2):
            self.note("exit", case, f"{code}: {self.said()}")
        if hidden := [name for name in names if "/." in f"/{name}" or name.endswith(".tmp")]:
            self.note("left over", f"{case}, before the next run", ", ".join(hidden[:4]))
        self.judge(case)

    def run_in_threads(self) -> None:
        beside = self.place.with_name(f"B{self.place.name[1:]}")  # as long, so that files have the same size
        self.prepare()
        if code := self.finish(self.start(beside=beside), "threads"):
            self.note("exit", "threads", f"{code}: {self.said()}")
        self.counts["threads"] += 1
        for place in (self.place, beside):
            self.compare(f"threads, {place.name}", place)
        shutil.rmtree(beside, ignore_errors=True)


def run_campaign(
    kills: Annotated[int, typer.Option(help="kills at random moments, over all commands", min=0)] = 200,
    renames: Annotated[int, typer.Option(help="most renames of a command before which it is killed")] = 40,
    only: Annotated[list[str] | None, typer.Option(help="names of commands; default: all")] = None,
    out: Out = RESULTS / "campaign.json",
) -> dict[str, Any]:
    """Kill, fill the disk, run twice at once and in threads: does each long command end as if alone?"""
    table: Any = OmegaConf.to_container(OmegaConf.load(COMMANDS), resolve=True)
    jobs, chosen = table["commands"], only or list(table["commands"])
    if unknown := [name for name in chosen if name not in jobs]:
        raise ValueError(f"--only: unknown command {unknown[0]!r}; there are {', '.join(jobs)}")
    from benchmarks.small_models import write_data
    from ldm.device import code_revision

    rows: dict[str, Any] = read_json(out)["commands"] if only and out.is_file() else {}
    with tempfile.TemporaryDirectory() as folder, state.served(Path(folder, "data")) as web:
        data, places = Path(folder, "data"), Path(folder, "runs")
        places.mkdir()
        write_data(data, web)
        texts, sources = " ".join(str(jobs[name]) for name in chosen), list[Campaign]()
        for name, job in reversed(table["sources"].items()):
            if f"{{data}}/{name}" in texts:
                sources, texts = [Campaign(places / "source", data, job), *sources], texts + str(job)
        for source in sources:
            if source.finish(source.start(), "source"):
                raise ValueError(f"{source.job['argv']}: {source.said()}")
        for index, name in enumerate(chosen):
            campaign = Campaign(places / f"A{index:02d}", data, jobs[name], web)
            if campaign.measure():
                campaign.kill_at_random(-(-kills // len(chosen)), np.random.default_rng((0, index)))
                campaign.kill_at_renames(renames)
                campaign.run_together()
                for part in DISKS:
                    campaign.fill_disk(part)
                if "first" not in jobs[name] and "{out}" in jobs[name]["argv"]:
                    campaign.run_in_threads()
            counts = {"seconds": round(campaign.seconds, 1), **dict.fromkeys(FAULTS, 0), **campaign.counts}
            rows[name] = {"revision": code_revision(), **counts, "findings": campaign.findings}
            log.info("%s: %s", name, rows[name])
            pairs = (pair for row in rows.values() for pair in row.items())
            keys = dict.fromkeys(key for key, value in pairs if isinstance(value, int))
            total = {key: sum(row.get(key, 0) for row in rows.values()) for key in keys}
            write_results(out, {"total": total, "commands": rows}, overwrite=bool(only or index))
            shutil.rmtree(campaign.place, ignore_errors=True)
    return {"out": out, "total": total, "failed": [name for name in rows if rows[name]["findings"]]}


build_app = single_app(run_campaign)

if __name__ == "__main__":
    run_module(build_app)
