"""The library: a medium's file systems, read by any program without mounting them. `mountsafe.open` is its door."""
