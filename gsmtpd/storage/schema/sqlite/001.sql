-- One row per recipient. Dates are UTC, "YYYY-MM-DD HH:MM:SS". Addresses have no regard to capitals.
CREATE TABLE IF NOT EXISTS new_mail (
  mail_id INTEGER PRIMARY KEY AUTOINCREMENT,
  date TEXT NOT NULL,
  "from" TEXT NOT NULL,
  "to" TEXT NOT NULL COLLATE NOCASE,
  subject TEXT NOT NULL,
  body TEXT NOT NULL,
  charset TEXT NOT NULL,
  mail BLOB NOT NULL,
  spam_score REAL NOT NULL,
  hash TEXT NOT NULL,
  content_type TEXT NOT NULL,
  recipient TEXT NOT NULL COLLATE NOCASE,
  has_attach INTEGER NOT NULL,
  ip_addr TEXT NOT NULL,
  return_path TEXT NOT NULL DEFAULT '',
  helo TEXT NOT NULL DEFAULT '',
  is_tls INTEGER NOT NULL DEFAULT 0,
  message_id TEXT NOT NULL DEFAULT '',
  reply_to TEXT NOT NULL DEFAULT '',
  sender TEXT NOT NULL DEFAULT '',
  mail_encoding TEXT NOT NULL DEFAULT '',
  content_hash TEXT NOT NULL DEFAULT '',
  size INTEGER NOT NULL DEFAULT 0
);
CREATE INDEX IF NOT EXISTS new_mail_to ON new_mail ("to");
CREATE INDEX IF NOT EXISTS new_mail_hash ON new_mail (hash);
CREATE INDEX IF NOT EXISTS new_mail_date ON new_mail (date);
CREATE INDEX IF NOT EXISTS new_mail_recipient ON new_mail (recipient);
CREATE INDEX IF NOT EXISTS new_mail_content_hash ON new_mail (content_hash);
