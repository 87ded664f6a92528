"""scripts/fetch-images takes only files of the right checksum, keeps nothing wrong, and says one sentence when it cannot help."""
import contextlib
import hashlib
import importlib.machinery
import importlib.util
import io
import os
import pathlib
import sys
import tempfile

sys.dont_write_bytecode = True
SOURCE = pathlib.Path(os.environ["STQUANT_SOURCE"])
sys.path.insert(0, str(SOURCE / "scripts"))
loader = importlib.machinery.SourceFileLoader("fetch_images", str(SOURCE / "scripts/fetch-images"))
fetch_images = importlib.util.module_from_spec(importlib.util.spec_from_loader("fetch_images", loader))
loader.exec_module(fetch_images)
debian_data = fetch_images.debian_data

CONTENTS = {name: f"the content of {name}".encode() for name in fetch_images.FILES}


def fetch(cache, package, *arguments):
    """Exit status, what it prints and says, and how many packages it unpacked, where the package holds these files (None: it cannot be had)."""
    unpacked = []

    def unpack(name, folder):
        if package is None:
            raise debian_data.Unavailable(f"the Debian package {name} cannot be downloaded")
        unpacked.append(name)
        target = pathlib.Path(folder, fetch_images.FOLDER)
        target.mkdir(parents=True)
        for name, content in package.items():
            (target / name).write_bytes(content)

    debian_data.unpack = unpack
    os.environ["XDG_CACHE_HOME"] = cache
    sys.argv = ["fetch-images", *arguments]
    printed, said = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(said):
        status = debian_data.main("fetch-images", fetch_images.main)
    return status, printed.getvalue().strip(), said.getvalue().strip(), len(unpacked)


def keeps_what_it_fetched(cache):
    status, folder, _, unpacked = fetch(cache, CONTENTS)
    same = {name: pathlib.Path(folder, name).read_bytes() for name in CONTENTS} == CONTENTS
    return status == 0 and same and unpacked == 1 and fetch(cache, CONTENTS) == (0, folder, "", 0)


def distrusts_a_changed_file(cache):
    _, folder, _, _ = fetch(cache, CONTENTS)
    pathlib.Path(folder, "t10k-images-idx3-ubyte.gz").write_bytes(b"half")
    return fetch(cache, CONTENTS)[3] == 1 and pathlib.Path(folder, "t10k-images-idx3-ubyte.gz").read_bytes() == CONTENTS["t10k-images-idx3-ubyte.gz"]


def refuses_another_package(cache):
    for package in ({**CONTENTS, "train-labels-idx1-ubyte.gz": b"other"}, {"train-images-idx3-ubyte.gz": b""}):
        status, printed, said, _ = fetch(cache, package)
        if status != 1 or printed or "holds other files than expected" not in said or os.path.exists(os.path.join(cache, "stquant/fashion-mnist")):
            return False
    return True


def says_one_sentence_offline(cache):
    status, printed, said, _ = fetch(cache, None)
    return status == 1 and printed == "" and len(said.splitlines()) == 1 and "cannot be downloaded" in said


def takes_no_argument(cache):
    return fetch(cache, CONTENTS, "mnist")[0] == 2


def main():
    fetch_images.FILES = {name: hashlib.sha256(content).hexdigest() for name, content in CONTENTS.items()}
    failed = 0
    for case in (keeps_what_it_fetched, distrusts_a_changed_file, refuses_another_package, says_one_sentence_offline, takes_no_argument):
        with tempfile.TemporaryDirectory() as cache:
            good = case(cache)
        failed += not good
        print(f"{'ok' if good else 'not ok'} - {case.__name__.replace('_', ' ')}", flush=True)
    return 1 if failed else 0


sys.exit(main())
