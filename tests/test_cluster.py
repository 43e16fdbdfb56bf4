"""The recipes for SLURM and Kubernetes: their lines are valid, and what they start exists and goes on."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml
from torch.distributed.run import get_args_parser
from yaml.constructor import ConstructorError

from cldm.training.settings import RunConfig
from tests import pages
from tests.conftest import ROOT
from tests.ldm.fit_job import train
from tests.ldm.test_fit import STEPS, assert_same, environment, rows

FOLDER = ROOT / "scripts" / "cluster"
STORE = "TORCH_DISABLE_SHARE_RDZV_TCP_STORE"
NAMES = ("compositor", "locator", "prompts", "lora")
SHELLS = [shell for shell in ("bash", "dash", "sh") if shutil.which(shell)]
# Options of sbatch (its manual page) and what they take.
SBATCH = {
    "job-name": r"[\w-]+",
    "nodes": r"\d+",
    "ntasks-per-node": r"\d+",
    "gpus-per-node": r"\d+",
    "cpus-per-task": r"\d+",
    "mem": r"\d+[KMGT]",
    "time": r"(\d+-)?\d\d:\d\d:\d\d",
    "requeue": None,
    "signal": r"(R:|B:)?[A-Z0-9]+@\d+",
    "open-mode": "append|truncate",
    "output": r"[\w%.-]+",
}
STUBS = {
    "python": 'for word; do printf "%s\\n" "$word"; done; '
    f'env | grep -E "^(RANK|LOCAL_RANK|WORLD_SIZE|HF_HUB_OFFLINE|{STORE})=" | sort >&2',
    "srun": 'echo "srun $MASTER_ADDR $MASTER_PORT $NODES $GPUS $*"; exit "$SRUN_CODE"',
    "scontrol": 'case $1 in show) printf "n7\\nn8\\n" ;; *) echo "scontrol $*" ;; esac',
    "squeue": 'echo "$JOB_STATE"',
}


@pytest.fixture
def stubs(tmp_path: Path) -> Path:
    """A folder of programs in the place of those of a cluster."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for name, body in STUBS.items():
        (folder / name).write_text(f"#!/bin/sh\n{body}\n")
        (folder / name).chmod(0o755)
    return folder


def run(stubs: Path, script: str, *given: str, shell: str = "sh", **settings: str) -> tuple[int, str, str]:
    done = subprocess.run(
        [shell, str(FOLDER / script), *given],
        env={"PATH": f"{stubs}:{os.environ['PATH']}", "PYTHON": str(stubs / "python"), **settings},
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
    )
    return done.returncode, done.stdout, done.stderr


class StrictLoader(yaml.SafeLoader):
    """Refuses a key that stands twice."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict:
        keys = [self.construct_object(key) for key, _ in node.value]  # type: ignore[no-untyped-call]
        if twice := {key for key in keys if keys.count(key) > 1}:
            raise ConstructorError(None, None, f"twice: {twice}", node.start_mark)
        return super().construct_mapping(node, deep)


def documents(text: str) -> dict[str, Any]:
    return {document["kind"]: document for document in yaml.load_all(text, StrictLoader)}


def kubernetes() -> tuple[dict[str, Any], dict[str, Any], dict[str, Any], dict[str, str]]:
    """Service, Job, container and its variables."""
    found = documents((FOLDER / "job.yaml").read_text())
    (container,) = found["Job"]["spec"]["template"]["spec"]["containers"]
    return found["Service"], found["Job"], container, {one["name"]: one["value"] for one in container["env"]}


@pytest.mark.parametrize("shell", SHELLS)
@pytest.mark.parametrize("script", ["train.sh", "train.sbatch"])
def test_scripts_are_valid(shell: str, script: str) -> None:
    subprocess.run([shell, "-n", str(FOLDER / script)], check=True)


def wrong_lines(text: str) -> list[str]:
    """#SBATCH lines with an unknown option, a wrong value, or below the first command, where sbatch stops."""
    head = re.split(r"^[^#\n]", text, maxsplit=1, flags=re.M)[0].splitlines()
    wrong = []
    for line in [line for line in text.splitlines() if line.startswith("#SBATCH")]:
        match = re.fullmatch(r"#SBATCH --([a-z-]+)(?:=(\S+))?", line)
        name, value = match.groups() if match else ("", None)
        takes = SBATCH.get(name, "")
        good = takes is None and value is None or bool(takes and value and re.fullmatch(takes, value))
        if line not in head or not good:
            wrong.append(line)
    return wrong


def test_lines_of_sbatch() -> None:
    text = (FOLDER / "train.sbatch").read_text()
    assert wrong_lines(text) == []
    values = dict(re.findall(r"^#SBATCH --([a-z-]+)=?(\S*)", text, re.M))
    assert {"requeue", "signal", "open-mode"} <= values.keys()
    assert values["ntasks-per-node"] == values["gpus-per-node"]
    for broken in ("--gpus=x", "--tasks-per-nod=4", "--time=1 day", "--requeue=yes", "--signal=TERM"):
        assert wrong_lines(f"#!/bin/sh\n#SBATCH {broken}\n") == [f"#SBATCH {broken}"]
    assert wrong_lines("#!/bin/sh\nset -u\n#SBATCH --nodes=2\n") == ["#SBATCH --nodes=2"]


def test_fields_of_the_job() -> None:
    service, job, container, variables = kubernetes()
    assert (service["apiVersion"], job["apiVersion"]) == ("v1", "batch/v1")
    assert service["spec"]["clusterIP"] == "None"
    assert service["spec"]["selector"] == {"job-name": job["metadata"]["name"]}
    spec, pod = job["spec"], job["spec"]["template"]["spec"]
    assert spec["completionMode"] == "Indexed"
    assert spec["completions"] == spec["parallelism"] == int(variables["NODES"])
    assert type(spec["backoffLimit"]) is int
    assert pod["restartPolicy"] == "Never"  # podFailurePolicy needs it
    assert pod["subdomain"] == service["metadata"]["name"]
    assert variables["MASTER_ADDR"] == f"{job['metadata']['name']}-0.{pod['subdomain']}"
    limits, requests = (container["resources"][name] for name in ("limits", "requests"))
    assert limits["nvidia.com/gpu"] == int(variables["GPUS"])
    assert limits["memory"] == requests["memory"]
    assert {type(value) for value in variables.values()} == {str}
    assert all(type(word) is str for word in (*container["command"], *container["args"]))
    volumes = {volume["name"] for volume in pod["volumes"]}
    assert {mount["name"] for mount in container["volumeMounts"]} == volumes
    assert all(mount["mountPath"].startswith("/") for mount in container["volumeMounts"])
    wait = int(re.findall(r"--shutdown-timeout (\d+)", (FOLDER / "train.sh").read_text())[0])
    assert 30 < wait < pod["terminationGracePeriodSeconds"]


def test_a_key_that_stands_twice_is_refused() -> None:
    with pytest.raises(ConstructorError, match="twice: {'kind'}"):
        documents("kind: Job\nkind: Service\n")


def test_scripts_name_no_host_and_no_place_of_a_machine() -> None:
    for path in FOLDER.iterdir():
        text = path.read_text()
        assert text.isascii()
        assert not re.search(
            r"/home|/tmp|/root|/mnt|/scratch|\d+\.\d+\.\d+\.\d+|[\w-]+\.(com|org|edu|local)\b(?!/gpu)", text
        ), path


@pytest.mark.parametrize("name", NAMES)
def test_a_task_of_srun_is_one_process_of_a_command_that_exists(name, stubs, monkeypatch) -> None:
    slurm = {"SLURM_PROCID": "5", "SLURM_LOCALID": "1", "SLURM_NTASKS": "8", "NODES": "2", "GPUS": "4"}
    extra = (
        "data.batch=2" if name == "compositor" else "fit.workers=2" if name != "locator" else "fit.batch=4"
    )
    code, words, variables = run(stubs, "train.sh", name, extra, **slurm)
    assert code == 0
    assert variables.split() == ["HF_HUB_OFFLINE=1", "LOCAL_RANK=1", "RANK=5", "WORLD_SIZE=8"]
    monkeypatch.chdir(ROOT)
    (settings,) = pages.rehearse(shlex.join(["python", *words.splitlines()]), monkeypatch)
    if name == "compositor":
        assert isinstance(settings, RunConfig)
        assert (settings.trainer.nodes, settings.trainer.devices, settings.data.batch) == (2, 4, 2)
    else:
        assert settings.fit.workers == 2 if name != "locator" else settings.fit.batch == 4


@pytest.mark.parametrize("name", NAMES)
def test_a_pod_starts_torchrun_with_options_that_exist(name, stubs, monkeypatch) -> None:
    variables = kubernetes()[3]
    code, words, shown = run(stubs, "train.sh", name, JOB_COMPLETION_INDEX="1", **variables)
    assert (code, shown.split()) == (0, ["HF_HUB_OFFLINE=1", f"{STORE}=1"])
    launcher, program = words.splitlines()[:2], words.splitlines()[2:]
    assert launcher == ["-m", "torch.distributed.run"]
    given = get_args_parser().parse_args(program)
    assert (given.nnodes, given.nproc_per_node, given.max_restarts) == ("2", "4", 8)
    assert given.rdzv_endpoint == "bifrost-train-0.bifrost-train:29500"
    assert "is_host=false" in given.rdzv_conf
    monkeypatch.chdir(ROOT)
    command = [*(["-m"] if given.module else []), given.training_script, *given.training_script_args]
    assert len(pages.rehearse(shlex.join(["python", *command]), monkeypatch)) == 1


def test_the_first_pod_hosts_and_the_arguments_of_the_job_are_a_training(stubs) -> None:
    _, _, container, variables = kubernetes()
    assert container["command"] == ["sh", "scripts/cluster/train.sh"]
    code, words, _ = run(stubs, "train.sh", *container["args"], JOB_COMPLETION_INDEX="0", **variables)
    assert code == 0
    assert "is_host=true" in words
    assert words.splitlines()[-1] == container["args"][-1]


@pytest.mark.parametrize("given", [[], ["compositer"], ["--help"]])
def test_another_name_is_refused(given, stubs) -> None:
    code, words, error = run(stubs, "train.sh", *given)
    name = given[0] if given else ""
    wrong = f"[cluster] error: compositor, locator, prompts or lora, got '{name}'"
    assert (code, words, error.strip()) == (2, "", wrong)


@pytest.mark.parametrize("shell", SHELLS)
@pytest.mark.parametrize(
    ("ended", "state", "restarts", "again"),
    [
        (143, "RUNNING", "0", True),  # the time is nearly over
        (143, "RUNNING", "20", False),
        (143, "COMPLETING", "0", False),  # cancelled
        (1, "RUNNING", "0", False),
        (2, "RUNNING", "0", False),
        (0, "RUNNING", "0", False),
    ],
)
def test_only_a_run_that_has_saved_its_state_is_put_back(ended, state, restarts, again, shell, stubs) -> None:
    slurm = {
        "SLURM_JOB_ID": "123456",
        "SLURM_JOB_NUM_NODES": "2",
        "SLURM_NTASKS_PER_NODE": "4",
        "SLURM_JOB_NODELIST": "n[7-8]",
        "SLURM_RESTART_COUNT": restarts,
        "SLURM_CPUS_PER_TASK": "6",
    }
    outcome = run(
        stubs, "train.sbatch", "lora", "a=b c", shell=shell, SRUN_CODE=str(ended), JOB_STATE=state, **slurm
    )
    code, shown, _ = outcome
    assert code == ended
    called = "srun n7 23456 2 4 --kill-on-bad-exit=1 --cpus-per-task=6 sh scripts/cluster/train.sh lora a=b c"
    assert shown.splitlines() == [called, *(["scontrol requeue 123456"] if again else [])]


def free_port() -> int:
    with socket.socket() as door:
        door.bind(("127.0.0.1", 0))
        return door.getsockname()[1]


@pytest.mark.slow
@pytest.mark.parametrize("victim", ["0", "1"])
def test_one_of_two_processes_is_killed_and_both_go_on(victim, stubs, tmp_path) -> None:
    """torchrun as in the recipe, SIGKILL after a checkpoint, the weights of an uninterrupted run alone."""
    settings = {"GPUS": "2", "MASTER_PORT": str(free_port()), "MAX_RESTARTS": "1"}
    words = run(stubs, "train.sh", "locator", **settings)[1].splitlines()
    launcher = words[: words.index("llava_bifrost.train")]
    out = tmp_path / "two"
    job = ["tests.ldm.fit_job", str(out), "0.05", "0", "batch=2", "workers=1"]
    log = tmp_path / "log.txt"
    given = {**environment(), STORE: "1"}
    with (
        log.open("w") as file,
        subprocess.Popen(
            [sys.executable, *launcher, *job], cwd=ROOT, env=given, stdout=file, stderr=file
        ) as process,
    ):
        while not (out / "checkpoint-3").is_dir():
            assert process.poll() is None, log.read_text()[-3000:]
            time.sleep(0.01)
        children = psutil.Process(process.pid).children()
        (killed,) = [child for child in children if child.environ().get("RANK") == victim]
        killed.send_signal(signal.SIGKILL)
        assert len(rows(out)) < STEPS
        assert process.wait(120) == 0, log.read_text()[-3000:]
    train(tmp_path / "one", [], dropout=0.0)
    assert_same(tmp_path / "one", out, rtol=1e-4, atol=1e-6)
