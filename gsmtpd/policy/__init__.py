"""May this happen? Who may send to whom; decided from memory, without a socket or a store."""
