"""What runs in the appliance: one worker process for each virtio-serial port named org.mountsafe.*.

Standard library only, and of that only what python3-minimal has, and ctypes; of mountsafe it imports only the modules
that are copied into the appliance with it. It lives in zone 1: everything that it says is validated on the host. A
worker answers one request after the other. It keeps nothing that a restarted VM could not learn again: requests carry
paths, and an unknown cursor is answered with ESTALE.
"""
