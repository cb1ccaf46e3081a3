"""How does gsmtpd do, and what has it got? What is answered over HTTP, to people and programs."""
