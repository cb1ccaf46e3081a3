"""Which SQL makes the tables? Numbered files, one directory per kind of database, in order."""

from __future__ import annotations

from importlib.resources import files


def statements(kind: str, table: str = "new_mail") -> list[str]:
    """The SQL statements that make the tables, in order, each without its semicolon.

    kind: "mysql" or "sqlite". table: the name of the mail table (only for MySQL), `\\w+`.
    """
    found: list[str] = []
    folder = files(__package__).joinpath(kind)
    for file in sorted(folder.iterdir(), key=lambda entry: entry.name):
        if file.name.endswith(".sql"):
            text = file.read_text("utf-8").replace("{table}", table)
            found += [part.strip() for part in text.split(";\n") if part.strip()]
    return found
