-- For people and programs that read with SQL: these columns stay as they are.
CREATE VIEW IF NOT EXISTS mail_inbox AS
SELECT mail_id, date, recipient, "from", subject, SUBSTR(body, 1, 200) AS preview,
       has_attach, size
  FROM new_mail;
CREATE VIEW IF NOT EXISTS mail_hourly AS
SELECT SUBSTR(date, 1, 13) || ':00:00' AS hour,
       COUNT(DISTINCT hash) AS messages, COUNT(*) AS recipients, SUM(size) AS bytes
  FROM new_mail GROUP BY 1;
CREATE VIEW IF NOT EXISTS mail_domains AS
SELECT LOWER(REPLACE(recipient, RTRIM(recipient, REPLACE(recipient, '@', '')), '')) AS domain,
       COUNT(*) AS mails, SUM(size) AS bytes, MAX(date) AS newest
  FROM new_mail GROUP BY 1;
