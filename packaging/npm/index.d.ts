/** Returns the path of the program for this platform. Throws an error that says what to do if there is none. */
export function programPath(): string

export interface ServerOptions {
  /** The models to serve: paths, IDs on the Hugging Face Hub, or "NAME=PATH". The default is the built-in model. */
  models?: string[]
  /** Further arguments of the command. */
  args?: string[]
  /** The time in milliseconds until the server must be ready. The default is one minute. */
  timeout?: number
}

export interface RunningServer extends AsyncDisposable {
  /** The address of the server, without a slash at its end. */
  url: string
  /** The address for clients of OpenAI's API. */
  baseURL: string
  /** The ID of the server's process. */
  pid: number
  /** Lets requests in flight finish and stops the server. */
  stop(): Promise<void>
}

/** Starts the server on a free port of this machine, and waits until its models are loaded. It stops with this process. */
export function startServer(options?: ServerOptions): Promise<RunningServer>
