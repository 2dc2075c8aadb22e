"""How a session process serves a file system over FUSE. What imports this has libfuse in its process."""

from mountsafe.filesystem.opened import FileSystem
from mountsafe.filesystem.operations import Operations, View, release
from mountsafe.filesystem.operations import serve as serve_operations
from mountsafe.session.conversation import Assignment, Connection
from mountsafe.session.serving import Changed, Server, Started


async def _serve(
    opened: FileSystem, assigned: Assignment, given: Connection, fd: int, changed: Changed | None, started: Started
) -> None:
    view = View(assigned.uid, assigned.gid, given.guard_links)
    operations = Operations(opened, view) if changed is None else changed(opened, view)
    await serve_operations(operations, fd, started)


SERVER = Server(release, _serve)
