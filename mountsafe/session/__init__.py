"""One medium from open to unmount: its virtual machine, its FUSE processes, and what keeps them."""
