-- For what finds mail by its address, whatever its capitals.
CREATE INDEX IF NOT EXISTS new_mail_to_nocase ON new_mail ("to" COLLATE NOCASE);
CREATE INDEX IF NOT EXISTS new_mail_recipient_nocase ON new_mail (recipient COLLATE NOCASE);
