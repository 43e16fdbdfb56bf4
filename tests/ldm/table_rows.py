"""Rows of a table and how spreadsheets save them."""

import csv
import io
from collections.abc import Sequence

ROWS = [
    {"file_name": "a.jpg", "url": "http://x.example/a.jpg?b;c,d", "title": "two\nlines"},
    {"file_name": "b, c.jpg", "url": "http://x.example/b.jpg", "title": 'the "night"'},
    {"file_name": "caf\xe9; d.jpg", "url": "http://x.example/c.jpg", "title": ""},
]


def saved(rows: Sequence[dict[str, str]], mark: str = ",", end: str = "\r\n") -> str:
    """A table as Excel and LibreOffice write it: fields that need quotes have them, also for line ends."""
    text = io.StringIO()
    table = csv.DictWriter(text, list(rows[0]), delimiter=mark, lineterminator=end)
    table.writeheader()
    table.writerows(rows)
    return text.getvalue()
