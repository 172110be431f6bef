// The installed npm package: the command of npx, the module, and the errors on platforms without a program.

import assert from "node:assert/strict"
import { spawn, spawnSync } from "node:child_process"
import { once } from "node:events"
import { copyFileSync, mkdtempSync, readFileSync, readdirSync, rmSync, writeFileSync } from "node:fs"
import { createRequire } from "node:module"
import { tmpdir } from "node:os"
import { join } from "node:path"
import test from "node:test"
import { fileURLToPath } from "node:url"

const { WHOLE, BARE, EMBEDDING_SERVER_BIN: PROGRAM } = process.env
const ROOT = fileURLToPath(new URL("../..", import.meta.url))
const npx = (directory, ...args) => ["npx", ["--no-install", "embedding-server", ...args], { cwd: directory, encoding: "utf8" }]
const { programPath, startServer } = createRequire(join(WHOLE, "x.js"))("embedding-server")

async function embed(url) {
  const body = JSON.stringify({ input: "hello", model: "text-embedding-3-small" })
  const answer = await fetch(`${url}/v1/embeddings`, { method: "POST", body, headers: { "Content-Type": "application/json" } })
  return (await answer.json()).data[0].embedding
}

test("npx prints what the program prints, with its exit code", () => {
  for (const args of [["--version"], ["--help"], ["check", "--port", "99999"], ["--no-such-flag"], ["inspect", "no/such/path"]]) {
    const [ours, theirs] = [spawnSync(...npx(WHOLE, ...args)), spawnSync(PROGRAM, args, { cwd: WHOLE, encoding: "utf8" })]
    assert.deepEqual([ours.status, ours.stdout, ours.stderr], [theirs.status, theirs.stdout, theirs.stderr], args.join(" "))
  }
})

for (const signal of ["SIGTERM", "SIGINT"]) {
  test(`npx answers the request of the README, and ${signal} stops it`, async () => {
    const launcher = join(WHOLE, "node_modules/.bin/embedding-server")
    const child = spawn(launcher, ["--port", "0"], { stdio: ["ignore", "pipe", "ignore"] })
    let text = ""
    for await (const part of child.stdout.setEncoding("utf8")) {
      text += part
      if (text.includes("\n")) break
    }
    const url = text.match(/listening on (\S+)/)[1].replace(/\/$/, "")
    while (!(await fetch(`${url}/ready`)).ok);
    assert.equal((await embed(url)).length, 384)
    child.kill(signal)
    const [code, by] = await once(child, "exit")
    assert.deepEqual([code, by], [0, null])
  })
}

test("a command that a signal ends reports the signal", async () => {
  const launcher = join(WHOLE, "node_modules/.bin/embedding-server")
  const child = spawn(launcher, ["embed", "-"], { stdio: ["pipe", "pipe", "inherit"] })
  child.stdin.on("error", () => {})
  child.stdin.write('{"text": "hello"}\n'.repeat(200_000))
  await once(child.stdout, "data")
  child.stdout.resume()
  child.kill("SIGTERM")
  const [code, by] = await once(child, "exit")
  assert.deepEqual([code, by], [null, "SIGTERM"])
})

test("startServer gives a server that is ready, and stops it", async () => {
  const server = await startServer({ models: [`m=${ROOT}/tests/fixtures/checkpoints/llama`] })
  assert.ok((await fetch(`${server.url}/ready`)).ok)
  assert.equal(server.baseURL, `${server.url}/v1`)
  await server.stop()
  await assert.rejects(fetch(`${server.url}/ready`))
  await assert.rejects(startServer({ models: ["m=/no/such/model"] }), /ended with 78(.|\n)*no\/such\/model/)
})

test("a server ends with the process that started it", async () => {
  const code = `require("embedding-server").startServer().then((s) => { console.log(s.url); process.exit() })`
  const done = spawnSync(process.execPath, ["-e", code], { cwd: WHOLE, encoding: "utf8" })
  assert.match(done.stdout, /^http/, done.stderr)
  await assert.rejects(fetch(`${done.stdout.trim()}/health`))
})

test("without the package of the platform, the command says what to do", () => {
  const done = spawnSync(...npx(BARE, "--version"))
  assert.equal(done.status, 1)
  assert.match(done.stderr, /^error: The package @embedding-server\/\S+, which carries the program, is not installed\./)
  assert.ok(!done.stderr.includes("    at "), done.stderr)
})

test("on a platform without a package, the command names the platforms", () => {
  const directory = mkdtempSync(join(tmpdir(), "es-npm-"))
  try {
    for (const file of ["launcher.cjs", "index.cjs", "platforms.json"]) copyFileSync(join(ROOT, "packaging/npm", file), join(directory, file))
    writeFileSync(join(directory, "other.cjs"), `Object.defineProperty(process, "arch", { value: "riscv64" })`)
    const done = spawnSync(process.execPath, ["-r", "./other.cjs", "launcher.cjs"], { cwd: directory, encoding: "utf8", env: { PATH: "" } })
    assert.equal(done.status, 1)
    assert.match(done.stderr, /^error: embedding-server has no program for \w+-riscv64\. There are programs for linux-x64, .*EMBEDDING_SERVER_PROGRAM/)
  } finally {
    rmSync(directory, { recursive: true })
  }
})

test("the examples in the documents run", () => {
  const document = readFileSync(join(ROOT, "docs/javascript.md"), "utf8")
  const [example, ...others] = document.split("```js\n").slice(1).map((block) => block.split("```")[0])
  assert.equal(others.length, 0)
  const done = spawnSync(process.execPath, ["--input-type=module", "-e", example], { cwd: WHOLE, encoding: "utf8" })
  assert.deepEqual([done.status, done.stdout], [0, "2 384\n"], done.stderr)
})

test("another program may be named, and is not told so", () => {
  const done = spawnSync(...npx(BARE, "check").slice(0, 2), { cwd: BARE, encoding: "utf8", env: { ...process.env, EMBEDDING_SERVER_PROGRAM: PROGRAM } })
  assert.equal(done.status, 0)
  assert.ok(!done.stderr.includes("EMBEDDING_SERVER_PROGRAM"), done.stderr)
})

test("the packages have the version of Cargo.toml, and nothing that is not needed", () => {
  const version = readFileSync(join(ROOT, "Cargo.toml"), "utf8").match(/^version = "(.*)"$/m)[1]
  const main = join(WHOLE, "node_modules/embedding-server")
  const { version: ours, optionalDependencies, dependencies } = JSON.parse(readFileSync(join(main, "package.json"), "utf8"))
  assert.equal(ours, version)
  assert.equal(dependencies, undefined)
  assert.deepEqual([...new Set(Object.values(optionalDependencies))], [version])
  assert.deepEqual(readdirSync(main).sort(), [
    "LICENSE", "README.md", "THIRD_PARTY.txt", "index.cjs", "index.d.ts", "launcher.cjs", "package.json", "platforms.json",
  ])
  assert.ok(programPath().startsWith(WHOLE) || programPath().includes("node_modules/@embedding-server/"))
})
