"""Search engines behind one interface, and the journal of calls to remote services."""
