-- What handlers have still to do, a row for each mail and each of them; written with the mail.
CREATE TABLE IF NOT EXISTS `mail_outbox` (
  `outbox_id` bigint unsigned NOT NULL AUTO_INCREMENT,
  `delivery` char(32) CHARACTER SET ascii NOT NULL,
  `handler` varchar(64) CHARACTER SET ascii NOT NULL,
  `hash` char(32) CHARACTER SET ascii NOT NULL,
  `recipient` varchar(255) NOT NULL,
  `to` varchar(255) NOT NULL,
  `due` bigint NOT NULL,
  `state` varchar(8) CHARACTER SET ascii NOT NULL DEFAULT 'waiting',
  `calls` int unsigned NOT NULL DEFAULT 0,
  `tries` int unsigned NOT NULL DEFAULT 0,
  `owner` char(32) CHARACTER SET ascii NOT NULL DEFAULT '',
  `reason` varchar(255) NOT NULL DEFAULT '',
  PRIMARY KEY (`outbox_id`),
  KEY `work` (`state`, `handler`, `due`)
) ENGINE=InnoDB DEFAULT CHARACTER SET utf8mb4;

-- What handlers have noted of a mail.
CREATE TABLE IF NOT EXISTS `mail_note` (
  `note_id` bigint unsigned NOT NULL AUTO_INCREMENT,
  `hash` char(32) CHARACTER SET ascii NOT NULL,
  `recipient` varchar(255) NOT NULL,
  `handler` varchar(64) CHARACTER SET ascii NOT NULL,
  `name` varchar(64) NOT NULL,
  `value` text NOT NULL,
  `noted_at` datetime NOT NULL,
  PRIMARY KEY (`note_id`),
  KEY `hash` (`hash`)
) ENGINE=InnoDB DEFAULT CHARACTER SET utf8mb4;

-- Whom handlers have replied to, and when: nobody gets two replies a day.
CREATE TABLE IF NOT EXISTS `mail_reply` (
  `handler` varchar(64) CHARACTER SET ascii NOT NULL,
  `address` varchar(255) NOT NULL,
  `delivery` char(32) CHARACTER SET ascii NOT NULL,
  `replied_at` bigint NOT NULL,
  PRIMARY KEY (`handler`, `address`),
  KEY `replied_at` (`replied_at`)
) ENGINE=InnoDB DEFAULT CHARACTER SET utf8mb4 COLLATE utf8mb4_bin;
