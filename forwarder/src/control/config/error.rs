//! Errors of configuration files, and where they are.

use std::ops::Range;
use std::path::PathBuf;

/// An error at a place in a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Located {
    /// The octets of the file.
    pub span: Range<usize>,
    /// What was found, and what was expected.
    pub message: String,
}

impl Located {
    /// An error at `span`.
    pub fn new(span: Range<usize>, message: impl Into<String>) -> Located {
        Located { span, message: message.into() }
    }
}

/// Why a file was refused.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// It cannot be read.
    #[error("config {}: {error}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why not.
        error: std::io::Error,
    },
    /// It has keys, and others can read it.
    #[error(
        "config {}: it has keys in [[xfrm.state]], and its mode {mode:04o} lets others read them; run \
         `chmod 600` on it",
        path.display()
    )]
    Exposed {
        /// The file.
        path: PathBuf,
        /// Its permissions.
        mode: u32,
    },
    /// It has an error.
    #[error("{}:{line}:{column}: {message}", path.display())]
    Invalid {
        /// The file.
        path: PathBuf,
        /// From 1.
        line: usize,
        /// From 1, in characters.
        column: usize,
        /// What was found, and what was expected.
        message: String,
    },
}

/// Line and column of an octet, from 1.
pub(super) fn line_and_column(text: &str, offset: usize) -> (usize, usize) {
    let before = text.get(..offset).unwrap_or(text);
    let line_start = before.rfind('\n').map_or(0, |at| at + 1);
    (before.matches('\n').count() + 1, before[line_start..].chars().count() + 1)
}
