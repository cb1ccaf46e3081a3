-- What is known of each attachment; its bytes are in the mail.
CREATE TABLE IF NOT EXISTS `mail_attachment` (
  `mail_id` bigint unsigned NOT NULL,
  `position` int unsigned NOT NULL,
  `filename` varchar(255) NOT NULL,
  `content_type` varchar(255) NOT NULL,
  `size` int unsigned NOT NULL,
  `sha256` char(64) CHARACTER SET ascii NOT NULL,
  PRIMARY KEY (`mail_id`, `position`),
  KEY `sha256` (`sha256`)
) ENGINE=InnoDB DEFAULT CHARACTER SET utf8mb4;

-- Guerrilla SMTPd's settings; received_emails counts messages.
CREATE TABLE IF NOT EXISTS `gm2_setting` (
  `setting_name` varchar(64) NOT NULL,
  `setting_value` bigint NOT NULL DEFAULT 0,
  PRIMARY KEY (`setting_name`)
) ENGINE=InnoDB DEFAULT CHARACTER SET utf8mb4;

INSERT IGNORE INTO `gm2_setting` (`setting_name`, `setting_value`) VALUES ('received_emails', 0);

-- Messages that received_emails does not count yet: it takes these rows in about once a second.
CREATE TABLE IF NOT EXISTS `gm2_received` (
  `id` bigint unsigned NOT NULL AUTO_INCREMENT,
  `messages` int unsigned NOT NULL,
  PRIMARY KEY (`id`)
) ENGINE=InnoDB;
