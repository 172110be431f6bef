#!/usr/bin/env node
// The command `embedding-server`: runs the program of this platform's package with the same arguments, streams, signals and exit code.
"use strict"

const { spawn } = require("node:child_process")
const { constants } = require("node:os")

const { programEnvironment, programPath } = require("./index.cjs")

let program
try {
  program = programPath()
} catch (error) {
  console.error(`error: ${error.message}`)
  process.exit(1)
}
const child = spawn(program, process.argv.slice(2), { stdio: "inherit", env: programEnvironment() })
const signals = ["SIGINT", "SIGTERM", "SIGHUP", "SIGQUIT", "SIGUSR1", "SIGUSR2"].filter((name) => name in constants.signals)
for (const name of signals) {
  // The terminal sends Ctrl-C to both processes. A second SIGINT would make the server abort requests, so it is not passed on.
  process.on(name, () => name === "SIGINT" && process.stdin.isTTY ? undefined : child.kill(name))
}
child.on("error", (error) => {
  console.error(`error: cannot run ${program}: ${error.message}`)
  process.exitCode = 1
})
child.on("close", (code, signal) => {
  if (!signal) {
    process.exitCode = code
    return
  }
  // The program was ended by a signal, so this process ends by the same one.
  for (const name of signals) process.removeAllListeners(name)
  process.kill(process.pid, signal)
})
