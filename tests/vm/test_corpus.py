"""Other projects' images, opened as a user opens them: the mount shows what their makers state is on them.

The images are looked at ahead of the tests, two at a time, so a single test's duration says little.
"""

from shutil import which

import pytest

from mountsafe.errors import UserError
from tests.conftest import missing
from tests.vm import corpus, types
from tests.vm.sight import Look, Looking, Sight

STRONG = sorted(corpus.stated()) or [""]  # "": the one test that says what is missing
WEAK = sorted(name for name in corpus.listed() if corpus.images()[name].kind.startswith("valid")) or [""]


@pytest.fixture(scope="module")
def looks(
    looking: Looking, tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest
) -> dict[str, Look]:
    """What to look at, by image: everything that the tests of this module ask for, queued in their order."""
    folder = tmp_path_factory.mktemp("corpus")
    found: dict[str, Look] = {}
    for item in request.session.items:
        name = getattr(item, "callspec", None) and item.callspec.params.get("name")  # type: ignore[attr-defined]
        if item.path == request.path and name and name not in found:
            image = corpus.images()[name]
            path = folder / f"{len(found)}.img"
            corpus.unpack(image, path)
            found[name] = Look(path, image.option)
            looking.soon(found[name])
    return found


@pytest.fixture
def image(name: str) -> corpus.Image:
    """The corpus's row of an image; gives the test up if there is no corpus."""
    if not name:
        missing(f"the corpus (expected at {corpus.folder()}, or where MOUNTSAFE_CORPUS says)")
    if which("zstd") is None and corpus.images()[name].codec == "zstd":
        missing("zstd")
    return corpus.images()[name]


def seen(looking: Looking, looks: dict[str, Look], name: str) -> Sight:
    (sight,) = looking(looks[name])
    assert sight.incidents == []
    assert sight.direct == (types.TYPES[types.named(sight.fstype)].read == types.DIRECT)
    return sight


def refused(looking: Looking, look: Look, reason: types.Refusal) -> None:
    with pytest.raises(UserError) as failure:
        looking(look)
    assert reason.words in failure.value.message, f"refused with other words; it should be because {reason.why}"


@pytest.mark.parametrize("name", STRONG)
def test_it_shows_what_its_maker_states(
    image: corpus.Image, name: str, looking: Looking, looks: dict[str, Look]
) -> None:
    reason = types.refusal(name, image.fstype)
    if reason is not None:
        refused(looking, looks[name], reason)
    else:
        assert corpus.differences(image, seen(looking, looks, name)) == []


@pytest.mark.parametrize("name", WEAK)
def test_it_shows_what_another_reader_saw(
    image: corpus.Image, name: str, looking: Looking, looks: dict[str, Look]
) -> None:
    reason = types.refusal(name, image.fstype)
    if reason is not None:
        refused(looking, looks[name], reason)
    else:
        assert corpus.disagreements(image, seen(looking, looks, name)) == []


def test_every_refusal_is_of_an_image() -> None:
    """A reason whose image is gone is to be removed."""
    if not corpus.images():
        missing("the corpus")
    for reason in types.REFUSED:
        assert any(types.refusal(name, corpus.images()[name].fstype) == reason for name in [*STRONG, *WEAK]), reason
