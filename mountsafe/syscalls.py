"""Which system calls a box leaves to what runs in it: filters that bubblewrap hands to the kernel (seccomp(2)).

The session process gets the calls of a Python program that reads descriptors and waits: all others do not exist for it.
The appliance process becomes libguestfs and QEMU, whose needs are wide and change, so it is refused what reaches more
of the kernel than files, memory and threads; QEMU adds a filter of its own. Every process that they start inherits it.

A filter is a table here, and libseccomp makes the program of it. A process of another architecture (32-bit, x32) is
killed at its first call.
"""

import errno
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache

import seccomp

# include/uapi/linux/sched.h; the namespaces are cgroup, uts, ipc, user, pid, net, mount, time
NAMESPACES = (0x02000000, 0x04000000, 0x08000000, 0x10000000, 0x20000000, 0x40000000, 0x00020000, 0x00000080)
CLONE_THREAD = 0x00010000
PR_SET_PDEATHSIG, PR_SET_DUMPABLE, PR_SET_NAME = 1, 4, 15  # include/uapi/linux/prctl.h
TCGETS, FIONBIO, FIONCLEX, FIOCLEX = 0x5401, 0x5421, 0x5450, 0x5451  # include/uapi/asm-generic/ioctls.h
# What changes a file or a device through a descriptor that was opened for reading. include/uapi/linux/fs.h: attributes,
# flags, version, verity, encryption, clones, same extents; the settings of a block device, its partitions, discards.
# fs/ext4/ext4.h: version, migration, delayed blocks; btrfs.h: defragmentation, twice. scsi/sg.h: SG_IO.
CHANGES = (
    *(0x40086602, 0x401C5820, 0x40087602, 0x40806685, 0x400C6613, 0x40049409, 0x4020940D, 0xC0189436),
    *(0x40086604, 0x6609, 0x660C, 0x50009402, 0x40309410),
    *(0x125D, 0x125F, 0x1261, 0x1262, 0x1264, 0x1266, 0x1269, 0x1277, 0x127D, 0x127F, 0x40081271, 0x2285),
)
# The second byte of every request of loop devices (loop.h) and optical drives (cdrom.h): detach, eject, lock.
FAMILIES = (0x4C00, 0x5300)
WHOLE, FAMILY = 0xFFFFFFFF, 0xFFFFFF00  # the kernel looks at 32 bits of a request
F_SETLEASE = 1024  # include/uapi/linux/fcntl.h
# To lock in the ways of POSIX and of open files: who waits for one to write to the image would wait for us. QEMU locks
# the files that it makes for itself, and gives up if that fails: so it is told that it has the lock.
LOCKS = (6, 7, 37, 38)
NOTHING = -1  # in the place of an error: the call succeeds, and nothing is done
FCNTL = (0, 1, 2, 3, 1030, 1031, 1032)  # copies, flags and pipe sizes, of descriptors: no locks, leases, owners
F_SETFL = 4
# Flags of an open file, which everybody has who was given it, other mounts of a device too: how it is read, and whom it
# sends signals. O_NONBLOCK is no such: reading a disk does not heed it.
SHARED = os.O_DIRECT | os.O_ASYNC | os.O_APPEND | os.O_NOATIME
LAST_KNOWN, LAST_POSSIBLE = 450, 511  # set_mempolicy_home_node of Linux 5.17; newer calls have one number everywhere


@dataclass(frozen=True, slots=True)
class Argument:
    """A condition on an argument, counted from 0: its bits in `mask` (all, if 0) equal `value`, or do not (`other`)."""

    number: int
    value: int
    mask: int = 0
    other: bool = False


@dataclass(frozen=True, slots=True)
class Rule:
    """What happens to calls whose arguments fulfil every condition; `error`: they fail with it, 0 lets them through.

    NOTHING has them do nothing, and succeed.
    """

    error: int
    calls: tuple[str | int, ...]
    conditions: tuple[Argument, ...] = ()


@dataclass(frozen=True, slots=True)
class Filter:
    """`error`: what a call without a rule fails with; 0 lets it through."""

    error: int
    rules: tuple[Rule, ...]


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


# A call that is not listed fails as in a kernel without it (ENOSYS), which the C library has other ways around: for
# clone3, whose flags a filter cannot see, it takes clone. That makes threads here and no processes.
SESSION = Filter(
    errno.ENOSYS,
    (
        Rule(
            0,
            (
                # starting: setsid, prlimit, the loader, Python's imports, then Landlock; bubblewrap waits for the end
                *_words("execve openat access faccessat2 readlink readlinkat getdents64 newfstatat statx chdir getcwd"),
                *_words("setsid prlimit64 arch_prctl set_tid_address set_robust_list rseq sysinfo uname"),
                *_words("landlock_create_ruleset landlock_add_rule landlock_restrict_self wait4"),
                # descriptors; libnbd sends and receives on a socket that is connected, no more
                *_words("read readv pread64 preadv preadv2 write writev close close_range lseek fstat dup dup2 dup3"),
                *_words("fadvise64 pipe2 epoll_create1 epoll_ctl epoll_wait epoll_pwait epoll_pwait2 poll ppoll"),
                *_words("select pselect6 eventfd2"),
                *_words("recvfrom recvmsg sendto sendmsg shutdown getsockopt setsockopt getsockname getpeername"),
                # memory and threads
                *_words("mmap munmap mprotect mremap madvise brk futex sched_yield sched_getaffinity getcpu"),
                # time, signals to itself, its own identity
                *_words("clock_gettime clock_getres clock_nanosleep nanosleep gettimeofday time restart_syscall"),
                *_words("rt_sigaction rt_sigprocmask rt_sigreturn sigaltstack getrandom"),
                *_words("getpid gettid getppid getuid geteuid getgid getegid exit exit_group"),
            ),
        ),
        Rule(0, ("clone",), (Argument(0, CLONE_THREAD, CLONE_THREAD),)),
        Rule(0, ("prctl",), (Argument(0, PR_SET_NAME),)),
        *(Rule(0, ("fcntl",), (Argument(1, command),)) for command in FCNTL),
        Rule(0, ("fcntl",), (Argument(1, F_SETFL), Argument(2, 0, SHARED))),
        Rule(0, ("socketpair",), (Argument(0, socket.AF_UNIX),)),
        *(Rule(0, ("ioctl",), (Argument(1, request),)) for request in (TCGETS, FIONBIO, FIONCLEX, FIOCLEX)),
    ),
)

# What derives keys keeps them out of cores and swap, and asks the kernel for nothing else.
KEYS = Filter(
    SESSION.error,
    (*SESSION.rules, Rule(0, ("prctl",), (Argument(0, PR_SET_DUMPABLE),)), Rule(0, _words("mlock munlock"))),
)

# The plaintext server reads as a session process does. It is a program of its own, which listens at a name in its box
# for connections from within: a control thread makes them.
PLAINTEXT = Filter(
    errno.ENOSYS,
    (
        *SESSION.rules,
        Rule(0, _words("bind listen connect accept accept4 access statfs umask unlink")),
        Rule(0, ("socket",), (Argument(0, socket.AF_UNIX),)),
        *(Rule(0, ("prctl",), (Argument(0, option),)) for option in (PR_SET_PDEATHSIG, PR_SET_DUMPABLE)),
    ),
)

# The one that writes to a medium: what it has of it is open for that already.
WRITING = Filter(errno.ENOSYS, (*PLAINTEXT.rules, Rule(0, _words("pwrite64 fdatasync"))))

APPLIANCE = Filter(
    0,
    (
        Rule(
            errno.EPERM,
            (
                # mounts, other roots, files by handle
                *_words("mount umount2 pivot_root chroot fsopen fsconfig fsmount fspick move_mount open_tree"),
                *_words("mount_setattr swapon swapoff quotactl quotactl_fd name_to_handle_at open_by_handle_at"),
                *_words("fanotify_init fanotify_mark"),
                # namespaces, and other processes
                *_words("unshare setns ptrace process_vm_readv process_vm_writev process_madvise kcmp pidfd_getfd"),
                *_words("move_pages migrate_pages"),
                # wide and young parts of the kernel
                *_words("bpf userfaultfd perf_event_open io_uring_setup io_uring_enter io_uring_register"),
                *_words("add_key request_key keyctl memfd_secret"),
                # memory beside the address space and the tmpfs; what the machine, or the user, has a number of
                *_words("memfd_create shmget shmat shmctl msgget semget mq_open io_setup"),
                *_words("inotify_init inotify_init1"),
                "flock",  # of a device whose lock is held udev hears nothing, not even that its medium is another one
                # changes of a file that is open for reading
                *_words("chmod fchmod fchmodat chown fchown lchown fchownat utime utimes futimesat utimensat"),
                "truncate",  # by a descriptor's name in /proc; Landlock knows of it since version 3 only
                *_words("setxattr lsetxattr fsetxattr removexattr lremovexattr fremovexattr"),
                # the machine itself
                *_words("kexec_load kexec_file_load init_module finit_module delete_module reboot syslog acct"),
                *_words("iopl ioperm modify_ldt settimeofday clock_settime clock_adjtime adjtimex sethostname"),
                *_words("setdomainname vhangup personality lookup_dcookie nfsservctl uselib ustat sysfs _sysctl"),
            ),
        ),
        Rule(errno.EPERM, ("fcntl",), (Argument(1, F_SETLEASE, WHOLE),)),  # whoever opens it to write would wait
        *(Rule(NOTHING, ("fcntl",), (Argument(1, command, WHOLE),)) for command in LOCKS),
        Rule(errno.EPERM, ("fcntl",), (Argument(1, F_SETFL, WHOLE), Argument(2, os.O_DIRECT, os.O_DIRECT))),
        *(Rule(errno.EPERM, ("clone",), (Argument(0, flag, flag),)) for flag in NAMESPACES),
        *(Rule(errno.EPERM, ("ioctl",), (Argument(1, request, WHOLE),)) for request in CHANGES),
        *(Rule(errno.EPERM, ("ioctl",), (Argument(1, family, FAMILY),)) for family in FAMILIES),
        Rule(errno.ENOSYS, ("clone3", *range(LAST_KNOWN + 1, LAST_POSSIBLE + 1))),
        Rule(errno.EAFNOSUPPORT, ("socket", "socketpair"), (Argument(0, socket.AF_UNIX, other=True),)),
    ),
)


@cache
def program(filter_: Filter) -> bytes:
    """Return the program, as bubblewrap's --seccomp takes it."""
    made = seccomp.SyscallFilter(_action(filter_.error))
    for rule in filter_.rules:
        for call in rule.calls:
            made.add_rule(_action(rule.error), call, *map(_condition, rule.conditions))
    with os.fdopen(os.memfd_create("seccomp"), "r+b") as file:
        made.export_bpf(file)
        file.seek(0)
        return file.read()


def _action(error: int) -> int:
    action: int = seccomp.ERRNO(max(error, 0)) if error else seccomp.ALLOW
    return action


def _condition(argument: Argument) -> object:
    if argument.mask:
        return seccomp.Arg(argument.number, seccomp.MASKED_EQ, argument.mask, argument.value)
    return seccomp.Arg(argument.number, seccomp.NE if argument.other else seccomp.EQ, argument.value)


@contextmanager
def descriptor(filter_: Filter) -> Iterator[int]:
    """Give a descriptor to read the program from, once: for a child that inherits it."""
    with os.fdopen(os.memfd_create("seccomp"), "r+b") as file:
        file.write(program(filter_))
        file.seek(0)
        yield file.fileno()
