"""Where the daemon is on the system bus."""

NAME, PATH = "org.mountsafe.Manager1", "/org/mountsafe/Manager1"
