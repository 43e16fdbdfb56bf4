#!/bin/sh
# outlines-core 0.2.14: an index of an expression loses answers that the expression matches.
#
# 1. Alternatives are searched in order: with `1|10|100` the answers 10 and 100 cannot be written, as the search is over
#    with 1. `100|10|1` has all three.
# 2. Behind a complete match a token is only allowed where another match ends with it, or the search has not noticed the
#    match yet, one byte later. So tokens that end inside of a character or of a longer alternative are lost: after "caf"
#    of `[^<>]+` the first byte of "e with acute" is refused, after "a" of `a(bc)?` the token "b".
#
# An end anchor, `(?:EXPRESSION)\z`, mends both.
#
# Prints a row per case; exits with 1 if that changes.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install -qq --disable-pip-version-check outlines-core==0.2.14
cd "$folder"
"$folder/venv/bin/python" - <<'PYTHON'
import sys

from outlines_core import Index, Vocabulary

END = 0
CASES = {"1|10|100": [b"1", b"0", b"0"], "[^<>]+": [b"caf", b"\xc3", b"\xa9"], "a(bc)?": [b"a", b"b", b"c"]}


def written(expression, pieces):
    """Whether the pieces can be written one after the other, and the answer ended."""
    tokens = {text: [1 + number] for number, text in enumerate(dict.fromkeys(pieces))}
    index = Index(expression, Vocabulary(END, tokens))
    state = index.get_initial_state()
    for text in pieces:
        state = None if state is None else index.get_next_state(state, tokens[text][0])
    return state is not None and END in index.get_allowed_tokens(state)


changed = False
for expression, pieces in CASES.items():
    plain, anchored = written(expression, pieces), written(rf"(?:{expression})\z", pieces)
    print(f"{expression:10} {b''.join(pieces).decode():5} as it stands: {plain}, anchored: {anchored}")
    changed |= plain or not anchored
sys.exit(changed)
PYTHON
