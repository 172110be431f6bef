"""Writes the archive of a release: see packaging/archive."""

import gzip
import os
import subprocess
import sys
import tarfile
import time
import tomllib
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def main(program, target, out):
    version = tomllib.loads((ROOT / "Cargo.toml").read_text(encoding="utf-8"))["workspace"]["package"]["version"]
    commit_time = subprocess.run(["git", "-C", ROOT, "log", "-1", "--format=%ct"], capture_output=True, check=True, text=True).stdout
    when = int(os.environ.get("SOURCE_DATE_EPOCH") or commit_time)
    name = f"embedding-server-{version}-{target}"
    files = [Path(program), *(ROOT / name for name in ["LICENSE", "THIRD_PARTY.txt", "README.md", "CHANGELOG.md", "packaging/sbom.cdx.json"])]
    if "linux" in target:
        files.append(ROOT / "packaging/embedding-server.service")
    Path(out).mkdir(parents=True, exist_ok=True)
    if "windows" in target:
        path = Path(out, name + ".zip")
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            for file in files:
                entry = zipfile.ZipInfo(f"{name}/{file.name}", time.gmtime(when)[:6])
                entry.compress_type = zipfile.ZIP_DEFLATED
                archive.writestr(entry, file.read_bytes())
    else:
        path = Path(out, name + ".tar.gz")
        # Neither the header of gzip nor the entries have the time or the user of this run.
        with path.open("wb") as raw, gzip.GzipFile("", "wb", mtime=when, fileobj=raw) as packed, tarfile.open(fileobj=packed, mode="w") as archive:
            for file in files:
                entry = tarfile.TarInfo(f"{name}/{file.name}")
                entry.size, entry.mtime, entry.mode = file.stat().st_size, when, 0o755 if file == files[0] else 0o644
                with file.open("rb") as content:
                    archive.addfile(entry, content)
    print(path)


main(*sys.argv[1:])
