"""Work on a medium that has an end: a virtual machine is started for it, and nothing is mounted."""
