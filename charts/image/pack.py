"""Packs files into an OCI image (a tar that `ctr images import`, `docker load` and `skopeo` take), or into a directory.

Needs neither a container engine nor a registry. The same files and settings give the same bytes: entries are sorted, belong to
root, have fixed modes and no time.
"""

import argparse
import gzip
import hashlib
import io
import json
import os
import shutil
import sys
import tarfile
from pathlib import Path, PurePosixPath

INDEX = "application/vnd.oci.image.index.v1+json"
MANIFEST = "application/vnd.oci.image.manifest.v1+json"
CONFIG = "application/vnd.oci.image.config.v1+json"
LAYER = "application/vnd.oci.image.layer.v1.tar+gzip"
PLAIN_LAYER = "application/vnd.oci.image.layer.v1.tar"
# The limit that keeps an image quick to pull on a fresh node. It is for what is above a given layer.
MOST_BYTES = 60_000_000


def arguments():
    parser = argparse.ArgumentParser(description=__doc__)
    to = parser.add_mutually_exclusive_group(required=True)
    to.add_argument("--oci", type=Path, metavar="TAR", help="write an image")
    to.add_argument("--rootfs", type=Path, metavar="DIR", help="write a directory")
    parser.add_argument("--name", help="the image's name and tag")
    parser.add_argument("--architecture", default="amd64")
    parser.add_argument("--user", default="")
    parser.add_argument("--env", action="append", default=[])
    parser.add_argument("--label", action="append", default=[], type=pair)
    parser.add_argument("--entrypoint", action="append", default=[])
    parser.add_argument(
        "--layer", type=Path, metavar="TAR", help="put this below the files, as it is (for tests: no bound on its size)"
    )
    parser.add_argument("--file", action="append", default=[], type=pair, metavar="HOST=/path")
    parser.add_argument("--program", action="append", default=[], type=pair, metavar="HOST=/path")
    parser.add_argument("--tree", action="append", default=[], type=pair, metavar="HOSTDIR=/dir")
    return parser.parse_args()


def pair(text):
    left, found, right = text.partition("=")
    if not (left and found):
        raise argparse.ArgumentTypeError(f"expected LEFT=RIGHT, not {text!r}")
    return left, right


def contents(options):
    """Path in the image -> (file of this machine, mode), sorted by path."""
    found = {}
    for host, path in options.file:
        found[path] = (Path(host), 0o644)
    for host, path in options.program:
        found[path] = (Path(host), 0o755)
    for host, base in options.tree:
        for file in Path(host).rglob("*"):
            if file.is_file():
                found[str(PurePosixPath(base) / file.relative_to(host))] = (file, 0o644)
    return dict(sorted(found.items()))


def directories(paths):
    """Every directory above the paths, parents first, and /tmp."""
    above = {str(parent) for path in paths for parent in PurePosixPath(path).parents} - {"/"}
    return sorted(above | {"/tmp"})


def layer(files):
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for path in directories(files):
            entry = tarfile.TarInfo(path.lstrip("/"))
            entry.type, entry.mode = tarfile.DIRTYPE, 0o1777 if path == "/tmp" else 0o755
            tar.addfile(entry)
        for path, (file, mode) in files.items():
            data = file.read_bytes()
            entry = tarfile.TarInfo(path.lstrip("/"))
            entry.mode, entry.size = mode, len(data)
            tar.addfile(entry, io.BytesIO(data))
    return out.getvalue()


def digest(data):
    return "sha256:" + hashlib.sha256(data).hexdigest()


def encoded(value):
    return json.dumps(value, sort_keys=True, separators=(",", ":")).encode()


def described(media_type, data, **more):
    return {"mediaType": media_type, "digest": digest(data), "size": len(data), **more}


def file_digest(path):
    with open(path, "rb") as file:
        return "sha256:" + hashlib.file_digest(file, "sha256").hexdigest()


def write_image(options, files):
    plain = layer(files)
    packed = gzip.compress(plain, compresslevel=9, mtime=0)
    below = [(file_digest(options.layer), options.layer)] if options.layer else []
    settings = {"User": options.user, "Env": options.env, "Entrypoint": options.entrypoint, "WorkingDir": "/"}
    config = encoded(
        {
            "architecture": options.architecture,
            "os": "linux",
            "config": settings | ({"Labels": dict(options.label)} if options.label else {}),
            "rootfs": {"type": "layers", "diff_ids": [name for name, _ in below] + [digest(plain)]},
            "history": [{"created_by": "charts/image/build"}] * (len(below) + 1),
        }
    )
    manifest = encoded(
        {
            "schemaVersion": 2,
            "mediaType": MANIFEST,
            "config": described(CONFIG, config),
            "layers": [{"mediaType": PLAIN_LAYER, "digest": name, "size": file.stat().st_size} for name, file in below]
            + [described(LAYER, packed)],
        }
    )
    # Both spellings of the name: containerd reads the first, Docker and skopeo the second.
    names = {"io.containerd.image.name": options.name, "org.opencontainers.image.ref.name": options.name}
    platform = {"architecture": options.architecture, "os": "linux"}
    index = encoded(
        {
            "schemaVersion": 2,
            "mediaType": INDEX,
            "manifests": [described(MANIFEST, manifest, annotations=names, platform=platform)],
        }
    )
    # Docker before version 25 reads this file alone.
    blob = lambda name: "blobs/sha256/" + name.removeprefix("sha256:")
    layers = [blob(name) for name, _ in below] + [blob(digest(packed))]
    docker = encoded([{"Config": blob(digest(config)), "RepoTags": [options.name], "Layers": layers}])
    parts = {"oci-layout": encoded({"imageLayoutVersion": "1.0.0"}), "index.json": index, "manifest.json": docker}
    parts |= {blob(digest(data)): data for data in (config, manifest, packed)}
    options.oci.parent.mkdir(parents=True, exist_ok=True)
    partial = options.oci.with_suffix(".part")
    with tarfile.open(partial, "w", format=tarfile.USTAR_FORMAT) as tar:
        for name, data in sorted(parts.items()):
            entry = tarfile.TarInfo(name)
            entry.size, entry.mode = len(data), 0o644
            tar.addfile(entry, io.BytesIO(data))
        for name, file in below:
            entry = tarfile.TarInfo(blob(name))
            entry.size, entry.mode = file.stat().st_size, 0o644
            with open(file, "rb") as data:
                tar.addfile(entry, data)
    os.replace(partial, options.oci)
    size = options.oci.stat().st_size
    if size - sum(file.stat().st_size for _, file in below) > MOST_BYTES:
        sys.exit(f"{options.oci} has {size} bytes, more than {MOST_BYTES}: find out what made it grow")
    print(f"{options.oci} {options.name} {digest(manifest)} {size} bytes")


def write_directory(options, files):
    options.rootfs.mkdir(parents=True, exist_ok=True)
    for path in directories(files):
        place = options.rootfs / path.lstrip("/")
        place.mkdir(exist_ok=True)
        place.chmod(0o1777 if path == "/tmp" else 0o755)
    for path, (file, mode) in files.items():
        place = options.rootfs / path.lstrip("/")
        shutil.copyfile(file, place)
        place.chmod(mode)


def main():
    options = arguments()
    files = contents(options)
    if options.rootfs:
        write_directory(options, files)
    elif not options.name:
        sys.exit("--oci needs --name")
    else:
        write_image(options, files)


if __name__ == "__main__":
    main()
