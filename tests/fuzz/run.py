"""`./dev fuzz`: looks for inputs on which a target fails, guided by the coverage of mountsafe's code (atheris).

python tests/fuzz/run.py TARGET SECONDS CORPUS. The corpus grows in a folder of that name; an input that fails is
written there as crash-*, and its traceback to stderr.
"""

import sys
from pathlib import Path

import atheris

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

with atheris.instrument_imports(include=["mountsafe", "tomllib"], enable_loader_override=False):
    from tests.fuzz.corpus import kept
    from tests.fuzz.targets import SEEDS, TARGETS


def main(name: str, seconds: str, corpus: str) -> None:
    """Fuzz one target until the time is up or an input fails."""
    folder = Path(corpus)
    folder.mkdir(parents=True, exist_ok=True)
    for number, seed in enumerate(SEEDS[name] + kept(name)):
        (folder / f"seed-{number}").write_bytes(seed)
    options = [f"-max_total_time={seconds}", f"-artifact_prefix={folder}/", "-max_len=8192", "-timeout=20"]
    atheris.Setup([sys.argv[0], *options, "-print_final_stats=1", str(folder)], TARGETS[name])
    atheris.Fuzz()


if __name__ == "__main__":
    main(*sys.argv[1:4])
