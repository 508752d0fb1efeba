"""A /proc made of plain files, for tests of what reads /proc."""

from pathlib import Path


class FakeProc:
    """A folder with the files of /proc that `redirector.host.processes` and `ssh` read. `proc` is its path."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.proc = str(root)
        for name in ("uptime", "sys", "net"):  # things that are no processes
            (root / name).mkdir()

    def add(
        self, pid: int, command: str = "sh", parent: int = 1, sockets: tuple[int, ...] = (), namespace: int = 1
    ) -> "FakeProc":
        folder = self.root / str(pid)
        (folder / "fd").mkdir(parents=True)
        (folder / "ns").mkdir()
        name = command.encode("utf-8", "surrogateescape")
        (folder / "stat").write_bytes(b"%d (%s) S %d 1 1 0 -1 4194560 0\n" % (pid, name, parent))
        (folder / "fd" / "0").symlink_to("/dev/null")
        (folder / "fd" / "1").symlink_to("pipe:[4711]")
        (folder / "fd" / "2").symlink_to("anon_inode:[eventpoll]")
        for i, inode in enumerate(sockets):
            (folder / "fd" / str(3 + i)).symlink_to(f"socket:[{inode}]")
        (folder / "ns" / "net").symlink_to(f"net:[{namespace}]")
        return self

    def me(self, pid: int) -> "FakeProc":
        """Let `pid` be the reader."""
        (self.root / "self").symlink_to(str(pid))
        (self.root / "thread-self").symlink_to(str(pid))
        return self
