"""Every bound that is not one of the wire protocol, and why it has its value. Bytes and seconds."""

MIB = 1 << 20

# --- deadlines -----------------------------------------------------------------------------------------------------
TRIAL_DEADLINE = 30.0  # for a tiny guest without KVM, which takes half a second: after that nothing can be told
TRIAL_PATIENCE = 3.0  # how much later than that one the same guest with KVM may be done,
TRIAL_TIMES = 2.0  # and how many times that half second more
LAUNCH_DEADLINE = 90.0  # from starting the VM to its agent's first word; about 10 s in software emulation
KVM_PROBE_DEADLINE = 30.0  # a VM that has KVM boots in 2 s; one that hangs in it never does
KVM_SLOW_DEADLINE = 40.0  # more, if it says something: KVM on an emulated or busy host takes 15 s
KNOWN_SLOW_DEADLINE = 210.0  # more, if it says something and KVM worked before: on an emulated host that is busy too
ATTACH_DEADLINE = 15.0  # plugging the medium into the running VM
PROBE_DEADLINE = 150.0  # finding partitions, volume groups and types: a busy host that emulates takes long
MOUNT_DEADLINE = 120.0  # a journal's replay may take its time
CHECK_SECONDS = (
    3600  # for a type's checker, if nobody says otherwise: a disk of some TB takes that where it is emulated
)
REQUEST_DEADLINE = 30.0  # any other answer of the agent; then the VM is ended
DEATHS, DEATHS_WINDOW = 3, 60.0  # a VM that ends this often in this time is not started again for a while
SYNC_DEADLINE = 600.0  # for what was changed to be on the disk: 16 MiB and a journal on the slowest stick take a minute
ANSWER_DEADLINE = 120.0  # for a change: one may wait until the disk has taken earlier ones
CHANGE_DEADLINE = 600.0  # for a call that changes something: a VM is started, a checker runs, changes are repeated
CALL_DEADLINE = 120.0  # what a call on the mount takes at most, however many answers it needs, and a new VM
STATUS_DEADLINE = 10.0  # for a supervisor to say what it has mounted
SILENCE_DEADLINE = 900.0  # between two words of a supervisor that mounts: a start with KVM and without, and a search
UNMOUNT_DEADLINE = 20.0  # for a supervisor to unmount and end: several processes, each killed after STOP_DEADLINE
SAVE_DEADLINE = 600.0  # for what was changed to be on the medium: 64 MiB on a card that takes 0.2 MB/s, twice
SETTLE_DEADLINE = 60.0  # for a mount that nothing is to be saved of any more to end: the guest unmounts
LAST_SAVE_DEADLINE = 10.0  # to save what can be saved, where all must end: the machine shuts down
WRITE_IDLE = 5.0  # after so long without a change a file system is left clean, and is only read
STOP_DEADLINE = 5.0  # from asking a process to end to killing it

# --- the appliance process: QEMU and libguestfs ---------------------------------------------------------------------
GUEST_MEMORY_MIB = 512  # what the largest supported metadata (xfs, btrfs) and a 64 MiB copy-on-write layer need
APPLIANCE_ADDRESS_SPACE = 4096 * MIB  # guest memory, translation buffer, libraries: 2.4 GiB are mapped in practice
APPLIANCE_SCRATCH = 256 * MIB  # tmpfs for sockets and the appliance disk's own snapshot
APPLIANCE_PROCESSES = 64  # QEMU's threads count

# --- the container process: QEMU's block layer, for a medium that is not raw ------------------------------------------
CONTAINER_DEADLINE = 30.0  # to start and to read the tables of the largest image; 0.1 s where nobody else computes
CONTAINER_ADDRESS_SPACE = 2048 * MIB  # 0.6 GiB are mapped in practice; a table that wants more is refused
CONTAINER_SCRATCH = 1 * MIB  # a socket's name
CONTAINER_PROCESSES = 128  # QEMU reads in up to 64 threads, and ends itself if it cannot have one
CONTAINER_CONNECTIONS = 64  # one for the virtual machine, one for each mount, and those that are about to be closed
MAX_DISK_SIZE = (1 << 63) - 1  # that a container may claim: off_t

# --- the key process: the header of an encrypted volume, and its key --------------------------------------------------
KEY_SECONDS = 120.0  # that the key slots of a volume may take to derive; cryptsetup makes them 2 s each
KEY_DEADLINE = 2 * KEY_SECONDS + 60.0  # for an answer: what it takes is estimated before, and a busy host is slower
DESCRIBE_DEADLINE = 30.0  # to start, and to read a header
KEY_MEMORY = 1024 * MIB  # that argon2 gets, which is cryptsetup's own bound when it makes a key slot
KEY_MEMORY_MOST = 4096 * MIB  # if somebody asks for it: the most that LUKS2 knows
KEY_ADDRESS_SPACE = 512 * MIB  # of the process itself, beside argon2's; threads reserve some of it
KEY_SCRATCH = 1 * MIB  # nothing is written
KEY_PROCESSES = 32  # argon2's threads
KEY_LOCKED = 64 << 10  # memory that is kept out of swap, where the host allows as much

# --- encrypted disks --------------------------------------------------------------------------------------------------
MAX_STACKED_LAYERS = 8  # of disks that are made of disks: LUKS in LUKS in a volume group is four
PLAINTEXT_DEADLINE = 30.0  # to start and to read the key; 0.5 s where nobody else computes
PLAINTEXT_ADDRESS_SPACE = 1024 * MIB
PLAINTEXT_SCRATCH = 1 * MIB  # a socket's name
PLAINTEXT_PROCESSES = 128  # a thread for each request that is being served

# --- the session process: the FUSE server ---------------------------------------------------------------------------
SESSION_ADDRESS_SPACE = 2048 * MIB
SESSION_SCRATCH = 1 * MIB
SESSION_PROCESSES = 64

# --- what an image may make us keep ---------------------------------------------------------------------------------
MAX_DIRECTORY_ENTRIES = 1_000_000  # a directory that claims more is cut there, and an incident logged
MAX_DEPTH = 1024  # folders in folders: a looping tree ends here with ELOOP
MAX_FILE_SIZE = (1 << 63) - 1  # loff_t
INDEX_ENTRIES = 200_000  # entries whose folder stays learned; older folders are asked for again
MAX_INDEX_ENTRIES = 1_250_000  # those being learned included, 0.8 KiB each: beyond, folders cannot be read
ENTRY_BYTES = 256  # longer entries, by names and link targets, count as several
DOUBTFUL_FILES = 100_000  # changed files that are remembered until the medium has settled, 0.1 KiB each
JOURNAL_BYTES = 16 * MIB  # of changes that the disk is not known to have: they are repeated if the VM dies
JOURNAL_CHANGES = 4_000  # the same, in changes: repeating one takes a ms
MAX_EXTENT_QUESTIONS = 1024  # for one file: 8 GiB in clusters of 4 KiB; the rest is read through the agent
EXTENT_PATIENCE = 10.0  # seconds of such questions about one file: who opens it waits for them
MAX_MOUNTS = 24  # of one medium; each takes a port of the VM, which has 29 to give
# Ports of ended streams that are unplugged before a new one is plugged in. The guest hears of both through a queue of
# 32 places (appliance.guest): with what a new port and the last one take, three and one, there is room for MAX_MOUNTS,
# and the supervisor's own, ending at that very moment, which take one each.
REMOVED_PORTS = 3
MAX_MISSING = 64  # file systems of one medium beyond MAX_MOUNTS that are listed as not mounted
MEDIUM_MEMORY_MIB = 2048  # of all processes of a medium that the daemon shows, the page cache they fill included
MEDIUM_CPU_PERCENT = 200  # the virtual machine has two processors
MEDIUM_PROCESSES = 1024  # threads count: one box for the virtual machine, one for each mount
MAX_MEDIA = 16  # that the daemon keeps at a time; each may have a VM
PREFETCH_ENTRIES = 20_000  # learned in the background after mounting; less than INDEX_ENTRIES, and about 20 MiB
IDLE = 60.0  # a VM that nobody has asked anything for so long is ended; the next question starts another
MAX_EXTENTS_PER_FILE = 200_000  # a plan of more is not kept: such a file is read through the agent
MAX_EXTENTS = 1_000_000  # in the long plans of a mount, 0.1 KiB each; the oldest are asked for again
LONG_QUESTIONS = 4  # files whose many extents are asked for at a time: 40 MiB each until they are a plan
AGENT_CHUNKS = 24  # MiB that came through the agent and are kept, or on their way, until the VM rests; two a reader
INFLIGHT = 32  # requests to the agent at a time
MAX_LOST_NAMES = 10  # files of which it is said that changes are lost, of NAME_SHOWN characters each
NAME_SHOWN = 200
MAX_INCIDENTS_LOGGED = 100  # a hostile image must not fill the log; all are counted
CONTROL_MESSAGE = 64 << 10  # a packet between our own processes
CONTROL_WHOLE = 4 * MIB  # of what goes in pieces: MAX_MOUNTS paths of 4 KiB, escaped and told twice, are 1.2 MiB
LOG_LINE = 4096  # of what a child says; the guest's console speaks through it
LOG_BYTES = 4 * MIB  # of one medium's log file; then its older half is dropped
# Of it, what each kind of box may say: all of them together never fill the half that is kept.
LOG_SHARE, LOG_BURST, LOG_RATE = LOG_BYTES // 9, 256 << 10, 1 << 10
KEYFILE_BYTES = 1 * MIB  # of a keyfile of VeraCrypt's: the rest of it does not count
MAX_SECRET = 8 * MIB  # a passphrase, or a key file: as much as cryptsetup(8) takes
