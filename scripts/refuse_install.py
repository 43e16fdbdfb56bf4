"""The build backend of this project: nothing is built, and pip says why.

An installed package `datasets` would hide the Hugging Face library of that name from every other project.
"""


def build_wheel(*_: object) -> None:
    """For pip and every other front end."""
    raise SystemExit(
        "not to be installed: its package `datasets` would hide the Hugging Face library; see README.md"
    )


build_sdist = build_editable = get_requires_for_build_wheel = get_requires_for_build_sdist = build_wheel
get_requires_for_build_editable = build_wheel
