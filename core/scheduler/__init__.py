"""The decision what the next step computes: a state machine with no clock, no I/O and no framework."""
