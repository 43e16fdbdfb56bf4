"""Numbers of a run as a CSV file: one file for a whole run, with as many interruptions as there were."""

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path

from ldm.files import write_atomic


class CsvLogger:
    """Rows of numbers in the order of their steps.

    columns: their names, `step` among them; those of a file that is there count, and without either the
    first row decides.
    """

    def __init__(self, path: Path, columns: Sequence[str] = ()) -> None:
        self.path, self.columns = path, tuple(columns)
        if path.exists():
            with path.open(newline="", encoding="utf-8") as file:
                self.columns = tuple(next(csv.reader(file), ())) or self.columns

    def rows(self) -> list[dict[str, str]]:
        """Whole rows of the file; one that was cut short by an interruption is left out."""
        if not self.path.exists():
            return []
        with self.path.open(newline="", encoding="utf-8") as file:
            return [row for row in csv.DictReader(file) if None not in row.values() and row["step"]]

    def truncate(self, step: int) -> None:
        """Keep the rows up to `step`; what came after is done again."""
        text = io.StringIO()
        table = csv.DictWriter(text, self.columns, restval="", extrasaction="ignore", lineterminator="\n")
        table.writeheader()
        table.writerows(row for row in self.rows() if int(row["step"]) <= step)
        if self.columns:
            write_atomic(self.path, text.getvalue().encode())

    def append(self, row: Mapping[str, float]) -> None:
        """Add a row; columns that it does not name stay empty."""
        if not self.path.exists():
            self.columns = self.columns or tuple(row)
            self.truncate(0)
        shown = {name: f"{row[name]:.7g}" if name in row else "" for name in self.columns}
        shown["step"] = str(int(row["step"]))
        with self.path.open("a", newline="", encoding="utf-8") as file:
            csv.DictWriter(file, self.columns, lineterminator="\n").writerow(shown)
