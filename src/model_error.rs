//! The error for a model that cannot be opened for use by the program.

use layer0::error::{HubError, LoadError};

use crate::builtin::BUILTIN;

/// Why a model cannot be fetched or opened.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ModelError {
    /// The checkpoint cannot be loaded.
    #[error(transparent)]
    Load(#[from] LoadError),
    /// The model cannot be fetched.
    #[error(transparent)]
    Hub(#[from] HubError),
    /// This build has no model inside.
    #[error(
        "{BUILTIN}: is not in this build, which has no default model (build with the feature `default-model`, or give a \
         checkpoint's directory)"
    )]
    NotInThisBuild,
    /// The thread that loaded the model panicked.
    #[error("{id}: failed to load: {panic}")]
    Panicked {
        /// The ID of the model.
        id: String,
        /// The message of the panic.
        panic: String,
    },
}

impl ModelError {
    /// Returns whether no change of the configuration can fix the error, so that the exit code is 1 and not 78.
    pub fn is_at_run_time(&self) -> bool {
        match self {
            Self::Load(error) => error.is_at_run_time(),
            Self::Hub(_) | Self::Panicked { .. } => true,
            Self::NotInThisBuild => false,
        }
    }
}
