[gsmtpd]
title=gsmtpd (SMTP)
description=Receives mail and keeps it in a database
ports=25/tcp
