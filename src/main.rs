use std::process::ExitCode;

fn main() -> ExitCode {
    embedding_server::cli::main()
}
