-- What handlers have still to do, a row for each mail and each of them; written with the mail.
CREATE TABLE IF NOT EXISTS mail_outbox (
  outbox_id INTEGER PRIMARY KEY AUTOINCREMENT,
  delivery TEXT NOT NULL,
  handler TEXT NOT NULL,
  hash TEXT NOT NULL,
  recipient TEXT NOT NULL,
  "to" TEXT NOT NULL,
  due INTEGER NOT NULL,
  state TEXT NOT NULL DEFAULT 'waiting',
  calls INTEGER NOT NULL DEFAULT 0,
  tries INTEGER NOT NULL DEFAULT 0,
  owner TEXT NOT NULL DEFAULT '',
  reason TEXT NOT NULL DEFAULT ''
);
CREATE INDEX IF NOT EXISTS mail_outbox_work ON mail_outbox (state, handler, due);

-- What handlers have noted of a mail.
CREATE TABLE IF NOT EXISTS mail_note (
  note_id INTEGER PRIMARY KEY AUTOINCREMENT,
  hash TEXT NOT NULL,
  recipient TEXT NOT NULL,
  handler TEXT NOT NULL,
  name TEXT NOT NULL,
  value TEXT NOT NULL,
  noted_at TEXT NOT NULL
);
CREATE INDEX IF NOT EXISTS mail_note_hash ON mail_note (hash);

-- Whom handlers have replied to, and when: nobody gets two replies a day.
CREATE TABLE IF NOT EXISTS mail_reply (
  handler TEXT NOT NULL,
  address TEXT NOT NULL,
  delivery TEXT NOT NULL,
  replied_at INTEGER NOT NULL,
  PRIMARY KEY (handler, address)
) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS mail_reply_replied_at ON mail_reply (replied_at);
