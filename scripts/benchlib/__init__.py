"""How does the bench measure? Each module here answers one part of that."""
