-- What is known of each attachment; its bytes are in the mail.
CREATE TABLE IF NOT EXISTS mail_attachment (
  mail_id INTEGER NOT NULL,
  position INTEGER NOT NULL,
  filename TEXT NOT NULL,
  content_type TEXT NOT NULL,
  size INTEGER NOT NULL,
  sha256 TEXT NOT NULL,
  PRIMARY KEY (mail_id, position)
) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS mail_attachment_sha256 ON mail_attachment (sha256);

-- Guerrilla SMTPd's settings; received_emails counts messages.
CREATE TABLE IF NOT EXISTS gm2_setting (
  setting_name TEXT NOT NULL PRIMARY KEY,
  setting_value INTEGER NOT NULL DEFAULT 0
);
INSERT OR IGNORE INTO gm2_setting (setting_name, setting_value) VALUES ('received_emails', 0);
