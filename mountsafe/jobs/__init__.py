"""Work on a medium that comes to an end: a virtual machine is started for it, and nothing is mounted."""
