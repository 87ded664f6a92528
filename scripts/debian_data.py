"""Data for examples out of Debian packages, without root: what scripts/fetch-* share."""
import glob
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile


class Unavailable(Exception):
    """A package could not be had; the text is one sentence."""


def cache_folder():
    """$XDG_CACHE_HOME/stquant or ~/.cache/stquant, created when missing."""
    base = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    folder = os.path.join(base, "stquant")
    os.makedirs(folder, exist_ok=True)
    return folder


def sha256(path):
    with open(path, "rb") as file:
        return hashlib.sha256(file.read()).hexdigest()


def run(command, folder):
    return subprocess.run(command, cwd=folder, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                          stderr=subprocess.STDOUT)


def unpack(package, folder):
    """Downloads a Debian package and unpacks it into `folder`; nothing is installed."""
    if not (shutil.which("apt-get") and shutil.which("dpkg-deb")):
        raise Unavailable("this system has no apt-get and dpkg-deb")
    os.chmod(folder, 0o755)
    result = run(["apt-get", "-q", "download", package], folder)
    if result.returncode:
        # No package lists, or stale ones. Updating them needs root; sudo only if it asks nothing.
        update = ["apt-get", "-q", "update"]
        if os.geteuid() != 0:
            update = ["sudo", "-n"] + update
        if shutil.which(update[0]) and run(update, folder).returncode == 0:
            result = run(["apt-get", "-q", "download", package], folder)
    archives = glob.glob(os.path.join(glob.escape(folder), "*.deb"))
    if result.returncode or not archives:
        raise Unavailable(f"the Debian package {package} cannot be downloaded")
    if run(["dpkg-deb", "-x", archives[0], "."], folder).returncode:
        raise Unavailable(f"the Debian package {package} cannot be unpacked (is the disk full?)")


def write_whole(path, data):
    """Writes a file that is visible only once it is complete."""
    with tempfile.NamedTemporaryFile(dir=os.path.dirname(path), delete=False) as file:
        try:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
            os.chmod(file.name, 0o644)
            os.replace(file.name, path)
        except BaseException:
            os.unlink(file.name)
            raise


def main(name, work):
    """Runs work(argv) and turns what can go wrong into one sentence and exit status 1."""
    try:
        return work(sys.argv[1:])
    except Unavailable as problem:
        print(f"{name}: {problem}", file=sys.stderr)
    except OSError as problem:
        print(f"{name}: {problem.filename or 'cache'}: {problem.strerror}; XDG_CACHE_HOME chooses another folder",
              file=sys.stderr)
    return 1
