"""The medium: opening it, and reading it by extents that the guest told and the host has checked."""
