"""Changes of all kinds in one folder, from a seed: `busy.py FOLDER SEED COUNT LINKS` says one line for each.

The same is said wherever the same can be done, whatever the file system. LINKS: whether there are links, modes and
extended attributes. Files stay open while they are renamed, replaced and removed.
"""

import errno
import os
import random
import stat
import sys
from pathlib import Path


class Busy:
    """The folder, and the files in it that are open."""

    def __init__(self, top: Path, seed: int, links: bool) -> None:
        self._top = top
        self._random = random.Random(seed)
        self._open: list[int] = []
        plain = [self.create, self.create, self.append, self.overwrite, self.truncate, self.rename, self.replace]
        plain += [self.mkdir, self.unlink, self.rmdir, self.move_folder, self.hold, self.write_held, self.close]
        linked = [self.link, self.symlink, self.chmod, self.xattr] if links else []
        self._kinds = [*plain, self.sync, *linked]

    def run(self, count: int) -> None:
        for number in range(count):
            kind = self._random.choice(self._kinds)
            seed = self._random.random()
            own, self._random = self._random, random.Random(seed)
            try:
                told = kind()
            except OSError as error:
                told = errno.errorcode[error.errno or 0]
            self._random = own
            sys.stdout.write(f"{number} {kind.__name__} {told}\n")
            sys.stdout.flush()
        while self._open:
            self.close()

    # --- what there is ---------------------------------------------------------------------------------------------
    def _all(self, kind: int) -> list[Path]:
        return sorted(path for path in self._top.rglob("*") if stat.S_IFMT(path.lstat().st_mode) == kind)

    def _file(self) -> Path:
        files = self._all(stat.S_IFREG)
        return self._random.choice(files) if files else self._top / "none"

    def _folder(self) -> Path:
        return self._random.choice([self._top, *self._all(stat.S_IFDIR)])

    def _new(self) -> Path:
        return self._folder() / f"n{self._random.randrange(30)}"

    def _bytes(self) -> bytes:
        return self._random.randbytes(self._random.choice((1, 100, 5_000, 60_000)))

    # --- changes -----------------------------------------------------------------------------------------------------
    def create(self) -> str:
        path = self._new()
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, 0o644)
        with os.fdopen(fd, "wb") as file:
            file.write(self._bytes())
        return str(path)

    def append(self) -> str:
        path = self._file()
        with path.open("r+b") as file:
            file.seek(0, os.SEEK_END)
            file.write(self._bytes())
        return str(path)

    def overwrite(self) -> str:
        path = self._file()
        with path.open("r+b") as file:
            file.seek(self._random.randrange(path.stat().st_size + 1))
            file.write(self._bytes())
        return str(path)

    def truncate(self) -> str:
        path = self._file()
        os.truncate(path, self._random.randrange(2 * path.stat().st_size + 1))
        return str(path)

    def rename(self) -> str:
        path, new = self._file(), self._new()
        path.rename(new)
        return f"{path} {new}"

    def replace(self) -> str:
        path, other = self._file(), self._file()
        path.replace(other)
        return f"{path} {other}"

    def mkdir(self) -> str:
        path = self._folder() / f"d{self._random.randrange(8)}"
        path.mkdir()
        return str(path)

    def unlink(self) -> str:
        path = self._file()
        path.unlink()
        return str(path)

    def rmdir(self) -> str:
        path = self._folder()
        if path != self._top:
            path.rmdir()
        return str(path)

    def move_folder(self) -> str:
        path, new = self._folder(), self._folder() / f"d{self._random.randrange(8)}"
        if path != self._top:
            path.rename(new)
        return f"{path} {new}"

    def hold(self) -> str:
        path = self._file()
        if len(self._open) < 5:
            self._open.append(os.open(path, os.O_RDWR))
        return str(path)

    def write_held(self) -> str:
        """Write to a file that is open, but not to one that was removed: it goes with the virtual machine."""
        if not self._open:
            return "none"
        fd = self._random.choice(self._open)
        if os.fstat(fd).st_nlink == 0:
            self._open.remove(fd)
            os.close(fd)
            return "removed"
        os.pwrite(fd, self._bytes(), self._random.randrange(50_000))
        return str(os.fstat(fd).st_size)

    def close(self) -> str:
        if self._open:
            os.close(self._open.pop(self._random.randrange(len(self._open))))
        return ""

    def sync(self) -> str:
        with self._file().open("rb") as file:
            os.fsync(file.fileno())
        return ""

    # --- where there are links ---------------------------------------------------------------------------------------
    def link(self) -> str:
        path, new = self._file(), self._new()
        new.hardlink_to(path)
        return f"{path} {new}"

    def symlink(self) -> str:
        path = self._new()
        path.symlink_to("../elsewhere")
        return str(path)

    def chmod(self) -> str:
        path = self._file()
        path.chmod(self._random.choice((0o600, 0o644, 0o777)))
        return str(path)

    def xattr(self) -> str:
        path = self._file()
        os.setxattr(path, f"user.{self._random.randrange(3)}", self._bytes()[:200])
        return str(path)


if __name__ == "__main__":
    Busy(Path(sys.argv[1]), int(sys.argv[2]), sys.argv[4] == "True").run(int(sys.argv[3]))
