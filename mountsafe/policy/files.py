"""Where the rules are: /etc/mountsafe/policy.d/*.toml in the order of their names, then /etc/mountsafe/policy.toml."""

from pathlib import Path

from mountsafe.policy.rules import Policy

FOLDER = Path("/etc/mountsafe")
EXAMPLE = Path(__file__).with_name("example.toml")


def load(folder: Path = FOLDER) -> Policy:
    """Read the rules that are there. What cannot be read refuses (see `rules.Policy`); nothing at all is no rule."""
    files = [*sorted((folder / "policy.d").glob("*.toml")), folder / "policy.toml"]
    texts = []
    for file in files:
        try:
            texts.append((str(file), file.read_text(encoding="utf-8")))
        except FileNotFoundError:
            continue
        except (OSError, UnicodeDecodeError) as error:
            return Policy([], f"{file}: {error}")
    return Policy.parse(texts)
