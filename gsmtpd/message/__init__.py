"""What is a stored message? Envelope and bytes in, rows out; pure, no store and no clock inside."""
