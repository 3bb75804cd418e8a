"""What was measured so far: one JSON file, written again after each row.

{"setting": what all rows have in common, "sittings": [...], "running": the row that is
being measured, "rows": {part: {case: row}}}. A row that is done has "seconds_spent"; others
have "error" or "skipped", and say why.
"""

import json
import os
import pathlib

FILE = "results.json"


class Refused(Exception):
    """An earlier output that cannot be gone on with; the text is one line for the user."""


class Record:
    """The file in a folder, and its content as plain values."""

    def __init__(self, folder):
        self.path = pathlib.Path(folder) / FILE
        self.content = {"setting": {}, "sittings": [], "running": None, "rows": {}}
        if self.path.exists():
            self.content = json.loads(self.path.read_text())

    @property
    def rows(self):
        """{part: {case: row}}."""
        return self.content["rows"]

    def go_on(self, setting, sitting):
        """Begins a sitting: what was not done before it is to be tried again.

        Raises Refused where rows were measured in another setting.

        setting: {name: plain value} of all on which rows depend. sitting: what is told of
        this one only; "began" tells it apart, and it may begin several times.
        """
        earlier = self.content["setting"]
        for name, value in earlier.items():
            if value != setting.get(name):
                raise Refused(
                    f"{self.path} was measured with {name} {value!r}, and here it is "
                    f"{setting.get(name)!r}: give another --output"
                )
        self.content["setting"] = setting
        sittings = self.content["sittings"]
        if not sittings or sittings[-1]["began"] != sitting["began"]:
            sittings.append(sitting)
            for part, rows in self.rows.items():
                done = {case: row for case, row in rows.items() if "seconds_spent" in row}
                self.rows[part] = done
        self.write()

    def done(self, part, case):
        """Whether a row need not be measured: it is there, or failed in this sitting."""
        row = self.rows.get(part, {}).get(case, {})
        return "seconds_spent" in row or "error" in row

    def begin(self, part, case):
        """Says what is being measured, in case that nothing more is heard of it."""
        self.content["running"] = [part, case]
        self.write()

    def put(self, part, case, row):
        """A row that is done, or that says why it is not."""
        self.rows.setdefault(part, {})[case] = row
        self.content["running"] = None
        self.write()

    def close_running(self, reason):
        """Puts an error where a row was being measured when its process ended."""
        if self.content["running"]:
            self.put(*self.content["running"], {"error": reason})

    def write(self):
        """Writes all of it, or nothing."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        fresh = self.path.with_suffix(".writing")
        fresh.write_text(json.dumps(self.content, indent=1) + "\n")
        os.replace(fresh, self.path)
