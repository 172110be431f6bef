#!/usr/bin/env node
// Builds the npm packages of a release: `embedding-server`, and a package for one platform that carries the program.
//
//   packaging/npm/build.mjs PROGRAM [PLATFORM [OUT]]     default: the platform of this machine, and target/npm
//   packaging/npm/build.mjs --main [OUT]                 only the package `embedding-server`
//
// PLATFORM is one of those in platforms.json, such as linux-x64. The version, the license and the description are those of Cargo.toml. The
// tarballs are those of `npm pack`. Nothing is published.

import { execFileSync } from "node:child_process"
import { chmodSync, copyFileSync, mkdirSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs"
import { tmpdir } from "node:os"
import { dirname, join, resolve } from "node:path"
import { fileURLToPath } from "node:url"

const here = dirname(fileURLToPath(import.meta.url))
const root = resolve(here, "../..")
const platforms = JSON.parse(readFileSync(join(here, "platforms.json"), "utf8"))
const manifest = readFileSync(join(root, "Cargo.toml"), "utf8")

/** Returns the value of a key in a section of Cargo.toml. */
function cargo(section, key) {
  const text = manifest.split(`[${section}]`)[1].split("\n[")[0]
  return text.match(new RegExp(`^${key} = "(.*)"$`, "m"))[1]
}

const version = cargo("workspace.package", "version")
const common = {
  version,
  description: cargo("package", "description"),
  license: cargo("workspace.package", "license"),
  keywords: ["embeddings", "openai", "llm", "rag", "rerank", "server"],
}

/** Writes a package.json, packs the directory, and prints the path of the tarball. */
function pack(directory, fields, out) {
  writeFileSync(join(directory, "package.json"), JSON.stringify(fields, null, 2) + "\n")
  for (const file of ["LICENSE", "THIRD_PARTY.txt"]) copyFileSync(join(root, file), join(directory, file))
  mkdirSync(out, { recursive: true })
  const packed = execFileSync("npm", ["pack", "--silent", "--pack-destination", out], { cwd: directory, encoding: "utf8" })
  console.log(join(out, packed.trim().split("\n").at(-1)))
}

function withDirectory(work) {
  const directory = mkdtempSync(join(tmpdir(), "embedding-server-npm-"))
  try {
    work(directory)
  } finally {
    rmSync(directory, { recursive: true })
  }
}

function main(out) {
  withDirectory((directory) => {
    for (const file of ["README.md", "platforms.json", "launcher.cjs", "index.cjs", "index.d.ts"]) copyFileSync(join(here, file), join(directory, file))
    chmodSync(join(directory, "launcher.cjs"), 0o755)
    const packages = Object.keys(platforms).map((platform) => [`@embedding-server/${platform}`, version])
    pack(
      directory,
      {
        name: "embedding-server",
        ...common,
        bin: { "embedding-server": "launcher.cjs" },
        main: "index.cjs",
        types: "index.d.ts",
        engines: { node: ">=18" },
        files: ["launcher.cjs", "index.cjs", "index.d.ts", "platforms.json", "THIRD_PARTY.txt"],
        optionalDependencies: Object.fromEntries(packages),
      },
      out,
    )
  })
}

function platformPackage(program, platform, out) {
  const { os, cpu, libc, file } = platforms[platform] ?? {}
  if (!os) throw new Error(`${platform} is not in platforms.json, which has ${Object.keys(platforms).join(", ")}`)
  withDirectory((directory) => {
    mkdirSync(join(directory, "bin"))
    copyFileSync(program, join(directory, "bin", file))
    chmodSync(join(directory, "bin", file), 0o755)
    const name = `@embedding-server/${platform}`
    writeFileSync(join(directory, "README.md"), `# ${name}\n\nThe program of the package \`embedding-server\` for ${platform}. Install that package.\n`)
    pack(directory, { name, ...common, os: [os], cpu: [cpu], ...(libc && { libc }), files: ["bin", "THIRD_PARTY.txt"], preferUnplugged: true }, out)
  })
}

const [first, ...rest] = process.argv.slice(2)
if (!first || first === "-h" || first === "--help") {
  const lines = readFileSync(fileURLToPath(import.meta.url), "utf8").split("\n").slice(1)
  console.log(lines.slice(0, lines.indexOf("")).map((line) => line.replace(/^\/\/ ?/, "")).join("\n"))
  process.exit(first ? 0 : 2)
}
const target = join(process.env.CARGO_TARGET_DIR ?? join(root, "target"), "npm")
if (first === "--main") {
  main(resolve(rest[0] ?? target))
} else {
  const out = resolve(rest[1] ?? target)
  platformPackage(resolve(first), rest[0] ?? `${process.platform}-${process.arch}`, out)
  main(out)
}
