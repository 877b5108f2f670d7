"""One model on several devices: a process for each, of which rank 0 plans and the others follow."""
