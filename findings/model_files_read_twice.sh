#!/bin/sh
# transformers 5.23.0: the first model that is imported has all model files of the library read twice.
#
# `import transformers` reads the source of every file of its models, 1,669, to learn which names they define. The first
# import below `transformers.models`, such as `from transformers import ViTConfig`, reads them all again: the cache of
# `define_import_structure` knows them by the folder as a `Path`, with a prefix, and is asked by a file of it, without.
# Each time takes about a quarter of a CPU second.
#
# Prints how many files were opened after each line (1669, then 3351); exits with 1 if they are not read twice.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install -qq --disable-pip-version-check transformers==5.23.0
cd "$folder"
"$folder/venv/bin/python" - <<'PYTHON'
import sys
import time
from collections import Counter

opened = Counter()


def watch(event, given):
    if event == "open" and "/transformers/models/" in str(given[0]) and str(given[0]).endswith(".py"):
        opened[str(given[0])] += 1


sys.addaudithook(watch)
counts, started = [], time.process_time()
for line in ("import transformers", "from transformers import ViTConfig"):
    exec(line)
    counts.append((sum(opened.values()), len(opened)))
    print(f"{line}: files opened {counts[-1][0]}, of them different {counts[-1][1]}; "
          f"{time.process_time() - started:.2f} CPU s")
(first, files), (both, _) = counts
sys.exit(not (files > 1000 and first == files and both >= 2 * files))
PYTHON
