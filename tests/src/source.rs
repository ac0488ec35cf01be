//! The project's own files, for tests that check the source. Needs no root.

use std::fs;
use std::path::{Path, PathBuf};

/// Directories without source of this project.
const NOT_OURS: [&str; 2] = ["target", ".git"];

/// Every file below `top`, in order.
pub fn files(top: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut waiting = vec![top.to_owned()];
    while let Some(directory) = waiting.pop() {
        for entry in fs::read_dir(&directory).into_iter().flatten().flatten() {
            let path = entry.path();
            let ours = !NOT_OURS.iter().any(|name| path.ends_with(name));
            match entry.file_type() {
                Ok(kind) if kind.is_dir() && ours => waiting.push(path),
                Ok(kind) if kind.is_file() => found.push(path),
                _ => {}
            }
        }
    }
    found.sort();
    found
}

/// Every Rust file below `top`, in order.
pub fn rust_files(top: &Path) -> Vec<PathBuf> {
    let mut found = files(top);
    found.retain(|path| path.extension().is_some_and(|extension| extension == "rs"));
    found
}
