//! Turns the errors of the library and of `bulk` into failures of commands: the exit code, and the remedy with the name of
//! its flag, which only the command line knows.

use std::fmt::Display;

use super::output::Failure;
use crate::model_error::ModelError;
use layer0::error::{EmbedError, ExtractError, FileError, FileErrorKind, HubError, LoadError};

/// Returns the failure at run time whose message is the error and, in parentheses, what the user can do.
#[cfg_attr(not(any(feature = "bulk", feature = "refine")), allow(dead_code))]
fn with_remedy(error: &dyn Display, remedy: Option<&str>) -> Failure {
    Failure::Run(match remedy {
        Some(remedy) => format!("{error} ({remedy})"),
        None => error.to_string(),
    })
}

impl From<LoadError> for Failure {
    fn from(error: LoadError) -> Self {
        Self::Run(error.to_string())
    }
}

impl From<EmbedError> for Failure {
    fn from(error: EmbedError) -> Self {
        Self::Run(error.to_string())
    }
}

impl From<FileError> for Failure {
    fn from(error: FileError) -> Self {
        let remedy = (error.kind() == FileErrorKind::Exists).then_some("give --force to replace it");
        with_remedy(&error, remedy)
    }
}

impl From<ExtractError> for Failure {
    fn from(error: ExtractError) -> Self {
        match error {
            ExtractError::File(error) => error.into(),
            ExtractError::MissingTensor { setting, problem } => {
                let flag = setting.replace('_', "-");
                let remedy =
                    format!("if the model has another name for it, give --{flag} (in a configuration file: {setting})");
                with_remedy(&problem, Some(&remedy))
            }
            ExtractError::MissingTokenizer { problem, remedy } => {
                with_remedy(&problem, Some(&format!("{remedy} give --tokenizer FILE")))
            }
            error => Self::Run(error.to_string()),
        }
    }
}

impl From<HubError> for Failure {
    fn from(error: HubError) -> Self {
        Self::Run(error.to_string())
    }
}

impl From<ModelError> for Failure {
    fn from(error: ModelError) -> Self {
        Self::Run(error.to_string())
    }
}

#[cfg(any(feature = "bulk", feature = "refine"))]
mod records {
    use super::with_remedy;
    use crate::cli::output::Failure;
    use layer0_records::{RecordsError, RecordsErrorKind};

    impl From<RecordsError> for Failure {
        fn from(error: RecordsError) -> Self {
            with_remedy(
                &error,
                match error.kind() {
                    RecordsErrorKind::MissingColumn | RecordsErrorKind::ColumnType => {
                        Some("name the column of the texts with --field")
                    }
                    RecordsErrorKind::DuplicateColumn => {
                        Some("rename one of them, or name another column with --field")
                    }
                    RecordsErrorKind::TooManySkipped => {
                        Some("mend the file, or allow a larger share with --max-skipped")
                    }
                    _ => None,
                },
            )
        }
    }
}

#[cfg(feature = "bulk")]
mod bulk {
    use super::with_remedy;
    use crate::bulk::BulkError;
    use crate::cli::output::Failure;

    impl From<BulkError> for Failure {
        fn from(error: BulkError) -> Self {
            let remedy = match &error {
                BulkError::Records(error) => return error.clone().into(),
                BulkError::StandardOutput(kind) => return Self::Output(*kind),
                BulkError::Exists(_) => Some("give --force to replace it, or another name"),
                BulkError::OtherRun(_) => Some("repeat that run, or give --force to begin anew"),
                BulkError::BadRecord(_) => {
                    Some("name the field of the texts with --field, or leave bad records out with --on-error skip")
                }
                BulkError::NameTaken(_) => Some("name another with --embedding-field or --sparse-field"),
                _ => None,
            };
            with_remedy(&error, remedy)
        }
    }
}

#[cfg(feature = "refine")]
mod tuning {
    use super::with_remedy;
    use crate::cli::output::Failure;
    use layer0_records::{RecordsError, RecordsErrorKind};
    use layer0_tuning::{CorpusError, EvalError, FitError, RefineError};

    impl From<CorpusError> for Failure {
        fn from(error: CorpusError) -> Self {
            match &error {
                CorpusError::Records(error) => error.clone().into(),
                _ => with_remedy(&error, Some("name the field of the texts with --field")),
            }
        }
    }

    impl From<RefineError> for Failure {
        fn from(error: RefineError) -> Self {
            let remedy = match &error {
                RefineError::Corpus(error) => return error.clone().into(),
                RefineError::File(error) => return error.clone().into(),
                RefineError::NoTokens(_) => Some("give text of your own with --corpus"),
                RefineError::NotFinite(_) => Some("`embedding-server inspect` names the row"),
                _ => None,
            };
            with_remedy(&error, remedy)
        }
    }

    /// Returns the failure for a file of pairs, whose fields have flags of their own.
    fn of_pairs(error: &RecordsError) -> Failure {
        let remedy = match error.kind() {
            RecordsErrorKind::MissingColumn | RecordsErrorKind::ColumnType => Some(
                "name the columns with --anchor-field and --positive-field; a file of tabs without a header must end in .txt",
            ),
            RecordsErrorKind::TooManySkipped => Some(
                "name the fields with --anchor-field and --positive-field, mend the file, or allow a larger share with --max-skipped",
            ),
            _ => return error.clone().into(),
        };
        with_remedy(error, remedy)
    }

    impl From<FitError> for Failure {
        fn from(error: FitError) -> Self {
            let remedy = match &error {
                FitError::Corpus(error) => return error.clone().into(),
                FitError::Pairs(error) => return of_pairs(error),
                FitError::NothingToFit(_) => Some("give more text, or a smaller --held-out"),
                FitError::TooFewHeldOut(_) => Some("give --lambda 0.02, more text, or a larger --held-out"),
                FitError::ForeignCache(_) => Some("delete it, or give another --cache"),
                FitError::ForeignState(_) => Some("start anew without --resume, or give the same pairs and options"),
                FitError::OutdatedCache(_) => {
                    Some("the model behind the name is another one now: delete this file, or give another --cache")
                }
                _ => None,
            };
            with_remedy(&error, remedy)
        }
    }

    impl From<EvalError> for Failure {
        fn from(error: EvalError) -> Self {
            match error {
                EvalError::Records(error) => error.into(),
                _ => with_remedy(&error, None),
            }
        }
    }
}
