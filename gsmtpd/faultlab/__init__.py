"""How is it proved that no acknowledged mail is lost? By faults, and by independent accounts."""
