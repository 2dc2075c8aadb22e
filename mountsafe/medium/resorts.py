"""What it took to open something damaged or incomplete: the guest tells bits, the words are ours."""

from mountsafe.wire import Resort

# bit -> (what programs are told, what persons are told)
RESORTS = {
    Resort.BACKUP_TABLE: (
        "backup-gpt",
        "its partition table is damaged: the copy at the end of the disk was used",
    ),
    Resort.BACKUP_SUPERBLOCK: (
        "backup-superblock",
        "its superblock is damaged: a copy of it was used, which may be older",
    ),
    Resort.BACKUP_BOOT: ("backup-boot-sector", "its boot sector is damaged: the second one was used"),
    Resort.SECOND_FAT: ("second-fat", "its first FAT is damaged: the second one was used"),
    Resort.MFT_MIRROR: (
        "mft-mirror",
        "the beginning of its file table and the copy of that differ: one was used for both",
    ),
    Resort.DEGRADED: (
        "degraded",
        "degraded: another disk of it is missing, so its newest changes, and files that lie there, may be too",
    ),
    Resort.OLDER_ROOT: (
        "older-root",
        "it is damaged: an older state of it was used, and its newest changes may be missing",
    ),
    Resort.UNVERIFIED: (
        "unverified",
        "it is damaged: damaged parts were passed over, and the checksums of its files were not looked at",
    ),
    Resort.JOURNAL_ELSEWHERE: (
        "journal-elsewhere",
        "its journal is on another device, which is not here",
    ),
    Resort.JOURNAL_UNREADABLE: ("journal-unreadable", "its journal cannot be read"),
    Resort.AMBIGUOUS: (
        "ambiguous",
        "there are signatures of other types on it, which may be older: --type chooses another one",
    ),
    Resort.UNFINISHED: (
        "unfinished",
        "there is more on it than is shown: the search for file systems was ended",
    ),
    Resort.LAST_SESSION: (
        "last-session",
        "its last session is shown, as a drive shows it: what an earlier one has beside that is not",
    ),
    Resort.PART_OF_DISC: ("part-of-disc", "it is a part of a disc, and what lies before it is missing"),
}


def codes(bits: int) -> list[str]:
    """Return what programs are told."""
    return [code for bit, (code, _) in RESORTS.items() if bits & bit]


def words(bits: int) -> list[str]:
    """Return what persons are told."""
    return [said for bit, (_, said) in RESORTS.items() if bits & bit]
