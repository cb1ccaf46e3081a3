-- For people and programs that read with SQL: these columns stay as they are.
CREATE OR REPLACE SQL SECURITY INVOKER VIEW `mail_inbox` AS
SELECT `mail_id`, `date`, `recipient`, `from`, `subject`, LEFT(`body`, 200) AS `preview`,
       `has_attach`, `size`
  FROM `{table}`;

CREATE OR REPLACE SQL SECURITY INVOKER VIEW `mail_hourly` AS
SELECT CAST(DATE_FORMAT(`date`, '%Y-%m-%d %H:00:00') AS DATETIME) AS `hour`,
       COUNT(DISTINCT `hash`) AS `messages`, COUNT(*) AS `recipients`, SUM(`size`) AS `bytes`
  FROM `{table}` GROUP BY 1;

CREATE OR REPLACE SQL SECURITY INVOKER VIEW `mail_domains` AS
SELECT LOWER(SUBSTRING_INDEX(`recipient`, '@', -1)) AS `domain`, COUNT(*) AS `mails`,
       SUM(`size`) AS `bytes`, MAX(`date`) AS `newest`
  FROM `{table}` GROUP BY 1;
