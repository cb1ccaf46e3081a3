"""Which SQL makes the tables? Numbered files, one directory per kind of database, in order."""

from __future__ import annotations

from importlib.resources import files


def statements(kind: str, table: str = "new_mail", partitions: str = "") -> list[str]:
    """The SQL statements that make the tables, in order, each without its semicolon.

    kind: "mysql" or "sqlite". The others are for MySQL only. table: the name of the mail table,
    `\\w+`. partitions: the PARTITION BY clause of that table, "" for none.
    """
    found: list[str] = []
    folder = files(__package__).joinpath(kind)
    for file in sorted(folder.iterdir(), key=lambda entry: entry.name):
        if file.name.endswith(".sql"):
            text = file.read_text("utf-8").replace("{table}", table)
            # MySQL wants the columns that decide on the partition in each unique key.
            text = text.replace("{partition_key}", ", `date`" if partitions else "")
            text = text.replace("{partitions}", f" {partitions}" if partitions else "")
            found += [part.strip() for part in text.split(";\n") if part.strip()]
    return found
