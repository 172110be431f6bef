// Finds the program, and starts servers for tests and scripts.
"use strict"

const { spawn } = require("node:child_process")
const { dirname, join } = require("node:path")
const platforms = require("./platforms.json")

/** Returns the path of the program for this platform. */
function programPath() {
  const chosen = process.env.EMBEDDING_SERVER_PROGRAM
  if (chosen) return chosen
  const platform = `${process.platform}-${process.arch}`
  const known = platforms[platform]
  if (!known) {
    throw new Error(
      `embedding-server has no program for ${platform}. There are programs for ${Object.keys(platforms).join(", ")}. ` +
        "Build one from source with cargo, and name it by the environment variable EMBEDDING_SERVER_PROGRAM.",
    )
  }
  const name = `@embedding-server/${platform}`
  try {
    return join(dirname(require.resolve(`${name}/package.json`)), "bin", known.file)
  } catch {
    throw new Error(
      `The package ${name}, which carries the program, is not installed. npm leaves it out with --omit=optional or --no-optional, and ` +
        "a lock file that was written on another platform can leave it out. Install again without these, or add the package " +
        `with npm install ${name}.`,
    )
  }
}

/** Returns the environment of the program, which would warn about a variable that it does not know. */
function programEnvironment() {
  const { EMBEDDING_SERVER_PROGRAM, ...others } = process.env
  return others
}

/**
 * Starts the server on a free port of this machine, and waits until its models are loaded.
 *
 * @param {{ models?: string[], args?: string[], timeout?: number }} [options]
 */
async function startServer({ models = [], args = [], timeout = 60_000 } = {}) {
  const command = ["serve", "--host", "127.0.0.1", "--port", "0", ...models.flatMap((model) => ["--model", model]), ...args]
  const child = spawn(programPath(), command, { stdio: ["ignore", "pipe", "pipe"], env: programEnvironment() })
  let log = ""
  child.stderr.setEncoding("utf8").on("data", (text) => (log = (log + text).slice(-4000)))
  const ended = new Promise((done) => child.once("close", (code, signal) => done(signal ?? code)))
  // A server must not outlive this process.
  const kill = () => child.kill("SIGKILL")
  process.once("exit", kill)
  const stop = async () => {
    process.removeListener("exit", kill)
    child.kill("SIGTERM")
    await ended
  }
  const failed = ended.then((how) => {
    throw new Error(`embedding-server ended with ${how}:\n${log}`)
  })
  failed.catch(() => {})
  try {
    const url = await Promise.race([failed, address(child)])
    const end = Date.now() + timeout
    while (!(await Promise.race([failed, isReady(url)]))) {
      if (Date.now() > end) throw new Error(`embedding-server was not ready within ${timeout} ms:\n${log}`)
      await new Promise((next) => setTimeout(next, 20))
    }
    return { url, baseURL: `${url}/v1`, pid: child.pid, stop, [Symbol.asyncDispose ?? Symbol.for("asyncDispose")]: stop }
  } catch (error) {
    await stop()
    throw error
  }
}

/** Returns the address that the server prints. */
function address(child) {
  return new Promise((found) => {
    let text = ""
    child.stdout.setEncoding("utf8").on("data", (more) => {
      text += more
      const match = text.match(/^listening on (\S+?)\/?$/m)
      if (match) found(match[1])
    })
  })
}

async function isReady(url) {
  try {
    return (await fetch(`${url}/ready`)).ok
  } catch {
    return false
  }
}

module.exports = { programEnvironment, programPath, startServer }
