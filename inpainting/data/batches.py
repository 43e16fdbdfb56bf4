"""Work by a language model in batches: journalled, and the same answers whether or not it was interrupted."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm

from ldm.cluster import Stream, spread
from ldm.journal import Journal
from ldm.settings.choices import FLOAT_TYPES, RAY_HELP, shard_of
from ldm.settings.config import CheckedSettings, setting

Load = Callable[[str], Any]
Answer = Callable[[Sequence[Any]], Sequence[Mapping[str, Any]]]
Answers = tuple[dict[str, Mapping[str, Any]], dict[str, str]]  # records, and why other items are left out
PRECISIONS = ("auto", "4bit", "full")


@dataclass(frozen=True, kw_only=True)
class ProcessSettings(CheckedSettings):
    """Which part of the work this process does; `--shard i/n` replaces both numbers."""

    num_processes: int = setting(1, low=1, help="number of processes that divide the work")
    process_id: int = setting(0, low=0, help="which of them this is")
    shard: str = setting("", help="i/n instead of the two")
    ray: str = setting("", help=RAY_HELP)
    dtype: str = setting("auto", choices=("auto", *FLOAT_TYPES), help="precision of the model's arithmetic")

    @property
    def index_of_count(self) -> tuple[int, int]:
        if self.shard:
            return shard_of(self.shard)
        return shard_of(f"{self.process_id}/{self.num_processes}", "--process-id / --num-processes")


@dataclass(frozen=True)
class AnnotateSettings(ProcessSettings):
    image_dir: Path = setting(help="folder of images, split or not")
    out: Path = setting(Path("data/annotations.json"), help="JSON file to write")
    model_id: str = setting("microsoft/kosmos-2-patch14-224", help="Kosmos-2, folder or hub name")
    batch_size: int = setting(8, low=1, help="images at once")
    max_new_tokens: int = setting(128, low=1, help="longest description")


@dataclass(frozen=True)
class CaptionSettings(ProcessSettings):
    entities_dir: Path = setting(help="folder of entities")
    model_id: str = setting(help="LLaVA-NeXT, folder or hub name")
    batch_size: int = setting(help="crops at once", low=1)
    max_new_tokens: int = setting(40, low=1, help="longest caption")
    output_dir: Path = setting(Path("."), help="folder of the journal, backup_P_final.json and llava.json")
    precision: str = setting("auto", choices=PRECISIONS, help="of the model's weights")
    resume: bool = setting(True, help="continue earlier work, also backups of the published command")


def run_batches(
    journal: Journal, items: Sequence[str], make: Callable[[], tuple[Load, Answer]], batch: int, ray: str = ""
) -> None:
    """Load each item, answer them in batches, record the answers; what cannot be loaded is left out.

    make: gives what loads an item (ValueError: it is left out) and what answers a batch of loaded items
    ray: as in `ldm.cluster.spread`
    """
    groups = []
    for start in range(0, len(items), batch):
        group = items[start : start + batch]
        pending = [item for item in group if item not in journal.done]
        if any(item not in journal.left_out for item in pending):
            pending = list(group)  # anew as a whole: answers depend a little on what shares a batch
        if pending:
            groups.append(pending)

    def lost(group: list[str], why: str) -> Answers:
        return {}, dict.fromkeys(group, why)

    def work() -> Stream:
        load, answer = make()

        def answered(group: list[str]) -> Answers:
            loaded, left_out = dict[str, Any](), dict[str, str]()
            for item in group:
                try:
                    loaded[item] = load(item)
                except ValueError as error:
                    left_out[item] = str(error)
            records = answer(list(loaded.values())) if loaded else []
            return dict(zip(loaded, records, strict=True)), left_out

        return lambda groups: map(answered, groups)

    with tqdm(total=len(items), initial=len(items) - sum(map(len, groups)), desc=journal.name) as bar:
        for answers, left_out in spread(work, groups, ray, lost):
            for item, why in left_out.items():
                journal.leave_out(item, why)
            if answers:
                journal.add_all(answers)
            bar.update(len(answers) + len(left_out))
    journal.finish()


@dataclass(frozen=True)
class LomoeSettings(CheckedSettings):
    source: Path = setting(help="folder with LoMOE.json, images and masks, such as data/LoMOE-Bench")
    out_dir: Path = setting(Path("data/lomoe"), help="gets images, masks and entities")
