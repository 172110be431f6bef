#!/usr/bin/env python3
"""Lists what is linked into the program: THIRD_PARTY.txt (licenses, in full) and packaging/sbom.cdx.json (CycloneDX 1.6).

    packaging/third_party.py           writes both files
    packaging/third_party.py --check   fails if either file is not what it would write

The list covers the static Linux build with the default features, and the module of the Python package: the crates that cargo links (without procedural macros and build scripts),
the C sources inside them, Rust's standard library and glibc. Needs cargo and the crates of Cargo.lock, but no network.
"""

import json
import re
import subprocess
import sys
import tomllib
import uuid
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
TARGET = "x86_64-unknown-linux-gnu"
LICENCE_FILE = re.compile(r"(licen[cs]e|copying|unlicense|notice|copyright)", re.IGNORECASE)
NOT_A_TEXT = {".rs", ".py", ".toml", ".html", ".json", ".c", ".h", ".sh", ".yml"}
# zstd offers two licenses. The chosen one is in LICENSE.
NOT_CHOSEN = {"zstd/COPYING"}
HEADER = """\
embedding-server is under the MIT license (LICENSE). The program contains the following works, each under its own license.

The static build also contains the standard library of Rust (MIT or Apache-2.0, https://www.rust-lang.org) and the GNU C
Library (LGPL-2.1-or-later, https://www.gnu.org/software/libc/): packaging/build links the program again, with any glibc.
The default model is described in models/default/README.md, the frequency sample in crates/tuning/assets/README.md,
and the vocabulary of cl100k_base in crates/layer0/assets/README.md.
"""


def cargo(*arguments):
    command = ["cargo", *arguments, "--locked"]
    return subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True).stdout


def linked():
    """Returns cargo's metadata of the linked crates, the edges between all crates, and the ID of this package.

    The crates of this workspace are one component, so the package has the edges of all of them.
    """
    tree = cargo("tree", "-p", "embedding-server", "-p", "embedding-server-python", "-e", "normal,no-proc-macro", "--target", TARGET, "--prefix", "none", "--format", "{p}")
    names = {tuple(line.split()[:2]) for line in tree.splitlines()}
    metadata = json.loads(cargo("metadata", "--format-version", "1", "--filter-platform", TARGET))
    packages = {(p["name"], "v" + p["version"]): p for p in metadata["packages"] if p["source"]}
    edges = {node["id"]: node["dependencies"] for node in metadata["resolve"]["nodes"]}
    root = metadata["resolve"]["root"]
    edges[root] = sorted({other for member in metadata["workspace_members"] for other in edges[member]})
    return [packages[name] for name in sorted(names) if name in packages], edges, root


def texts(package):
    """Returns the license texts of a crate, and of the C sources in it."""
    directory = Path(package["manifest_path"]).parent
    found = [
        path
        for path in sorted(directory.rglob("*"))
        if LICENCE_FILE.match(path.name)
        and path.is_file()
        and path.suffix not in NOT_A_TEXT
        and str(path.relative_to(directory)) not in NOT_CHOSEN
    ]
    if package["license_file"]:
        found.append(directory / package["license_file"])
    of = [path.read_text(errors="replace") for path in dict.fromkeys(found)]
    return ["\n".join(line.rstrip() for line in text.splitlines()).strip("\n") for text in of]


def expression(package):
    """Returns the license of a crate as an SPDX expression. Cargo also allows the old form MIT/Apache-2.0."""
    return (package["license"] or "see its text").replace("/", " OR ")


def third_party(packages):
    users = {}
    without = []
    for package in packages:
        of = texts(package)
        for text in of:
            users.setdefault(text, []).append(f"{package['name']} {package['version']}")
        if not of:
            without.append(package)
    out = [HEADER]
    out += [f"{p['name']} {p['version']}: {expression(p)}, {p['repository'] or 'https://crates.io/crates/' + p['name']}" for p in packages]
    out.append(f"\nCrates without a license text of their own, which are under the texts below: {', '.join(p['name'] for p in without)}.")
    for text, of in sorted(users.items(), key=lambda item: item[1]):
        out += ["", "=" * 100, ", ".join(dict.fromkeys(of)), "-" * 100, text]
    return "\n".join(out) + "\n"


def sbom(packages, edges, root):
    lock = tomllib.loads((ROOT / "Cargo.lock").read_text())
    checksums = {(p["name"], p["version"]): p.get("checksum") for p in lock["package"]}
    manifest = tomllib.loads((ROOT / "Cargo.toml").read_text())
    own = manifest["workspace"]["package"] | {"name": manifest["package"]["name"]}

    def purl(name, version):
        return f"pkg:cargo/{name}@{version.replace('+', '%2B')}"

    def component(p):
        return {
            "type": "library",
            "bom-ref": purl(p["name"], p["version"]),
            "name": p["name"],
            "version": p["version"],
            "purl": purl(p["name"], p["version"]),
            "hashes": [{"alg": "SHA-256", "content": checksums[p["name"], p["version"]]}],
            "licenses": [{"expression": expression(p)}],
        }

    refs = {p["id"]: purl(p["name"], p["version"]) for p in packages}
    program = purl(own["name"], own["version"])
    refs[root] = program
    body = {
        "components": [component(p) for p in packages],
        "dependencies": [
            {"ref": ref, "dependsOn": sorted(refs[other] for other in edges[id] if other in refs)}
            for id, ref in sorted(refs.items(), key=lambda item: item[1])
        ],
    }
    return json.dumps(
        {
            "$schema": "http://cyclonedx.org/schema/bom-1.6.schema.json",
            "bomFormat": "CycloneDX",
            "specVersion": "1.6",
            # Derived from the contents, so that the same contents give the same file.
            "serialNumber": f"urn:uuid:{uuid.uuid5(uuid.NAMESPACE_URL, json.dumps(body))}",
            "version": 1,
            "metadata": {
                "component": {
                    "type": "application",
                    "bom-ref": program,
                    "name": own["name"],
                    "version": own["version"],
                    "purl": program,
                    "licenses": [{"expression": own["license"]}],
                },
            },
            **body,
        },
        indent=1,
    ) + "\n"


def main():
    packages, edges, root = linked()
    files = {"THIRD_PARTY.txt": third_party(packages), "packaging/sbom.cdx.json": sbom(packages, edges, root)}
    for name, text in files.items():
        path = ROOT / name
        if "--check" not in sys.argv:
            path.write_text(text)
        elif not path.exists() or path.read_text() != text:
            sys.exit(f"{name} does not match Cargo.lock: run packaging/third_party.py")
    print(f"{len(packages)} crates are linked")


main()
