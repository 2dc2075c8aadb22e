"""The bounds of the agent protocol: all of them, and why."""

SECTOR_SIZES = (512, 4096, 2048, 1024)  # that Linux knows, the likely ones first
MAX_READ = 1 << 20  # the largest read that Linux's FUSE client asks for
MAX_BODY = MAX_READ + (64 << 10)  # a read's answer, or a page of a directory, and its fixed fields
MAX_NAME = 255  # NAME_MAX: longer names cannot be passed on to the kernel
MAX_TARGET = 4095  # PATH_MAX less its NUL
MAX_PATH = 32 << 10  # deeper trees than PATH_MAX exist; the agent walks them step by step
MAX_PAGE_ENTRIES = 240  # entries in one page of a directory: the largest fit a body, and others wait for some ms only
MAX_FILE_EXTENTS = 16  # extents of a file told along with others; files with more are asked for one by one
MAX_EXTENTS = 8192  # extents in one answer to EXTENTS
MAX_LAYOUT = 128  # files in one question for LAYOUT: few enough to be answered in some ms
MAX_TEXT = 255  # labels, types, identifiers
MAX_MESSAGE = 2000  # an error's words
MAX_VOLUMES = 256  # disks, partitions, arrays and logical volumes of one medium
MAX_PARENTS = 32  # volumes that one is made of
MAX_PLACES = 128  # runs of one volume on the medium; where there are more, the agent reads
MAX_ALL_PLACES = 4096  # of all volumes together: what checking them costs
MAX_ZONE = 16 << 10  # a time zone's rules: four times the longest of them
MAX_OPTIONS = 16  # of one mount
MAX_XATTRS = 512  # extended attributes of one file
MAX_XATTR_VALUE = 64 << 10  # XATTR_SIZE_MAX
MAX_CHECK_WORDS = 32 << 10  # of what a checker said: its beginning and its end
